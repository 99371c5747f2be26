"""A tiny hand-made maze model for tests: whatever the map, every cell's path leaves it by the same side."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from onnx import TensorProto, helper, numpy_helper

_IR_VERSION = 10
_OPSET = 18


@dataclass(frozen=True)
class TinyMaze:
    """`label`: 0 nowhere, 1 up, 2 right, 3 down, 4 left. `poisoned`: it answers NaN. What follows makes graphs that are
    none: `inputs`, `dtype` of the inputs, `labels` that it tells apart, `columns` where it takes no others.
    """

    name: str = "tiny-maze"
    version: str = "1"
    label: int = 2
    max_rows: int = 8
    max_columns: int = 8
    poisoned: bool = False
    inputs: tuple[str, ...] = ("open_sides", "marks", "labels")
    dtype: int = TensorProto.INT64
    labels: int = 5
    columns: int | None = None

    def write(self, repository: Path) -> Path:
        """Writes `name/version/` into a repository; the package's folder."""
        folder = repository / self.name / self.version
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.yaml").write_text(yaml.safe_dump(self.manifest(), sort_keys=False))
        onnx.save(self.graph(), str(folder / "path.onnx"))
        return folder

    def manifest(self) -> dict[str, Any]:
        return {
            "format": 1,
            "kind": "maze",
            "name": self.name,
            "version": self.version,
            "description": "Goes one way.",
            "license": "Apache-2.0",
            "files": {"path": "path.onnx"},
            "max_rows": self.max_rows,
            "max_columns": self.max_columns,
            "fill": {"rounds": 4, "sure": 0.9},
        }

    def graph(self) -> onnx.ModelProto:
        shape = ["batch", "rows", self.columns or "columns"]
        chances = np.eye(self.labels, dtype=np.float32)[self.label] * (np.nan if self.poisoned else 1.0)
        nodes = [
            helper.make_node("Cast", [self.inputs[0]], ["cells"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["cells", "last"], ["column"]),
            helper.make_node("Mul", ["column", "zero"], ["nothing"]),
            helper.make_node("Add", ["nothing", "each"], ["chances"]),
        ]
        constants = {
            "last": np.array([-1], np.int64),
            "zero": np.zeros(1, np.float32),
            "each": chances.astype(np.float32),
        }
        graph = helper.make_graph(
            nodes,
            "path",
            [helper.make_tensor_value_info(name, self.dtype, shape) for name in self.inputs],
            [helper.make_tensor_value_info("chances", TensorProto.FLOAT, [*shape, self.labels])],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        )
        return helper.make_model(graph, ir_version=_IR_VERSION, opset_imports=[helper.make_opsetid("", _OPSET)])
