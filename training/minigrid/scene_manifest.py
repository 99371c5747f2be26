"""The part of model.yaml that is about scene prompts. It is put into whatever the world model's export writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training.minigrid.vocabulary import ALIASES, EXAMPLES, TOKENS, WORDS

FILE = "scene.onnx"
# Chosen by `python -m training.minigrid.scene_search` on validation seeds, like the graph's guidance.
SCHEDULE = (1.0, 0.97, 0.96, 0.95, 0.94, 0.93, 0.92, 0.91, 0.9, 0.89, 0.88, 0.86, 0.84, 0.81, 0.77, 0.72)
GUIDANCE = 1.75


def prompt_section() -> dict[str, Any]:
    return {
        "tokens": TOKENS,
        "words": list(WORDS),
        "aliases": dict(ALIASES),
        "schedule": list(SCHEDULE),
        "examples": list(EXAMPLES),
    }


def add_scene(document: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The manifest with scene prompts if the package folder holds the scene graph, else without."""
    files = {name: file for name, file in document["files"].items() if name != "scene"}
    whole: dict[str, Any] = {}
    for name, value in document.items():
        if name == "prompt":
            continue
        if name == "files" and (folder / FILE).exists():
            whole["prompt"] = prompt_section()
            files["scene"] = FILE
        whole[name] = files if name == "files" else value
    return whole
