"""predict.onnx: the backbone's parameters are inputs, the heads constants."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional

from training.minigrid import tiles
from training.perception.model import Backbone

OPSET = 18
IMAGES = "images"


class Predictor(nn.Module):
    """Images to the logits of every task."""

    def __init__(self, backbone: Backbone, heads: dict[str, nn.Linear]) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleDict(heads)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        # A row more than there are images: a product with one row is rounded otherwise than one with more, and an image
        # alone must be answered as in a batch.
        known = self.backbone.summary(functional.pad(self.backbone.tiles(images), (0, 0, 0, 0, 0, 1)))
        return tuple(head(known)[:-1] for head in self.heads.values())


def export_graph(backbone: Backbone, heads: dict[str, nn.Linear], path: Path) -> None:
    """Writes the graph; inputs of the backbone are named as `Backbone.layers` names its parameters."""
    buffer = io.BytesIO()
    example = torch.zeros(2, tiles.FRAME_PX, tiles.FRAME_PX, 3, dtype=torch.uint8)
    with warnings.catch_warnings():
        # The older exporter keeps parameters' names, which is what makes them inputs below.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Predictor(backbone, heads).eval(),
            (example,),
            buffer,
            dynamo=False,
            do_constant_folding=False,
            input_names=[IMAGES],
            output_names=list(heads),
            dynamic_axes={IMAGES: {0: "batch"}, **{task: {0: "batch"} for task in heads}},
            opset_version=OPSET,
        )
    model = onnx.load_from_string(buffer.getvalue())
    _without_aliases(model)
    parameters = [f"backbone.{name}" for names in backbone.layers().values() for name in names]
    weights_to_inputs(model, parameters)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())


def weights_to_inputs(model: onnx.ModelProto, parameters: list[str]) -> None:
    """Turns initializers into inputs, in this order, named without the module's prefix.

    Raises KeyError for a parameter that the exporter renamed or folded.
    """
    graph = model.graph
    known = {initializer.name: initializer for initializer in graph.initializer}
    for parameter in parameters:
        initializer = known[parameter]
        name = parameter.removeprefix("backbone.")
        graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, list(initializer.dims)))
        graph.initializer.remove(initializer)
        for node in graph.node:
            for index, given in enumerate(node.input):
                if given == parameter:
                    node.input[index] = name


def _without_aliases(model: onnx.ModelProto) -> None:
    """Equal initializers, as of norms before training, are shared by the exporter: here each use names its source."""
    graph = model.graph
    aliases = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "Identity" and any(node.input[0] == each.name for each in graph.initializer)
    }
    kept = [node for node in graph.node if node.output[0] not in aliases]
    for node in kept:
        for index, given in enumerate(node.input):
            node.input[index] = aliases.get(given, given)
    del graph.node[:]
    graph.node.extend(kept)
