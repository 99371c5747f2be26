"""A tiny world for tests: a real package with real graphs, small enough that a tick takes a fraction of a millisecond.

Its frames depend on all that a video model's may: noise, level, action,
position, and each block in view by its place, so that a mistake in any of them shows as other pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

POISON = "poison"
POISON_ABOVE = 0.9
_WHITE_ABOVE = 0.999  # of the mean of a picture, -1 to 1
PROMPT_WORDS = ("red", "blue", "door", "key")
_PROMPT_TOKENS = 4
_OPSET, _IR_VERSION = 18, 10  # what the oldest ONNX Runtime that we support reads
_WORK_SIZE = 256


@dataclass(frozen=True, slots=True)
class TinyWorld:
    """What a tiny package is like.

    Discrete actions are left, right, stay and poison; continuous ones (`action_size` above 0) are vectors of that many
    numbers from -1 to 1. `poison`, and a vector that begins above 0.9, make the model answer NaN for that member of a
    batch. `work`: matrix products that each evaluation does for nothing, to make it slower. `tokens` sets the size of
    a block, 64 bytes each. A chunk that is white all over is committed as a block of NaN.

    `pose`: the last token of a block holds a pose, declared in the package: a walk along x, where discrete actions go
    left by one, right by one or stay, and continuous ones go by their first number.

    `latent`: the denoiser works on pictures of half the width. `cache_quality`: with how many evaluations the blocks in
    view were made shows in the picture. `prompt`: a first chunk can be asked for in words, and each of `PROMPT_WORDS`
    shows in it by its place.
    """

    name: str = "tiny"
    version: str = "1"
    frames_per_chunk: int = 1
    height_px: int = 4
    width_px: int = 6
    window: int = 4
    sampler: str = "renoise"
    action_size: int = 0
    work: int = 0
    tokens: int = 3
    pose: bool = False
    latent: bool = False
    cache_quality: bool = False
    prompt: bool = False

    @property
    def action_names(self) -> list[str]:
        return ["left", "right", "stay", POISON]

    @property
    def sample_shape(self) -> tuple[int, int, int, int]:
        """[frames, height, width, 3] of what the denoiser works on."""
        return (self.frames_per_chunk, self.height_px, self.width_px // (2 if self.latent else 1), 3)

    @property
    def block_shape(self) -> tuple[int, int, int, int, int]:
        return (1, 2, 2, self.tokens, 4)  # [layers, 2, heads, tokens, head_dim]

    def write(self, repository: Path) -> Path:
        """Writes the package and returns its folder."""
        folder = repository / self.name / self.version
        (folder / "starts").mkdir(parents=True)
        onnx.save(self.denoise_graph(), folder / "denoise.onnx")
        onnx.save(self.commit_graph(), folder / "commit.onnx")
        if self.latent:
            onnx.save(self.encode_graph(), folder / "encode.onnx")
            onnx.save(self.decode_graph(), folder / "decode.onnx")
        if self.prompt:
            onnx.save(self.scene_graph(), folder / "scene.onnx")
        for seed, (name, chunk_count) in enumerate({"dawn": 1, "dusk": 3}.items()):
            strip = np.random.default_rng(seed).integers(
                0, 256, (self.height_px, self.width_px * chunk_count * self.frames_per_chunk, 3), np.uint8
            )
            Image.fromarray(strip).save(folder / "starts" / f"{name}.png")
        (folder / "MODEL_CARD.md").write_text(f"# {self.name}\nA world for tests.\n")
        (folder / "model.yaml").write_text(yaml.safe_dump(self.manifest(), sort_keys=False))
        return folder

    def manifest(self) -> dict[str, Any]:
        """The `model.yaml`."""
        layers, _, heads, tokens, head_dim = self.block_shape
        between: list[Any] = [[0.5] * self.action_size for _ in range(2)] if self.action_size else ["left", "stay"]
        return {
            "format": 1,
            "kind": "video",
            "name": self.name,
            "version": self.version,
            "description": "A world for tests.",
            "license": "MIT",
            "frame": {"height_px": self.height_px, "width_px": self.width_px, "fps": 10.0},
            "frames_per_chunk": self.frames_per_chunk,
            "action": {"kind": "continuous", "size": self.action_size}
            if self.action_size
            else {"kind": "discrete", "names": self.action_names},
            "kv": {
                "layers": layers,
                "heads": heads,
                "tokens": tokens,
                "head_dim": head_dim,
                "window": self.window,
                **(
                    {"state_tokens": 1, "pose": {"layer": 0, "part": "key", "head": 0, "token": tokens - 1}}
                    if self.pose
                    else {}
                ),
            },
            "sampler": {"kind": self.sampler, "default_nfe": 2, "schedules": {1: [1.0], 2: [1.0, 0.5]}},
            **({"latent": {"shape": list(self.sample_shape)}} if self.latent else {}),
            **({"cache_quality": True} if self.cache_quality else {}),
            **({"prompt": self._prompt()} if self.prompt else {}),
            "files": {
                name: f"{name}.onnx"
                for name, wanted in {
                    "denoise": True,
                    "commit": True,
                    "encode": self.latent,
                    "decode": self.latent,
                    "scene": self.prompt,
                }.items()
                if wanted
            },
            "starts": [
                {"name": "dawn", "file": "starts/dawn.png", "description": "One chunk."},
                {"name": "dusk", "file": "starts/dusk.png", "actions": between, "description": "Three chunks."},
            ],
        }

    def denoise_graph(self) -> Any:
        """x0 = tanh(0.8 x + what the level, the action, the position and the blocks in view add up to)."""
        graph = _Graph()
        steering = self._steering(graph, {"t": 0.1})
        x0 = graph.node("Tanh", graph.sum(graph.scaled("x", 0.8), graph.column(steering, 5)))
        nothing = np.array(np.nan, np.float32)
        x0 = graph.node("Where", graph.column(self._poisoned(graph), 5), graph.constant(nothing), x0)
        if self.work:
            x0 = graph.sum(x0, graph.scaled(self._work(graph), 0.0))
        graph.node("Identity", x0, output="x0")
        inputs = [self._sample("x"), _value("t", TensorProto.FLOAT, ["batch"]), *self._shared()]
        return graph.model("denoise", inputs, [self._sample("x0")])

    def commit_graph(self) -> Any:
        """Each number of a block is tanh of its own mix of the picture's mean and the steering."""
        graph = _Graph()
        mean = graph.node("ReduceMean", "x0", graph.constant(np.array([1, 2, 3, 4])), keepdims=0)
        steering = graph.sum(self._steering(graph, {}), mean)
        count = int(np.prod(self.block_shape))
        mix = np.linspace(0.1, 1, count, dtype=np.float32)[None]
        flat = graph.node("Tanh", graph.node("Mul", graph.column(steering, 2), graph.constant(mix)))
        block = graph.node("Reshape", flat, graph.constant(np.array([-1, *self.block_shape])))
        if self.pose:
            keys = np.ones((1, *self.block_shape), np.float32)
            keys[..., -1, :] = 0  # the last token
            place = np.zeros((1, *self.block_shape), np.float32)
            place[0, 0, 0, 0, -1, 0] = 1  # its x, in the keys of head 0
            walked = graph.node("Mul", graph.column(self._walk(graph), 6), graph.constant(place))
            block = graph.sum(graph.node("Mul", block, graph.constant(keys)), walked)
        white = graph.node("Greater", mean, graph.constant(np.array(_WHITE_ABOVE, np.float32)))
        nothing = graph.constant(np.array(np.nan, np.float32))
        block = graph.node("Where", graph.column(white, 6), nothing, block)
        index = graph.node("Unsqueeze", "slot", graph.constant(np.array([1])))
        graph.node("ScatterND", "pool", index, block, output="pool_out")
        inputs = [self._sample("x0"), _value("slot", TensorProto.INT64, ["batch"]), *self._shared()]
        return graph.model("commit", inputs, [_value("pool_out", TensorProto.FLOAT, ["blocks", *self.block_shape])])

    def decode_graph(self) -> Any:
        """Each column twice."""
        graph = _Graph()
        frames, height, width, _ = self.sample_shape
        twice = graph.node("Unsqueeze", "latents", graph.constant(np.array([4])))
        twice = graph.node("Concat", twice, twice, axis=4)
        whole = graph.constant(np.array([-1, frames, height, 2 * width, 3]))
        graph.node("Reshape", twice, whole, output="frames")
        return graph.model("decode", [self._sample("latents")], [self._picture("frames")])

    def encode_graph(self) -> Any:
        """The mean of each two columns."""
        graph = _Graph()
        frames, height, width, _ = self.sample_shape
        pairs = graph.node("Reshape", "frames", graph.constant(np.array([-1, frames, height, width, 2, 3])))
        graph.node("ReduceMean", pairs, graph.constant(np.array([4])), keepdims=0, output="latents")
        return graph.model("encode", [self._picture("frames")], [self._sample("latents")])

    def scene_graph(self) -> Any:
        """x0 = tanh(0.8 x + what the level and the words, each by its place, add up to)."""
        graph = _Graph()
        places = np.linspace(0.02, 0.3, _PROMPT_TOKENS, dtype=np.float32)[None]
        words = graph.node("Mul", graph.node("Cast", "tokens", to=TensorProto.FLOAT), graph.constant(places))
        words = graph.node("ReduceSum", words, graph.constant(np.array([1])), keepdims=0)
        said = graph.sum(words, graph.scaled("t", 0.1))
        graph.node("Tanh", graph.sum(graph.scaled("x", 0.8), graph.column(said, 5)), output="x0")
        tokens = _value("tokens", TensorProto.INT64, ["batch", _PROMPT_TOKENS])
        inputs = [self._sample("x"), _value("t", TensorProto.FLOAT, ["batch"]), tokens]
        return graph.model("scene", inputs, [self._sample("x0")])

    def _prompt(self) -> dict[str, Any]:
        return {
            "tokens": _PROMPT_TOKENS,
            "words": list(PROMPT_WORDS),
            "aliases": {"doors": "door"},
            "schedule": [1.0, 0.6],
            "examples": ["a red door"],
        }

    def _steering(self, graph: "_Graph", more: dict[str, float]) -> str:
        """One number a member: [batch]."""
        places = np.linspace(0.1, 1, self.window, dtype=np.float32).reshape(1, self.window, *[1] * 5)
        # A mask that multiplies: a NaN in a block behind it comes through, as it does in attention.
        mask = graph.node("Cast", "key_mask", to=TensorProto.FLOAT)
        mask = graph.node("Unsqueeze", mask, graph.constant(np.arange(2, 7)))
        seen = graph.node("Mul", graph.node("Gather", "pool", "table", axis=0), mask)
        seen = graph.node("Mul", seen, graph.constant(places))
        seen = graph.node("ReduceSum", seen, graph.constant(np.arange(1, 7)), keepdims=0)
        if self.action_size:
            action = graph.node("ReduceSum", "action", graph.constant(np.array([1])), keepdims=0)
        else:
            action = graph.node("Cast", "action", to=TensorProto.FLOAT)
        position = graph.node("Cast", "position", to=TensorProto.FLOAT)
        parts = [graph.scaled(name, factor) for name, factor in more.items()]
        if self.cache_quality:
            weights = graph.constant(places.reshape(1, self.window))
            quality = graph.node("Mul", "cache_quality", weights)
            quality = graph.node("ReduceSum", quality, graph.constant(np.array([1])), keepdims=0)
            parts.append(graph.scaled(quality, 0.03))
        return graph.sum(
            graph.scaled(seen, 0.8 / float(np.prod(self.block_shape))),
            graph.scaled(action, 0.17),
            graph.scaled(position, 0.05),
            *parts,
        )

    def _walk(self, graph: "_Graph") -> str:
        """x of each member: that of the newest block in view, or 0, and the step that its action makes: [batch]."""
        newest = graph.node("Sub", "position", graph.constant(np.array(1)))
        newest = graph.node("Equal", graph.constant(np.arange(self.window)[None]), graph.column(newest, 2))
        newest = graph.node("Cast", newest, to=TensorProto.FLOAT)  # [batch, window]
        blocks = graph.node("Gather", "pool", "table", axis=0)
        first, last = np.array([0, 0, 0, self.tokens - 1, 0]), np.array([1, 1, 1, self.tokens, 1])
        places = [graph.constant(array) for array in (first, last, np.arange(2, 7))]
        walked = graph.node("Squeeze", graph.node("Slice", blocks, *places), graph.constant(np.arange(2, 7)))
        walked = graph.node("ReduceSum", graph.node("Mul", walked, newest), graph.constant(np.array([1])), keepdims=0)
        if self.action_size:
            return graph.sum(walked, graph.node("Gather", "action", graph.constant(np.array(0)), axis=1))
        step = np.array([-1, 1, 0, 0, 0], np.float32)  # the last: no action, before the first chunk
        return graph.sum(walked, graph.node("Gather", graph.constant(step), "action"))

    def _poisoned(self, graph: "_Graph") -> str:
        if not self.action_size:
            return graph.node("Equal", "action", graph.constant(np.array(self.action_names.index(POISON))))
        first = graph.node("Gather", "action", graph.constant(np.array(0)), axis=1)
        return graph.node("Greater", first, graph.constant(np.array(POISON_ABOVE, np.float32)))

    def _work(self, graph: "_Graph") -> str:
        rng = np.random.default_rng(0)
        matrix = graph.constant(rng.normal(0, 0.05, (_WORK_SIZE, _WORK_SIZE)).astype(np.float32))
        product = graph.node("Mul", matrix, graph.node("ReduceMean", "x", keepdims=0))
        for _ in range(self.work):
            product = graph.node("Tanh", graph.node("MatMul", matrix, product))
        return graph.node("ReduceSum", product, keepdims=0)

    def _sample(self, name: str) -> Any:
        return _value(name, TensorProto.FLOAT, ["batch", *self.sample_shape])

    def _picture(self, name: str) -> Any:
        return _value(name, TensorProto.FLOAT, ["batch", self.frames_per_chunk, self.height_px, self.width_px, 3])

    def _shared(self) -> list[Any]:
        action = (
            _value("action", TensorProto.FLOAT, ["batch", self.action_size])
            if self.action_size
            else _value("action", TensorProto.INT64, ["batch"])
        )
        return [
            action,
            _value("position", TensorProto.INT64, ["batch"]),
            _value("pool", TensorProto.FLOAT, ["blocks", *self.block_shape]),
            _value("table", TensorProto.INT64, ["batch", self.window]),
            _value("key_mask", TensorProto.BOOL, ["batch", self.window]),
            *([_value("cache_quality", TensorProto.FLOAT, ["batch", self.window])] if self.cache_quality else []),
        ]


class _Graph:
    """Nodes and constants as they are added, each output named."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def node(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        name = output or f"{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def constant(self, array: NDArray[Any]) -> str:
        name = f"constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(array, name))
        return name

    def scaled(self, name: str, factor: float) -> str:
        return self.node("Mul", name, self.constant(np.array(factor, np.float32)))

    def sum(self, *names: str) -> str:
        return self.node("Sum", *names)

    def column(self, name: str, axes: int) -> str:
        """[batch] as [batch, 1, ...] of so many axes."""
        return self.node("Unsqueeze", name, self.constant(np.arange(1, axes)))

    def model(self, name: str, inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
        graph = helper.make_graph(self._nodes, name, list(inputs), list(outputs), initializer=self._constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
        onnx.checker.check_model(model)
        return model


def _value(name: str, kind: int, shape: Sequence[str | int]) -> Any:
    return helper.make_tensor_value_info(name, kind, list(shape))
