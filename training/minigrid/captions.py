"""Captions of views: what a caption says is so in the view it was made from, and can be looked for in any other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from training.minigrid import tiles
from training.minigrid.vocabulary import COLORS, COUNTS, KINDS, PLACES, STATES

_PLURALS = {"door": "doors", "key": "keys", "ball": "balls", "box": "boxes", "goal": "goals", "lava": "lava"}
_COLUMNS = np.arange(tiles.CELL_COUNT) % tiles.VIEW_CELLS
_AT = {
    "left": _COLUMNS < tiles.VIEW_CELLS // 2,
    "right": _COLUMNS > tiles.VIEW_CELLS // 2,
    "ahead": _COLUMNS == tiles.VIEW_CELLS // 2,
}
# What the environments are called, for a view that shows every thing the name names.
_SCENES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("FourRooms", ("four rooms",)),
    ("MultiRoom-N4", ("small rooms", "a chain of small rooms")),
    ("MultiRoom-N6", ("many rooms", "a chain of rooms")),
    ("KeyCorridor", ("a corridor", "a key corridor", "a corridor with doors")),
    ("LavaCrossing", ("a lava crossing", "a crossing with lava")),
    ("LavaGap", ("a lava gap", "a gap in lava")),
    ("SimpleCrossing", ("a crossing", "a simple crossing", "walls with a gap")),
    ("LockedRoom", ("locked rooms", "a corridor with locked doors")),
    ("ObstructedMaze", ("a maze", "an obstructed maze")),
    ("Playground", ("a playground", "a playground with many rooms")),
)
_FEW_CELLS, _MANY_CELLS = 14, 30  # seen cells that are no wall: a small room, a large one


@cache
def _codes(kind: str, color: str | None, state: str | None) -> npt.NDArray[np.int64]:
    """Object codes that fit. Goals and lava have one colour, whatever is asked for."""
    wanted = {kind, None if kind in ("goal", "lava") else color, state} - {None}
    return np.array([code for code, name in enumerate(tiles.object_names()) if wanted <= set(name.split())])


@dataclass(frozen=True, slots=True)
class Mention:
    """Things of one kind that a prompt asks for.

    `count`: 1 is at least one, 2 and 3 are exactly so many, 4 is four or more. `place`: where all of them are, seen
    from the agent. `carried`: it is in the agent's hands instead of in the view.
    """

    kind: str
    color: str | None = None
    state: str | None = None
    count: int = 1
    place: str | None = None
    carried: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.color not in (None, *COLORS) or self.state not in (None, *STATES):
            raise ValueError(f"no such thing: {self}")
        if self.count not in (1, *COUNTS) or self.place not in (None, *PLACES):
            raise ValueError(f"count must be 1 to 4, place one of {PLACES}: {self}")

    def codes(self) -> npt.NDArray[np.int64]:
        """Object codes that fit, wherever they stand."""
        return _codes(self.kind, self.color, self.state)

    def holds(self, ids: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
        """Whether views [..., 49] show it: [...] bool."""
        codes = self.codes()
        if self.carried:
            held = codes - tiles.FIRST_CARRIABLE + tiles.AGENT + 1
            carried: npt.NDArray[np.bool_] = np.isin(ids[..., tiles.AGENT_CELL], held)
            return carried
        found = np.isin(ids, codes)
        if self.place is not None:
            found = found & _AT[self.place]
        number = found.sum(-1)
        fits: npt.NDArray[np.bool_] = number == self.count if self.count in (2, 3) else number >= self.count
        return fits

    def text(self, rng: np.random.Generator) -> str:
        """An English phrase for it, one of several."""
        adjectives = [word for word in (self.state, self.color) if word is not None]
        if rng.random() < 0.5:
            adjectives.reverse()
        noun = self.kind if self.count == 1 else _PLURALS[self.kind]
        number = COUNTS.get(self.count, "" if self.kind == "lava" else "a")
        phrase = " ".join(word for word in (number, *adjectives, noun) if word)
        if self.carried:
            return f"carrying {phrase}" if rng.random() < 0.5 else f"an agent carrying {phrase}"
        if self.place == "ahead":
            return f"{phrase} ahead"
        return phrase if self.place is None else f"{phrase} on the {self.place}"


@dataclass(frozen=True, slots=True)
class Caption:
    text: str
    mentions: tuple[Mention, ...]


def _mention(code: int, ids: npt.NDArray[np.integer], rng: np.random.Generator) -> Mention:
    """Says something true of the things of an object code in a view; colour, state, number and place at random."""
    *adjectives, kind = tiles.object_names()[code].split()
    color = next((word for word in adjectives if word in COLORS), "green" if kind == "goal" else None)
    state = next((word for word in adjectives if word in STATES), None)
    if rng.random() < (0.6 if kind == "goal" else 0.15):
        color = None
    if rng.random() < 0.4:
        state = None
    seen = int(np.isin(ids, Mention(kind, color, state).codes()).sum())
    number = min(seen, 4) if kind != "lava" and seen > 1 and rng.random() < 0.6 else 1
    places = [p for p in PLACES if (ids[_AT[p]] == code).any()]
    place = places[0] if seen == 1 and rng.random() < 0.3 else None
    return Mention(kind, color, state, number, place)


def _scene(env_id: str, ids: npt.NDArray[np.integer], rng: np.random.Generator) -> str:
    """What the place is called: by its environment, or a room of some size and light."""
    shown = {word for code in np.unique(ids[ids < tiles.OBJECT_COUNT]) for word in tiles.object_names()[code].split()}
    names = next((names for part, names in _SCENES if part in env_id), ())
    fitting = [n for n in names if all(w.rstrip("s") in shown for w in n.split() if w.rstrip("s") in KINDS)]
    if fitting and rng.random() < 0.7:
        return str(rng.choice(fitting))
    open_cells = int(((ids != tiles.DARK) & (ids != tiles.WALL)).sum())
    words = []
    if shown <= {"empty", "wall"} and rng.random() < 0.8:
        words.append("empty")
    if (ids != tiles.DARK).all() and rng.random() < 0.5:
        words.append("bright")
    elif open_cells <= _FEW_CELLS and rng.random() < 0.5:
        words.append("small")
    elif open_cells >= _MANY_CELLS and rng.random() < 0.5:
        words.append("large")
    return " ".join([_article(words[0] if words else "room"), *words, "room"])


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _join(phrases: Sequence[str], rng: np.random.Generator) -> str:
    """ "x", "x and y", "x, y and z"."""
    if len(phrases) == 1:
        return phrases[0]
    comma = ", " if rng.random() < 0.7 else " and "
    return f"{comma.join(phrases[:-1])} and {phrases[-1]}"


def write_caption(mentions: Sequence[Mention], scene: str | None, rng: np.random.Generator) -> str:
    """A sentence that asks for the mentions, in the scene if there is one."""
    if not mentions:
        return scene or "a room"
    things = _join([m.text(rng) for m in mentions], rng)
    if scene is None:
        return things
    form = rng.integers(5)
    if form == 3:
        return f"{things} in {scene}"
    return f"{scene}, {things}" if form == 4 else f"{scene} with {things}"


def describe(env_id: str, ids: npt.NDArray[np.integer], rng: np.random.Generator) -> Caption:
    """A caption of a view [49] of an environment: true, and seldom all that could be said.

    What the agent carries is always said, so that what is not said is not carried.
    """
    view = np.asarray(ids).copy()
    carried = int(view[tiles.AGENT_CELL]) - tiles.AGENT - 1
    view[tiles.AGENT_CELL] = tiles.EMPTY
    codes = [int(c) for c in np.unique(view[view < tiles.OBJECT_COUNT]) if c not in (tiles.EMPTY, tiles.WALL)]
    rng.shuffle(codes)
    chosen = codes[: int(rng.integers(5))]
    mentions = [_mention(code, view, rng) for code in chosen]
    if carried >= 0:
        color, kind = tiles.object_names()[carried + tiles.FIRST_CARRIABLE].split()
        mentions.append(Mention(kind, None if rng.random() < 0.15 else color, carried=True))
    scene = _scene(env_id, view, rng) if not mentions or rng.random() < 0.7 else None
    return Caption(write_caption(mentions, scene, rng), tuple(mentions))
