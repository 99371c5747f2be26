"""Networks of the multi-task service as models: images in, an answer to each task out.

| input | | |
| --- | --- | --- |
| `image` | UINT8 [n, height, width, 3], or one without its n | what is asked about |
| `preference` | FP32 [tasks] | how much each task matters, in the order of the outputs |
| `merge` | BYTES [1] | a merge that CreateMerge made, by its name |

An output for each task, by its name: FP32 [n, classes], the probability of each class.
"""

from collections.abc import Mapping, Sequence

from worldtree.common.v1 import common_pb2 as common
from worldtree.multitask.v1 import multi_task_pb2 as pb
from worldtree_runtime.errors import InvalidRequest

from worldtree_gateway.oip_models import ANY_SIZE, Model, Spec
from worldtree_gateway.oip_tensors import BYTES, Tensor
from worldtree_gateway.oip_values import images, text

SECTION = "multitask"
WORDS = {"images.tensor": "image", "images": "image", "preference.weights": "preference"}


def describe(listed: pb.ListTasksResponse) -> Model:
    """A network as the protocol tells of it."""
    return Model(
        name=listed.model.name,
        version=listed.model.version,
        digest=listed.model.digest,
        section=SECTION,
        description=listed.description,
        inputs=(
            Spec("image", "UINT8", (ANY_SIZE, listed.height_px, listed.width_px, 3), bare=True),
            Spec("preference", "FP32", (len(listed.tasks),), True, also=("FP16", "FP64")),
            Spec("merge", BYTES, (1,), True, bare=True),
        ),
        outputs=tuple(Spec(task.name, "FP32", (ANY_SIZE, len(task.classes))) for task in listed.tasks),
        about=listed,
        labels={task.name: tuple(task.classes) for task in listed.tasks},
    )


def predict_request(
    model: Model, inputs: Mapping[str, Tensor], tasks: Sequence[str], *, version: str
) -> pb.PredictRequest:
    """`tasks`: those that are to be answered. `version`: the one asked for; empty: the gateway's choice."""
    request = pb.PredictRequest(
        model=common.ModelRef(name=model.name, version=version), images=images(inputs["image"]), tasks=tasks
    )
    if {"preference", "merge"} <= inputs.keys():
        raise InvalidRequest("inputs[merge]", "inputs merge and preference must not both be there")
    if "preference" in inputs:
        request.preference.weights.extend(inputs["preference"].array.tolist())
    if "merge" in inputs:
        request.name = text(inputs, "merge")
    return request


def outputs(answer: pb.PredictResponse, *, bare: bool) -> dict[str, Tensor]:
    """`bare`: there was one image without its n, so that there is an answer without it."""
    return {
        each.task: Tensor("FP32", tuple(each.probabilities.shape)[1 if bare else 0 :], each.probabilities.data)
        for each in answer.predictions
    }
