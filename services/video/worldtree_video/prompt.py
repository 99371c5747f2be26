"""A scene prompt as the ids of the words that a model knows."""

import re
import unicodedata
from dataclasses import dataclass

from worldtree_runtime.video_package import PromptSpec

_WORD = re.compile(r"[^\W_]+")
_SHOWN = 8  # unknown words that a warning names


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is told. `tokens`: an id of 1 or more for each word, 0 to fill up.

    `unknown`: words that are left out, each once. `warnings`: what it is not told, for people.
    """

    tokens: tuple[int, ...]
    unknown: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def read_prompt(text: str, spec: PromptSpec) -> Prompt:
    """The words of a prompt in their order, whatever their case and what stands between; unknown ones are left out."""
    ids = {word: place for place, word in enumerate(spec.words, start=1)}
    ids |= {alias: ids[word] for alias, word in spec.aliases.items()}
    words = _WORD.findall(unicodedata.normalize("NFKC", text).lower())
    known = [word for word in words if word in ids]
    unknown = tuple(dict.fromkeys(word for word in words if word not in ids))
    warnings = []
    if unknown:
        named = ", ".join(word[:40] for word in unknown[:_SHOWN]) + (", ..." if len(unknown) > _SHOWN else "")
        warnings.append(f"the model does not know {len(unknown)} of the prompt's words, and ignores them: {named}")
    if not known:
        warnings.append("the model knows no word of the prompt: the scene is any that it can make")
    if len(known) > spec.tokens:
        warnings.append(f"the model heeds the first {spec.tokens} words that it knows, of {len(known)}")
    heeded = [ids[word] for word in known[: spec.tokens]]
    return Prompt((*heeded, *(0,) * (spec.tokens - len(heeded))), unknown, tuple(warnings))
