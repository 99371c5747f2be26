"""A package to begin with: a folder whose export gives a small model that is served at once."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from worldtree_runtime.model_package import PackageError
from worldtree_runtime.video_package import VideoPackage

_TEMPLATE = Path(__file__).parent / "template"
_PATCH = 4  # pixels of a cell's side
# What a cell keeps: a state, in a block that has two of each head_dim; or keys and values.
_RECURRENT = {"layers": 1, "heads": 1, "head_dim": 16, "window": 1}
_ATTENTION = {"layers": 2, "heads": 2, "head_dim": 16, "window": 4}
_LATENT = 8  # numbers of a cell's latents
_DEFAULT_ACTIONS = ("left", "right", "forward")


@dataclass(frozen=True, slots=True)
class Plan:
    """What the package will be like. Actions are names, or vectors of `vector` numbers from -1 to 1. `attention`: its
    blocks hold keys and values; else one holds a recurrent state.
    """

    name: str
    version: str = "1"
    latent: bool = False
    attention: bool = False
    actions: tuple[str, ...] = ()
    vector: int = 0
    height_px: int = 32
    width_px: int = 32
    frames_per_chunk: int = 1
    fps: float = 10.0

    @property
    def files(self) -> list[str]:
        """The graphs that its export will write."""
        return list(self.manifest()["files"].values())

    def manifest(self) -> dict[str, Any]:
        """Its `model.yaml`."""
        cells = (self.height_px // _PATCH, self.width_px // _PATCH)
        count = cells[0] * cells[1]
        graphs = ["denoise", "commit", *(["encode", "decode"] if self.latent else [])]
        return {
            "format": 1,
            "kind": "video",
            "name": self.name,
            "version": self.version,
            "description": "",
            "license": "",
            "frame": {"height_px": self.height_px, "width_px": self.width_px, "fps": self.fps},
            "frames_per_chunk": self.frames_per_chunk,
            **({"latent": {"shape": [*cells, _LATENT]}} if self.latent else {}),
            "action": {"kind": "continuous", "size": self.vector, "low": -1.0, "high": 1.0}
            if self.vector
            else {"kind": "discrete", "names": list(self.actions or _DEFAULT_ACTIONS)},
            "kv": {"tokens": count, **_ATTENTION}
            if self.attention
            else {"tokens": count, **_RECURRENT, "state_tokens": count},
            "sampler": {"kind": "renoise", "default_nfe": 2, "schedules": {1: [1.0], 2: [1.0, 0.5]}},
            "files": {graph: f"{graph}.onnx" for graph in graphs},
            "starts": [{"name": "first", "file": "starts/first.png", "description": "A ball, and nothing else."}],
        }


def new(plan: Plan, out: Path) -> Path:
    """Writes the folder `out`/NAME and returns it. Raises PackageError for a plan that cannot be, or a place taken."""
    folder = out / plan.name
    package = folder / plan.version
    for problem in _problems(plan):
        raise PackageError(package / "model.yaml", *problem)
    if folder.exists():
        raise PackageError(folder, "name", "exists already; take another name, or another --out")
    (package / "starts").mkdir(parents=True)
    (package / "model.yaml").write_text(yaml.safe_dump(plan.manifest(), sort_keys=False, default_flow_style=None))
    Image.fromarray(_ball(plan)).save(package / "starts/first.png")
    some = ":".join(["0.5"] * plan.vector) if plan.vector else (plan.actions or _DEFAULT_ACTIONS)[0]
    marks = {"@NAME@": plan.name, "@VERSION@": plan.version, "@PATCH@": str(_PATCH), "@ACTIONS@": f"{some}*8"}
    marks["@MEMORY@"] = (_TEMPLATE / ("attention.py.txt" if plan.attention else "recurrent.py.txt")).read_text()
    for template, to in (
        ("export.py.txt", folder / "export.py"),
        ("README.md", folder / "README.md"),
        ("MODEL_CARD.md", package / "MODEL_CARD.md"),
    ):
        text = (_TEMPLATE / template).read_text()
        to.write_text(re.sub("|".join(marks), lambda mark: marks[mark[0]], text))
    return folder


def _problems(plan: Plan) -> Iterator[tuple[str, str]]:
    """Fields that cannot be so, and what was expected."""
    if plan.actions and plan.vector:
        yield "action", "must be names or vectors, not both"
    for field, value in (("height_px", plan.height_px), ("width_px", plan.width_px)):
        if value < _PATCH or value % _PATCH:
            yield f"frame.{field}", f"must be a multiple of {_PATCH}, got {value}"
    try:
        VideoPackage.model_validate(plan.manifest())
    except ValidationError as error:
        for each in error.errors():
            yield ".".join(map(str, each["loc"])) or "model.yaml", each["msg"]


def _ball(plan: Plan) -> NDArray[np.uint8]:
    """A chunk of a ball that rolls to the right, its frames side by side."""
    rows, columns = np.mgrid[: plan.height_px, : plan.width_px]
    frames = []
    for frame in range(plan.frames_per_chunk):
        middle = plan.width_px * (frame + 1) / (plan.frames_per_chunk + 1)
        near = np.hypot(rows - plan.height_px * 0.6, columns - middle) < plan.height_px / 6
        sky = np.stack([60 + rows, 90 + rows, 160 - rows], axis=-1).clip(0, 255)
        frames.append(np.where(near[..., None], [230, 120, 60], sky).astype(np.uint8))
    return np.concatenate(frames, axis=1)
