"""Planners of the navigator that steer robots as models: what a robot sees in, a chunk of actions out.

| input | | |
| --- | --- | --- |
| `image` | UINT8 [height, width, 3] | what the robot sees |
| `goal` | BYTES [1] | the goal in words; with the first request of a sequence |
| `executed` | INT64 [n], or BYTES [n]: names | since the last request; left out: all of the last chunk |
| `chunk_length`, `seed` | INT32 [1], INT64 [1] | actions of a chunk, and what is drawn with; with the first request |

| output | | |
| --- | --- | --- |
| `actions` | INT64 [n] | what to do, by id; names are in the config's `labels.actions` |
| `confidence` | FP32 [1] | how sure the planner is, 0 to 1 |
| `step` | INT64 [1] | the place of the first action among all of the episode |
| `frames` | UINT8 [n, height, width, 3] | what is expected to be seen after each action |
"""

from collections.abc import Mapping, Sequence

import numpy as np
from worldtree.navigator.v1 import navigator_pb2 as pb
from worldtree_runtime.errors import InvalidRequest

from worldtree_gateway.oip_models import ANY_SIZE, Model, Spec
from worldtree_gateway.oip_tensors import BYTES, Tensor, from_array
from worldtree_gateway.oip_values import check_count, integer, integers_or_texts, text
from worldtree_gateway.openpi_observation import MAX_EXECUTED, Course, Observation

SECTION = "navigator"
IMAGINES = "mpc"  # plans in any world: its images and actions are those of the world
WORDS = {
    "observation.frame.tensor": "image",
    "observation.frame": "image",
    "observation.executed": "executed",
    "start.goal": "goal",
    "start.chunk_length": "chunk_length",
    "start.seed": "seed",
}
_FIRST = ("goal", "chunk_length", "seed")


def describe_all(listed: pb.ListPlannersResponse) -> list[Model]:
    """Those that steer. Planners have no versions."""
    return [_describe(each) for each in listed.planners if each.height_px or each.name == IMAGINES]


def course(model: Model, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> Course:
    """What a sequence, or a request of none, is begun for. `outputs`: those that are wanted."""
    if "goal" not in inputs:
        raise InvalidRequest(
            "inputs[goal]", "input goal must be there, BYTES [1], where navigating begins", reason="MISSING_INPUT"
        )
    return Course(
        prompt=text(inputs, "goal"),
        planner=model.name,
        chunk_length=integer(inputs, "chunk_length", bits=31),
        seed=integer(inputs, "seed"),
        frames="frames" in outputs,
    )


def observation(inputs: Mapping[str, Tensor], course: Course) -> Observation:
    """What is seen now, on the way to what a sequence was begun for."""
    executed = inputs.get("executed")
    if executed is not None:
        check_count(executed, "executed", MAX_EXECUTED)
    return Observation(
        image=inputs["image"].array,
        course=course,
        executed=None if executed is None else tuple(integers_or_texts(executed, "executed")),
        episode="",
        reset=False,
    )


def check_goes_on(inputs: Mapping[str, Tensor]) -> None:
    """Raises InvalidRequest for what only the first request of a sequence may say."""
    for name in _FIRST:
        if name in inputs:
            raise InvalidRequest(
                f"inputs[{name}]",
                f"input {name} goes with the first request of a sequence (parameter sequence_start)",
                reason="SEQUENCE_BEGUN",
            )


def outputs(chunk: pb.ActionChunk) -> dict[str, Tensor]:
    """`frames` only where the chunk brings them."""
    frames = chunk.frames.tensor
    return {
        "actions": from_array(np.array([each.id for each in chunk.actions], np.int64), "INT64"),
        "confidence": from_array(np.array([chunk.confidence], np.float32), "FP32"),
        "step": from_array(np.array([chunk.first_step], np.int64), "INT64"),
        **({"frames": Tensor("UINT8", tuple(frames.shape), frames.data)} if chunk.HasField("frames") else {}),
    }


def _describe(planner: pb.Planner) -> Model:
    image = (planner.height_px or ANY_SIZE, planner.width_px or ANY_SIZE, 3)
    return Model(
        name=planner.name,
        version="",
        digest="",
        section=SECTION,
        description=planner.description,
        inputs=(
            Spec("image", "UINT8", image),
            Spec("goal", BYTES, (1,), True, bare=True),
            Spec("executed", "INT64", (ANY_SIZE,), True, also=("INT32", "UINT8", BYTES)),
            Spec("chunk_length", "INT32", (1,), True, also=("INT64",), bare=True),
            Spec("seed", "INT64", (1,), True, also=("INT32", "UINT32", "UINT64"), bare=True),
        ),
        outputs=(
            Spec("actions", "INT64", (ANY_SIZE,)),
            Spec("confidence", "FP32", (1,)),
            Spec("step", "INT64", (1,)),
            Spec("frames", "UINT8", (ANY_SIZE, *image)),
        ),
        about=planner,
        stateful=True,
        labels={"actions": tuple(planner.actions)} if planner.actions else {},
    )
