"""A tiny hand-made multi-task package for tests: three experts that truly answer their task better than the base.

The network is `relu(pixels @ embed) @ read`, then a fixed head a task. The base's `embed` is zero, so it answers every
image alike; each expert fills in the columns that its task reads.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

_IR_VERSION = 10
_OPSET = 18
_FEATURES = 6
_CLASSES = {"hue": ("red", "green", "blue"), "bright": ("dark", "bright"), "side": ("left", "right")}
_COLUMNS = {"hue": (0, 1, 2), "bright": (3,), "side": (4, 5)}


@dataclass(frozen=True)
class TinyExperts:
    """`size_px`: of the square images. `seed`: of the images in its sets. `gain`: of the expert `bright`'s vector: what
    a test changes to have another digest.
    """

    name: str = "tiny-experts"
    version: str = "1"
    size_px: int = 8
    images_per_task: int = 24
    seed: int = 0
    gain: float = 1.0

    def write(self, repository: Path) -> Path:
        """Writes `name/version/` into a repository; the package's folder."""
        folder = repository / self.name / self.version
        for part in ("experts", "sets"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / "model.yaml").write_text(yaml.safe_dump(self.manifest(), sort_keys=False))
        onnx.save(self.graph(), str(folder / "predict.onnx"))
        save_file(self.base(), folder / "base.safetensors")
        for task in _CLASSES:
            save_file(self.task_vector(task), folder / f"experts/{task}.safetensors")
        for name, labelled in (("calibration", False), ("scoring", True)):
            arrays: dict[str, Any] = {}
            for task in _CLASSES:
                images, labels = self.images(task, seed=self.seed + labelled)
                arrays |= {task: images, f"{task}.labels": labels} if labelled else {task: images}
            np.savez_compressed(folder / f"sets/{name}.npz", **arrays)
        return folder

    def manifest(self) -> dict[str, Any]:
        return {
            "format": 1,
            "kind": "multitask",
            "name": self.name,
            "version": self.version,
            "description": "Three questions about coloured squares.",
            "license": "Apache-2.0",
            "image": {"height_px": self.size_px, "width_px": self.size_px, "channels": 3},
            "files": {"predict": "predict.onnx", "base": "base.safetensors"},
            "layers": [
                {"name": "embed", "tensors": ["embed.weight", "embed.bias"]},
                {"name": "read", "tensors": ["read.weight", "read.bias"]},
            ],
            "tasks": [
                {"name": task, "classes": list(classes), "expert": f"experts/{task}.safetensors"}
                for task, classes in _CLASSES.items()
            ],
            "image_sets": [{"name": name, "file": f"sets/{name}.npz"} for name in ("calibration", "scoring")],
        }

    def base(self) -> dict[str, NDArray[np.float32]]:
        pixels = 3 * self.size_px**2
        return {
            "embed.weight": np.zeros((pixels, _FEATURES), np.float32),
            "embed.bias": np.zeros(_FEATURES, np.float32),
            "read.weight": np.eye(_FEATURES, dtype=np.float32),
            "read.bias": np.zeros(_FEATURES, np.float32),
        }

    def task_vector(self, task: str) -> dict[str, NDArray[np.float16]]:
        """Means over channels (hue), over all pixels (bright), over halves (side)."""
        size = self.size_px
        weights = np.zeros((size, size, 3, _FEATURES), np.float32)
        if task == "hue":
            for channel in range(3):
                weights[:, :, channel, channel] = 1 / size**2
        elif task == "bright":
            weights[:, :, :, 3] = self.gain / (3 * size**2)
        else:
            weights[:, : size // 2, :, 4] = weights[:, size // 2 :, :, 5] = 2 / (3 * size**2)
        return {"embed.weight": weights.reshape(-1, _FEATURES).astype(np.float16)}

    def images(self, task: str, *, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Images uint8 [n, size, size, 3] and their classes [n], each class equally often."""
        rng = np.random.default_rng([seed, *task.encode()])
        labels = np.arange(self.images_per_task) % len(_CLASSES[task])
        images = rng.uniform(0.3, 0.7, (self.images_per_task, self.size_px, self.size_px, 3))
        for image, label in zip(images, labels, strict=True):
            if task == "hue":
                image[..., label] += 0.2
            elif task == "bright":
                image += 0.2 if label else -0.2
            else:
                half = self.size_px // 2
                image[:, :half] += -0.15 if label else 0.15
                image[:, half:] += 0.15 if label else -0.15
        return (images.clip(0, 1) * 255).astype(np.uint8), labels.astype(np.int64)

    def graph(self) -> Any:
        """images and the four weights in, a task's logits out. `bright` compares its feature with a half."""
        pixels = 3 * self.size_px**2
        size: list[str | int] = ["batch", self.size_px, self.size_px, 3]
        weights = {name: list(array.shape) for name, array in self.base().items()}
        constants = {"shape": np.array([-1, pixels], np.int64), "white": np.float32(255)}
        nodes = [
            helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["floats", "white"], ["scaled"]),
            helper.make_node("Reshape", ["scaled", "shape"], ["flat"]),
            helper.make_node("MatMul", ["flat", "embed.weight"], ["embedded"]),
            helper.make_node("Add", ["embedded", "embed.bias"], ["shifted"]),
            helper.make_node("Relu", ["shifted"], ["hidden"]),
            helper.make_node("MatMul", ["hidden", "read.weight"], ["mixed"]),
            helper.make_node("Add", ["mixed", "read.bias"], ["features"]),
        ]
        for task, classes in _CLASSES.items():
            head = np.zeros((_FEATURES, len(classes)), np.float32)
            bias = np.zeros(len(classes), np.float32)
            if task == "bright":
                head[3, 1], bias[0] = 20, 10
            else:
                for label, column in enumerate(_COLUMNS[task]):
                    head[column, label] = 20
            constants |= {f"head.{task}": head, f"bias.{task}": bias}
            nodes.append(helper.make_node("Gemm", ["features", f"head.{task}", f"bias.{task}"], [task]))
        inputs = [helper.make_tensor_value_info("images", TensorProto.UINT8, size)]
        inputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in weights.items()]
        outputs = [
            helper.make_tensor_value_info(task, TensorProto.FLOAT, ["batch", len(classes)])
            for task, classes in _CLASSES.items()
        ]
        initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
        graph = helper.make_graph(nodes, "predict", inputs, outputs, initializers)
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION, producer_name="worldtree"
        )
