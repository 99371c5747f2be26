"""A goal in words as the ids that a judge knows."""

import re
import unicodedata

import numpy as np
from worldtree_runtime.reward_package import GoalSpec

from worldtree_reward.domain import Reading

_WORD = re.compile(r"[^\W_]+")
_UNKNOWN = 1
_SHOWN = 8  # unknown words that a note names


def read_goal(text: str, spec: GoalSpec) -> Reading:
    """The words in their order, whatever their case and what stands between; words beyond `max_words` are left out."""
    ids = {word: place for place, word in enumerate(spec.words, start=2)}
    words = _WORD.findall(unicodedata.normalize("NFKC", text).lower())
    notes = []
    if unknown := list(dict.fromkeys(word for word in words if word not in ids)):
        named = ", ".join(word[:40] for word in unknown[:_SHOWN]) + (", ..." if len(unknown) > _SHOWN else "")
        notes.append(f"the judge does not know {len(unknown)} of the goal's words: {named}")
    if len(words) > spec.max_words:
        notes.append(f"the judge heeds the first {spec.max_words} words of the goal, of {len(words)}")
    heeded = [ids.get(word, _UNKNOWN) for word in words[: spec.max_words]]
    return Reading(np.array(heeded + [0] * (spec.max_words - len(heeded)), np.int64), tuple(notes))
