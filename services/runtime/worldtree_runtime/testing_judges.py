"""A tiny hand-made judge for tests: how bright clips are, how much they move, and which actions they are told to have.

Each expert reads the mean over frames of one feature; the joint takes the dimension of the category's name. A goal is
of a category when it says its word.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from onnx import TensorProto, helper, numpy_helper

_IR_VERSION = 10
_OPSET = 18
_FEATURES = ("brightness", "motion", "diligence")  # of a frame, of it and the one before, of the action between them
_CATEGORIES = {"brightness": "bright", "motion": "moving"}
_WORDS = (*_CATEGORIES.values(), "a", "clip")
_MAX_WORDS = 4
_FLOAT, _INT, _BYTE = TensorProto.FLOAT, TensorProto.INT64, TensorProto.UINT8


@dataclass(frozen=True)
class TinyJudge:
    """`size_px`: of the square frames. `poisoned`: the dimension whose expert answers NaN for white frames."""

    name: str = "tiny-judge"
    version: str = "1"
    size_px: int = 8
    actions: tuple[str, ...] = ("stay", "go", "jump")
    poisoned: str | None = None

    def write(self, repository: Path) -> Path:
        """Writes `name/version/` into a repository; the package's folder."""
        folder = repository / self.name / self.version
        (folder / "experts").mkdir(parents=True, exist_ok=True)
        (folder / "model.yaml").write_text(yaml.safe_dump(self.manifest(), sort_keys=False))
        for name, graph in (("trunk", self.trunk()), ("router", self.router()), ("joint", self.joint())):
            onnx.save(graph, str(folder / f"{name}.onnx"))
        for name in _CATEGORIES:
            self.write_expert(folder, name)
        return folder

    def write_expert(self, folder: Path, name: str) -> Path:
        """One dimension's file; `diligence` is one that no category counts."""
        graph = self.expert(name)
        card = {
            "description": f"mean {name}",
            "unit": 0.25,
            "knots": [[0.0, 0.0], [40.0 if name == "diligence" else 10.0, 1.0]],
            "pairwise_accuracy": 0.9,
        }
        helper.set_model_props(graph, {"worldtree": json.dumps(card)})
        path = folder / "experts" / f"{name}.onnx"
        onnx.save(graph, str(path))
        return path

    def manifest(self) -> dict[str, Any]:
        return {
            "format": 1,
            "kind": "reward",
            "name": self.name,
            "version": self.version,
            "description": "Looks at the brightness and the motion of squares.",
            "license": "Apache-2.0",
            "image": {"height_px": self.size_px, "width_px": self.size_px, "channels": 3},
            "actions": list(self.actions),
            "goal": {"words": list(_WORDS), "max_words": _MAX_WORDS},
            "trunk": {"tiles": [1, 1], "memory": 1, **dict.fromkeys(("features", "dense", "pooled"), len(_FEATURES))},
            "files": {"trunk": "trunk.onnx", "router": "router.onnx", "joint": "joint.onnx"},
            "dimensions": list(_CATEGORIES),
            "categories": [
                {
                    "name": name,
                    "description": f"how {word} a clip is",
                    "weights": {name: 1.0},
                    "example": f"a {word} clip",
                }
                for name, word in _CATEGORIES.items()
            ],
            "trained_steps": 4,
        }

    def trunk(self) -> Any:
        size = self.size_px
        constants = {
            "white": np.float32(255),
            "pixels": np.array([1, 2, 3], np.int64),
            "place": np.array([-1, 1, 1], np.int64),
            "column": np.array([-1, 1], np.int64),
        }
        nodes = [
            helper.make_node("Cast", ["frames"], ["floats"], to=_FLOAT),
            helper.make_node("Div", ["floats", "white"], ["scaled"]),
            helper.make_node("ReduceMean", ["scaled", "pixels"], ["brightness"], keepdims=0),
            helper.make_node("Reshape", ["brightness", "place"], ["here"]),
            helper.make_node("Sub", ["here", "before"], ["moved"]),
            helper.make_node("Abs", ["moved"], ["motion"]),
            helper.make_node("Cast", ["actions"], ["diligence"], to=_FLOAT),
            *(
                helper.make_node("Reshape", [name, "column"], [f"{name}.column"])
                for name in ("brightness", "motion", "diligence")
            ),
            helper.make_node("Concat", [f"{name}.column" for name in _FEATURES], ["features"], axis=1),
            helper.make_node("Relu", ["features"], ["dense"]),
            helper.make_node("Add", ["memory", "brightness.column"], ["memory_after"]),
        ]
        inputs: list[tuple[str, int, list[Any]]] = [
            ("frames", _BYTE, ["n", size, size, 3]),
            ("before", _FLOAT, ["n", 1, 1]),
            ("actions", _INT, ["n"]),
            ("words", _INT, ["n", _MAX_WORDS]),
            ("memory", _FLOAT, ["n", 1]),
        ]
        width = len(_FEATURES)
        outputs = [
            ("here", _FLOAT, ["n", 1, 1]),
            ("memory_after", _FLOAT, ["n", 1]),
            ("features", _FLOAT, ["n", width]),
            ("dense", _FLOAT, ["n", width]),
        ]
        return _model("trunk", nodes, inputs, outputs, constants)

    def expert(self, name: str) -> Any:
        width = len(_FEATURES)
        constants = {
            "index": np.int64(_FEATURES.index(name)),
            "gain": np.float32(10),
            "zero": np.float32(0),
            "half": np.float32(0.5),
            "white": np.float32(0.999 if name == self.poisoned else np.inf),
            "nan": np.float32(np.nan),
        }
        nodes = [
            helper.make_node("Add", ["total", "dense"], ["total_after"]),
            helper.make_node("Max", ["most", "dense"], ["most_after"]),
            helper.make_node("Div", ["total_after", "count"], ["means"]),
            helper.make_node("Gather", ["means", "index"], ["own"], axis=1),
            helper.make_node("Mul", ["own", "gain"], ["scaled"]),
            helper.make_node("Greater", ["own", "white"], ["broken"]),
            helper.make_node("Where", ["broken", "nan", "scaled"], ["mean"]),
            helper.make_node("Mul", ["own", "zero"], ["nothing"]),
            helper.make_node("Add", ["nothing", "half"], ["deviation"]),
        ]
        inputs = [(each, _FLOAT, ["n", width]) for each in ("features", "dense", "total", "most")]
        outputs = [(each, _FLOAT, ["n", width]) for each in ("total_after", "most_after")]
        outputs += [(each, _FLOAT, ["n"]) for each in ("mean", "deviation")]
        return _model(f"expert {name}", nodes, [*inputs, ("count", _FLOAT, ["n", 1])], outputs, constants)

    def router(self) -> Any:
        """A category for each time its word is said; no category for half a time, whatever is said."""
        count = len(_CATEGORIES)
        constants: dict[str, Any] = {
            "gain": np.float32(8),
            "words.axis": np.array([1], np.int64),
            "none": np.array([0.0] * count + [4.0], np.float32),
        }
        nodes = []
        for place in range(count):
            constants[f"id.{place}"] = np.int64(place + 2)
            nodes += [
                helper.make_node("Equal", ["words", f"id.{place}"], [f"is.{place}"]),
                helper.make_node("Cast", [f"is.{place}"], [f"said.{place}"], to=_FLOAT),
                helper.make_node("ReduceSum", [f"said.{place}", "words.axis"], [f"times.{place}"], keepdims=1),
            ]
        constants["never"] = np.float32(0)
        nodes += [
            helper.make_node("Mul", ["times.0", "never"], ["no.times"]),
            helper.make_node("Concat", [*(f"times.{place}" for place in range(count)), "no.times"], ["times"], axis=1),
            helper.make_node("Mul", ["times", "gain"], ["loud"]),
            helper.make_node("Add", ["loud", "none"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ]
        inputs = [("words", _INT, ["n", _MAX_WORDS])]
        return _model("router", nodes, inputs, [("probabilities", _FLOAT, ["n", count + 1])], constants)

    def joint(self) -> Any:
        count = len(_CATEGORIES)
        nodes = [
            helper.make_node("Identity", ["mean"], ["whole_mean"]),
            helper.make_node("Identity", ["deviation"], ["whole_deviation"]),
        ]
        inputs = [(each, _FLOAT, ["n", count]) for each in ("mean", "deviation")]
        outputs = [(f"whole_{each}", _FLOAT, ["n", count]) for each in ("mean", "deviation")]
        return _model("joint", nodes, inputs, outputs, {})


def _model(
    name: str,
    nodes: list[Any],
    inputs: Sequence[tuple[str, int, Sequence[Any]]],
    outputs: Sequence[tuple[str, int, Sequence[Any]]],
    constants: dict[str, Any],
) -> Any:
    given, made = ([helper.make_tensor_value_info(*each) for each in part] for part in (inputs, outputs))
    initializers = [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()]
    graph = helper.make_graph(nodes, name, given, made, initializers)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION, producer_name="worldtree"
    )
