"""Which cells count as determined, in a small world made by hand and on recorded episodes."""

from __future__ import annotations

import numpy as np

from training.minigrid import pose, tiles
from training.minigrid.data import record
from training.minigrid.determined import Knowledge, determined_cells
from training.minigrid.legal import legal_views

BOX = tiles.object_names().index("red box")
KEY = tiles.object_names().index("red key")
LOCKED = tiles.object_names().index("locked red door")


def knowing(*cells: tuple[int, int], window: int = 8) -> Knowledge:
    return Knowledge(window, dict.fromkeys(cells, 0))


def look(knowledge: Knowledge, *cells: tuple[int, int], now: int) -> list[bool]:
    """Looks at some cells, none of them the agent's."""
    return list(knowledge.look(list(cells), np.ones(len(cells), bool), now=now, start=False))


def test_a_cell_seen_at_the_start_is_determined_and_a_new_one_is_not() -> None:
    assert look(knowing((1, 1)), (1, 1), (2, 2), now=1) == [True, False]


def test_a_chain_breaks_after_the_window_and_stays_broken() -> None:
    knowledge = knowing((1, 1), window=3)
    assert look(knowledge, (1, 1), now=3) == [True]
    assert look(knowledge, (1, 1), now=7) == [False]
    assert look(knowledge, (1, 1), now=8) == [False]


def test_opening_a_box_shows_what_was_never_seen() -> None:
    knowledge = knowing((0, 1))
    knowledge.act(pose.TOGGLE, (0, 1), BOX, False, now=1)
    assert look(knowledge, (0, 1), now=1) == [False]


def test_a_locked_door_opens_as_the_known_key_says() -> None:
    knowledge = knowing((0, 1))
    knowledge.act(pose.TOGGLE, (0, 1), LOCKED, True, now=1)
    assert look(knowledge, (0, 1), now=1) == [True]


def test_picking_up_the_unknown_makes_the_hands_unknown_and_what_they_drop() -> None:
    knowledge = knowing((5, 5))
    knowledge.act(pose.PICKUP, (0, 1), KEY, False, now=1)
    assert not knowledge.carried_known
    knowledge.act(pose.DROP, (5, 5), tiles.EMPTY, True, now=2)
    assert look(knowledge, (5, 5), now=2) == [False]


def test_walking_into_the_unknown_loses_the_pose() -> None:
    knowledge = knowing((0, 1))
    knowledge.act(pose.FORWARD, (0, 1), tiles.EMPTY, False, now=1)
    assert knowledge.pose_known
    knowledge.act(pose.FORWARD, (0, 2), tiles.EMPTY, False, now=1)
    assert not knowledge.pose_known


def test_start_frames_are_never_counted_and_strict_is_a_part_of_plain() -> None:
    episode = record("MiniGrid-MultiRoom-N6-v0", 4, length=60)
    plain, strict = determined_cells(episode.ids, episode.poses, episode.actions, start_count=8, window=8)
    assert not plain[:8].any()
    assert plain[8:].any()
    assert not (strict & ~plain).any()
    assert not plain[episode.ids == tiles.DARK].any()


def test_standing_still_determines_all_that_is_visible() -> None:
    episode = record("MiniGrid-FourRooms-v0", 4, length=1)
    ids, poses = episode.ids.repeat(5, 0), episode.poses.repeat(5, 0)
    plain, _ = determined_cells(ids, poses, np.full(5, pose.DONE, np.uint8), start_count=1, window=8)
    assert np.array_equal(plain[1:], ids[1:] != tiles.DARK)


def test_true_views_are_legal_and_a_hole_in_the_light_is_not() -> None:
    episode = record("MiniGrid-MultiRoom-N6-v0", 4, length=30)
    assert legal_views(episode.ids).all()
    spoilt = episode.ids.copy()
    spoilt[:, tiles.AHEAD_CELL] = tiles.DARK  # the cell ahead is always seen
    assert not legal_views(spoilt).any()
