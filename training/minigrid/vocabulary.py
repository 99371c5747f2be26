"""The words a scene prompt may use, and how a prompt becomes word ids. The package carries this list."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from worldtree_runtime.video_package import PromptSpec
from worldtree_video.prompt import read_prompt

TOKENS = 20  # most words of a prompt that the scene model reads

COLORS = ("red", "green", "blue", "purple", "yellow", "grey")
STATES = ("open", "closed", "locked")
KINDS = ("lava", "goal", "door", "key", "ball", "box")
COUNTS = {2: "two", 3: "three", 4: "many"}  # `many` is four or more
PLACES = ("left", "right", "ahead")

# A word's id is its place + 1. New words go to the end: the weights know words by their ids.
WORDS = (
    *("a", "the", "with", "and", "of", "in", "on", "at", "to", "is", "there"),
    *COUNTS.values(),
    *COLORS,
    *STATES,
    *KINDS,
    *PLACES,
    *("carrying", "agent", "wall", "room", "crossing", "gap", "corridor", "maze", "playground", "chain"),
    *("four", "empty", "small", "large", "bright", "simple", "obstructed"),
)
ALIASES = {
    "an": "a",
    "one": "a",
    "some": "a",
    "this": "the",
    "has": "with",
    "having": "with",
    "containing": "with",
    "plus": "and",
    "inside": "in",
    "are": "is",
    "several": "many",
    "gray": "grey",
    "violet": "purple",
    "opened": "open",
    "shut": "closed",
    "magma": "lava",
    "goals": "goal",
    "exit": "goal",
    "doors": "door",
    "gate": "door",
    "keys": "key",
    "balls": "ball",
    "boxes": "box",
    "crate": "box",
    "chest": "box",
    "front": "ahead",
    "holding": "carrying",
    "carries": "carrying",
    "robot": "agent",
    "player": "agent",
    "walls": "wall",
    "rooms": "room",
    "crossings": "crossing",
    "gaps": "gap",
    "corridors": "corridor",
    "hallway": "corridor",
    "labyrinth": "maze",
    "tiny": "small",
    "little": "small",
    "big": "large",
    "blocked": "obstructed",
}
EXAMPLES = (
    "a lava crossing with a green goal",
    "a room with a red locked door and a yellow key",
    "four rooms with a goal on the left",
    "a bright room with two balls and a purple box",
    "an agent carrying a blue key, a blue locked door ahead",
    "an obstructed maze with many doors",
)
# As the service's reader of prompts takes it: what is learnt from is read by the same code.
_SPEC = PromptSpec(tokens=TOKENS, words=WORDS, aliases=ALIASES, schedule=(1.0,))


def tokenize(text: str) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Word ids [TOKENS], padded with 0, and the words that are unknown. What is beyond TOKENS is left out."""
    prompt = read_prompt(text, _SPEC)
    return np.array(prompt.tokens, np.int64), list(prompt.unknown)
