"""Judges of the reward service as models: a clip in, its score out.

| input | | |
| --- | --- | --- |
| `frames` | UINT8 [t + 1, height, width, 3] | what happened |
| `actions` | INT64 [t], or BYTES [t]: names | the actions between the frames |
| `goal` | BYTES [1] | what the clip is for, in words; none: how true its pictures are |
| `category` | BYTES [1] | who judges; none: the router's choice |

| output | | |
| --- | --- | --- |
| `reward`, `uncertainty` | FP32 [1] | how good it is, and how sure that is |
| `category`, `category_probability` | BYTES [1], FP32 [1] | who judged |
| `scores`, `score_uncertainties` | FP32 [dimensions] | by dimension, in the order of the config's `labels.scores` |
"""

from collections.abc import Mapping, Sequence

import numpy as np
from worldtree.common.v1 import common_pb2 as common
from worldtree.reward.v1 import reward_scorer_pb2 as pb

from worldtree_gateway.oip_models import ANY_SIZE, Model, Spec
from worldtree_gateway.oip_tensors import BYTES, Tensor, from_array, from_texts
from worldtree_gateway.oip_values import check_count, images, integers, text, texts

SECTION = "reward"
MAX_ACTIONS = 65_536
WORDS = {
    "clip.frames.tensor": "frames",
    "clip.frames": "frames",
    "clip.actions": "actions",
    "clip.action_names": "actions",
    "question.goal": "goal",
    "question.category": "category",
}


def describe(listed: pb.ListRubricsResponse) -> Model:
    """A judge as the protocol tells of it."""
    dimensions = tuple(each.name for each in listed.dimensions)
    return Model(
        name=listed.model.name,
        version=listed.model.version,
        digest=listed.model.digest,
        section=SECTION,
        description=listed.description,
        inputs=(
            Spec("frames", "UINT8", (ANY_SIZE, listed.height_px, listed.width_px, 3)),
            Spec("actions", "INT64", (ANY_SIZE,), also=("INT32", "UINT8", BYTES)),
            Spec("goal", BYTES, (1,), True, bare=True),
            Spec("category", BYTES, (1,), True, bare=True),
        ),
        outputs=(
            Spec("reward", "FP32", (1,)),
            Spec("uncertainty", "FP32", (1,)),
            Spec("category", BYTES, (1,)),
            Spec("category_probability", "FP32", (1,)),
            Spec("scores", "FP32", (len(dimensions),)),
            Spec("score_uncertainties", "FP32", (len(dimensions),)),
        ),
        about=listed,
        labels={"scores": dimensions},
    )


def score_request(model: Model, inputs: Mapping[str, Tensor], *, version: str) -> pb.ScoreRequest:
    """`version`: the one asked for; empty: the gateway's choice."""
    clip = pb.Clip(frames=images(inputs["frames"]))
    given = inputs["actions"]
    check_count(given, "actions", MAX_ACTIONS)
    if given.datatype == BYTES:
        clip.action_names.extend(texts(given, "actions"))
    else:
        clip.actions.extend(integers(given, "actions"))
    return pb.ScoreRequest(
        model=common.ModelRef(name=model.name, version=version),
        question=pb.Question(goal=text(inputs, "goal"), category=text(inputs, "category")),
        clip=clip,
    )


def outputs(answer: pb.ScoreResponse) -> dict[str, Tensor]:
    judgement = answer.judgement
    return {
        "reward": _floats([judgement.reward]),
        "uncertainty": _floats([judgement.uncertainty]),
        "category": from_texts([judgement.category]),
        "category_probability": _floats([judgement.category_probability]),
        "scores": _floats([each.score for each in judgement.dimensions]),
        "score_uncertainties": _floats([each.uncertainty for each in judgement.dimensions]),
    }


def _floats(values: Sequence[float]) -> Tensor:
    return from_array(np.array(values, np.float32), "FP32")
