"""Episodes outlive their streams, for a while, and belong to whom they were made for."""

import asyncio

import pytest
from worldtree_navigator.episodes import Episodes
from worldtree_navigator.errors import EpisodeTaken


async def test_an_episode_is_found_again_until_its_time_is_over() -> None:
    episodes = Episodes(keep_s=10.0, limit=8)
    first, holder = episodes.take("", "p", "mine", 0.0)
    for image, executed in ((b"image", []), (b"next", [2])):
        first.saw(executed)
        first.keep(image, executed)
    episodes.leave("", "p", holder, first, 5.0)
    again, holder = episodes.take("", "p", "mine", 14.0)
    assert (again is first, again.step, list(again.between)) == (True, 1, [2])
    episodes.leave("", "p", holder, again, 15.0)
    late, _ = episodes.take("", "p", "mine", 26.0)
    assert (late is first, late.step) == (False, 0)


async def test_an_episode_is_nobody_elses() -> None:
    episodes = Episodes(keep_s=10.0, limit=8)
    mine, _ = episodes.take("me", "p", "name", 0.0)
    theirs, _ = episodes.take("them", "p", "name", 0.0)
    others, _ = episodes.take("me", "another policy", "name", 0.0)
    assert len({id(each) for each in (mine, theirs, others)}) == 3


async def test_who_comes_later_takes_it_and_who_had_it_is_told() -> None:
    episodes = Episodes(keep_s=10.0, limit=8)
    first, before = episodes.take("", "p", "mine", 0.0)
    second, after = episodes.take("", "p", "mine", 1.0)
    assert first is second
    with pytest.raises(EpisodeTaken, match="mine"):
        await before
    episodes.leave("", "p", before, first, 2.0)
    assert not after.done()
    episodes.leave("", "p", after, second, 3.0)
    assert len(episodes) == 1
    with pytest.raises(asyncio.CancelledError):
        await after


async def test_the_longest_left_go_first_where_there_are_too_many() -> None:
    episodes = Episodes(keep_s=100.0, limit=2)
    for number in range(4):
        episode, holder = episodes.take("", "p", f"{number}", float(number))
        episode.step = number + 1
        episodes.leave("", "p", holder, episode, float(number))
    assert len(episodes) == 2
    assert episodes.take("", "p", "3", 5.0)[0].step == 4
    assert episodes.take("", "p", "0", 5.0)[0].step == 0


async def test_a_nameless_episode_is_a_new_one() -> None:
    episodes = Episodes(keep_s=10.0, limit=8)
    names = {episodes.take("", "p", "", 0.0)[0].name for _ in range(3)}
    assert len(names) == 3


async def test_a_gap_in_what_was_seen_begins_the_past_anew() -> None:
    episode, _ = Episodes(keep_s=10.0, limit=8).take("", "p", "", 0.0)
    for image, executed in ((b"a", []), (b"b", [1]), (b"c", [1, 2])):
        episode.saw(executed)
        episode.keep(image, executed)
    assert (list(episode.frames), list(episode.between), episode.step) == ([b"c"], [], 3)
