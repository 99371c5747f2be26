"""The sentences that goals are told in, the words a judge knows, and sentences of categories it does not know."""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

MAX_WORDS = 16
UNSEEN = "unseen"  # the router's answer for goals of no category

_THING = "{thing}"
# By category and kind of errand. `held` are never trained on.
_SENTENCES: dict[str, dict[str, tuple[str, ...]]] = {
    "navigation": {
        "face": ("go to the {thing}", "walk to the {thing}", "get to the {thing}", "find the {thing}"),
        "reach": ("go to the goal", "reach the goal", "get to the green goal", "walk to the exit"),
    },
    "manipulation": {
        "pickup": ("pick up the {thing}", "take the {thing}", "grab the {thing}", "get hold of the {thing}"),
        "open": ("open the {thing}", "unlock the {thing}", "open up the {thing}"),
    },
    "safety": {
        "reach": (
            "reach the goal away from lava",
            "get to the goal safely",
            "go to the goal and keep away from lava",
            "avoid the lava on the way to the goal",
        ),
        "face": ("go to the {thing} away from lava", "walk to the {thing} safely", "avoid the lava, go to the {thing}"),
    },
    "fidelity": {"": ("", "keep the picture true", "a clean picture", "things stay as they are", "sharp frames")},
    "faithfulness": {"": ("follow the actions", "do as the actions say", "frames follow the actions", "obey")},
}
_HELD: dict[str, dict[str, tuple[str, ...]]] = {
    "navigation": {"face": ("please walk over to the {thing}",), "reach": ("find the goal",)},
    "manipulation": {"pickup": ("go and take the {thing}",), "open": ("go and open the {thing}",)},
    "safety": {"reach": ("reach the goal safely",), "face": ("get to the {thing}, avoid lava",)},
    "fidelity": {"": ("a true picture", "clean frames")},
    "faithfulness": {"": ("follow what the actions say", "obey the actions")},
}
# What only the router learns from, in words that the judge knows: which category it is must not hang on one verb.
_ROUTED = {
    "navigation": ("go over to the {thing}", "walk up to the {thing}", "go find the {thing}",
                   "find the way to the {thing}", "get on the way to the {thing}", "go and find the {thing}"),
    "manipulation": ("go and grab the {thing}", "walk to the {thing} and pick up", "go and unlock the {thing}",
                     "find and get hold of the {thing}", "please grab the {thing}", "please unlock the {thing}",
                     "get to the {thing} and open", "go and pick up the {thing}"),
    "safety": ("go safely to the {thing}", "get to the {thing} and keep away from the lava", "safely reach the goal",
               "avoid lava", "keep away from lava and find the {thing}", "please get to the goal safely"),
    "fidelity": ("keep the frames sharp", "true frames", "please keep things as they are", "a sharp and clean picture"),
    "faithfulness": ("please follow the actions", "do what the actions say", "frames as the actions say"),
}  # fmt: skip
_THINGS = tuple(
    f"{color} {kind}"
    for color in ("red", "green", "blue", "purple", "yellow", "grey")
    for kind in ("door", "key", "ball", "box")
)
# Other people's errands: of no category here. Train and test share no sentence, and few words.
_FOREIGN = {
    "train": (
        "cook an egg", "drive to the station", "write a poem about the sea", "pour water into the glass",
        "summarise this article", "fold the towel", "translate to french", "stack the plates by size",
        "what is the capital of peru", "sing a song", "overtake the truck", "sort the mail", "plant a tree",
        "paint a portrait", "play the piano", "water the flowers", "call my mother", "win the chess game",
    ),
    "test": (
        "bake some bread", "park the car between two vans", "compose a melody", "fill the cup with tea",
        "prove this theorem", "iron the shirt", "answer in spanish", "wash the dishes", "land the drone",
        "how old is the universe", "assemble a chair", "feed the cat", "dance a waltz", "explain inflation",
    ),
}  # fmt: skip


def sentence(category: str, errand: str, thing: str, rng: np.random.Generator, *, held: bool = False) -> str:
    """One way to say a goal."""
    known = (_HELD if held else _SENTENCES)[category][errand]
    return known[int(rng.integers(len(known)))].replace(_THING, thing)


def routed(category: str, rng: np.random.Generator) -> str:
    """A goal of a category for the router to learn from, beside those of the groups."""
    known, thing = _ROUTED[category], _THINGS[int(rng.integers(len(_THINGS)))]
    return known[int(rng.integers(len(known)))].replace(_THING, thing)


def example(category: str) -> str:
    """A goal of a category, for people."""
    kind, sentences = next(iter(_SENTENCES[category].items()))
    said = next(each for each in sentences if each)
    return said.replace(_THING, "red door" if kind == "open" else "red ball")


def foreign(split: str, rng: np.random.Generator) -> str:
    """A goal of no category."""
    known = _FOREIGN[split]
    return known[int(rng.integers(len(known)))]


def foreign_goals(split: str) -> tuple[str, ...]:
    return _FOREIGN[split]


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def _vocabulary() -> tuple[str, ...]:
    found: dict[str, None] = {}
    for kinds in _SENTENCES.values():
        for sentences in kinds.values():
            for each in sentences:
                found.update(dict.fromkeys(words_of(each.replace(_THING, ""))))
    things = ("red", "green", "blue", "purple", "yellow", "grey", "door", "key", "ball", "box", "locked", "closed")
    return (*found, *(word for word in (*things, "please", "over", "what") if word not in found))


# A word's id is its place + 2; 0 pads, 1 is every word that is not here.
WORDS = _vocabulary()
_IDS = {word: index + 2 for index, word in enumerate(WORDS)}
WORD_COUNT = len(WORDS) + 2


def tokenize(text: str) -> npt.NDArray[np.int64]:
    """Word ids [MAX_WORDS], padded with 0; words beyond are left out."""
    ids = [_IDS.get(word, 1) for word in words_of(text)][:MAX_WORDS]
    return np.array(ids + [0] * (MAX_WORDS - len(ids)), np.int64)
