"""Vocabulary and captions: what a caption says is so, and the words it says it in are known."""

from __future__ import annotations

import numpy as np
import pytest
from worldtree_runtime.video_package import PromptSpec
from worldtree_video.prompt import read_prompt

from training.minigrid import tiles
from training.minigrid.captions import Mention, describe
from training.minigrid.data import Episode, record_many
from training.minigrid.scene_data import recolored, worth_showing
from training.minigrid.scene_evaluate import composed
from training.minigrid.scene_manifest import prompt_section
from training.minigrid.vocabulary import ALIASES, COLORS, EXAMPLES, TOKENS, WORDS, tokenize


@pytest.fixture(scope="module")
def episodes() -> list[Episode]:
    return record_many("validation", 24, length=12, check_rate=0.0, lively=True)


def view(**cells: int) -> np.ndarray:
    """An empty bright room with objects at `r<row>c<column>`."""
    ids = np.full(tiles.CELL_COUNT, tiles.EMPTY)
    ids[tiles.AGENT_CELL] = tiles.AGENT
    for name, code in cells.items():
        row, column = name[1:].split("c")
        ids[int(row) * tiles.VIEW_CELLS + int(column)] = code
    return ids


def code(name: str) -> int:
    return tiles.object_names().index(name)


def test_words_are_distinct_and_aliases_are_other_spellings_of_them() -> None:
    assert len(set(WORDS)) == len(WORDS)
    assert set(ALIASES.values()) <= set(WORDS)
    assert not set(ALIASES) & set(WORDS)


def test_unknown_words_are_told_and_left_out() -> None:
    ids, unknown = tokenize("A Lava-crossing, with a GREEN dragon and two exits!")
    assert unknown == ["dragon", "exits"]
    assert [WORDS[k - 1] for k in ids if k] == ["a", "lava", "crossing", "with", "a", "green", "and", "two"]
    assert len(ids) == TOKENS


def test_every_example_is_understood_whole() -> None:
    for example in EXAMPLES:
        ids, unknown = tokenize(example)
        assert unknown == []
        assert ids[-1] == 0, f"{example!r} is longer than {TOKENS - 1} words"


def test_all_that_a_caption_says_of_things_is_in_its_view(episodes: list[Episode]) -> None:
    rng = np.random.default_rng(1)
    said = 0
    for episode in episodes:
        for ids in episode.ids:
            caption = describe(episode.env_id, ids, rng)
            assert tokenize(caption.text)[1] == []
            for mention in caption.mentions:
                assert mention.holds(ids), (mention, caption.text)
                said += 1
    assert said > 100


def test_a_caption_is_a_function_of_its_seed(episodes: list[Episode]) -> None:
    for episode in episodes:
        first, second = (describe(episode.env_id, episode.ids[3], np.random.default_rng(4)) for _ in range(2))
        assert first == second


def test_what_is_carried_is_always_said(episodes: list[Episode]) -> None:
    rng = np.random.default_rng(2)
    for episode in episodes:
        ids = episode.ids[0].copy()
        ids[tiles.AGENT_CELL] = tiles.AGENT + 1
        assert any(mention.carried for mention in describe(episode.env_id, ids, rng).mentions)


def test_mentions_tell_colours_states_numbers_and_places_apart() -> None:
    ids = view(r0c1=code("red ball"), r2c5=code("red ball"), r3c3=code("locked blue door"))
    assert Mention("ball", "red", count=2).holds(ids)
    assert not Mention("ball", "red", count=3).holds(ids)
    assert not Mention("ball", "blue").holds(ids)
    assert not Mention("key", "red").holds(ids)
    assert Mention("ball", place="left").holds(ids)
    assert Mention("door", "blue", "locked", place="ahead").holds(ids)
    assert not Mention("door", "blue", "open").holds(ids)
    assert not Mention("door", place="right").holds(ids)


def test_what_is_carried_is_not_in_the_view() -> None:
    ids = view()
    ids[tiles.AGENT_CELL] = tiles.tile_names().index("agent with yellow key")
    assert Mention("key", "yellow", carried=True).holds(ids)
    assert not Mention("key", "yellow").holds(ids)
    assert not Mention("key", "red", carried=True).holds(ids)


def test_a_mention_of_what_no_world_holds_is_refused() -> None:
    with pytest.raises(ValueError, match="no such thing"):
        Mention("dragon")
    with pytest.raises(ValueError, match="count must be 1 to 4"):
        Mention("key", count=5)


def test_recolouring_changes_colours_and_nothing_else() -> None:
    order = np.roll(np.arange(len(COLORS)), 1)
    names = tiles.tile_names()
    changed = recolored(np.arange(tiles.TILE_COUNT), order)
    assert sorted(changed) == list(range(tiles.TILE_COUNT))
    for before, after in zip(names, (names[k] for k in changed), strict=True):
        rest = [[word for word in name.split() if word not in COLORS] for name in (before, after)]
        assert rest[0] == rest[1]
        assert (before == after) == (rest[0] == before.split())


def test_views_of_nothing_but_a_near_wall_are_not_shown() -> None:
    wall = np.full(tiles.CELL_COUNT, tiles.DARK)
    wall[tiles.AHEAD_CELL] = tiles.WALL
    rich = view(r0c0=code("red key"), r0c1=code("blue key"))
    assert worth_showing(np.stack([wall, view(), rich])).tolist() == [0, 1, 3]


def test_composed_prompts_are_understood_whole() -> None:
    for caption in composed("test", 50):
        assert tokenize(caption.text)[1] == []
        assert len(caption.mentions) == 2


def test_the_service_reads_prompts_as_they_were_learnt() -> None:
    spec = PromptSpec.model_validate(prompt_section())
    for text in (*EXAMPLES, "A LAVA-crossing... with 2 exits!", "four rooms " * TOKENS, "", "snake_case; naïve  boxes"):
        read = read_prompt(text, spec)
        ids, unknown = tokenize(text)
        assert list(read.tokens) == ids.tolist()
        assert any(word in " ".join(read.warnings) for word in unknown) == bool(unknown)
