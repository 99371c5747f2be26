"""Worlds of the video service as models: actions in, frames out.

| input | | |
| --- | --- | --- |
| `actions` | INT64 [n], or BYTES [n]: names; FP32 [n, size] where actions are vectors | what steers each chunk |
| `start` | BYTES [1] | a start of the package; the first one where nothing says how the world begins |
| `start_frames` | UINT8 [t, height, width, 3] | frames to begin with; `start_actions`: those between their chunks |
| `prompt` | BYTES [1] | the scene in words, where the model takes one |
| `seed`, `nfe` | INT64 [1], INT32 [1] | of the noise; function evaluations a chunk, 0: the default |

| output | | |
| --- | --- | --- |
| `frames` | UINT8 [n x frames_per_chunk, height, width, 3] | what was generated |
| `start_frames` | UINT8 [t, height, width, 3] | what the world begins with, in the answer that begins it; else t is 0 |
| `chunk_index` | INT64 [n] | of each chunk in its world, from 0 |
| `state_hash` | BYTES [n] | of the world after each chunk, 64 hex digits |
"""

from collections.abc import Mapping, Sequence

import numpy as np
from worldtree.common.v1 import common_pb2 as common
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree_runtime.errors import InvalidRequest

from worldtree_gateway.oip_models import ANY_SIZE, Model, Spec
from worldtree_gateway.oip_tensors import BYTES, Tensor, from_array, from_texts
from worldtree_gateway.oip_values import check_count, images, integer, integers_or_texts, text

SECTION = "video"
MAX_ACTIONS = 65_536
_BEGINNING = ("start", "start_frames", "start_actions", "prompt", "seed", "nfe")
# In what the service says, its fields are the inputs that the client knows.
WORDS = {
    "origin.frames.tensor": "start_frames",
    "origin.frames": "start_frames",
    "origin.actions": "start_actions",
    "origin.prompt": "prompt",
    "origin.start": "start",
    "begin.actions": "actions",
}


def describe(model: pb.Model) -> Model:
    """A world as the protocol tells of it."""
    frames = (ANY_SIZE, model.height_px, model.width_px, 3)
    continuous = model.action_space.HasField("continuous")

    def actions(name: str, *, optional: bool) -> Spec:
        if continuous:
            shape = (ANY_SIZE, model.action_space.continuous.size)
            return Spec(name, "FP32", shape, optional, also=("FP16", "FP64"))
        return Spec(name, "INT64", (ANY_SIZE,), optional, also=("INT32", "UINT8", BYTES))

    inputs = [
        actions("actions", optional=False),
        Spec("start", BYTES, (1,), True, bare=True),
        Spec("start_frames", "UINT8", frames, True),
        actions("start_actions", optional=True),
        Spec("seed", "INT64", (1,), True, also=("INT32", "UINT32", "UINT64"), bare=True),
        Spec("nfe", "INT32", (1,), True, also=("INT64",), bare=True),
    ]
    if model.prompt_supported:
        inputs.append(Spec("prompt", BYTES, (1,), True, bare=True))
    return Model(
        name=model.ref.name,
        version=model.ref.version,
        digest=model.ref.digest,
        section=SECTION,
        description=model.description,
        inputs=tuple(inputs),
        outputs=(
            Spec("frames", "UINT8", frames),
            Spec("start_frames", "UINT8", frames),
            Spec("chunk_index", "INT64", (ANY_SIZE,)),
            Spec("state_hash", BYTES, (ANY_SIZE,)),
        ),
        about=model,
        stateful=True,
        decoupled=True,
    )


def actions(inputs: Mapping[str, Tensor], name: str = "actions") -> list[pb.Action]:
    """None where the input is not there."""
    tensor = inputs.get(name)
    if tensor is None:
        return []
    check_count(tensor, name, MAX_ACTIONS)
    if tensor.datatype.startswith("FP"):
        return [pb.Action(vector=pb.Action.Vector(values=row)) for row in tensor.array.tolist()]
    return [
        pb.Action(name=each) if isinstance(each, str) else pb.Action(id=each)
        for each in integers_or_texts(tensor, name)
    ]


def check_goes_on(inputs: Mapping[str, Tensor]) -> None:
    """Raises InvalidRequest for what only the first request of a sequence may say."""
    for name in _BEGINNING:
        if name in inputs:
            raise InvalidRequest(
                f"inputs[{name}]",
                f"input {name} says how a world begins: it goes with the first request of a sequence "
                "(parameter sequence_start)",
                reason="SEQUENCE_BEGUN",
            )


def generate_request(model: Model, inputs: Mapping[str, Tensor], *, version: str) -> pb.GenerateRequest:
    """A clip: the same request, the same frames. `version`: the one asked for; empty: the gateway's choice."""
    request = pb.GenerateRequest(
        model=_ref(model, version), origin=_origin(model, inputs), actions=actions(inputs), seed=integer(inputs, "seed")
    )
    request.nfe = integer(inputs, "nfe", bits=31)
    return request


def create_request(
    model: Model, inputs: Mapping[str, Tensor], *, version: str, ttl_s: float, request_id: str
) -> pb.CreateSessionRequest:
    """The session of a sequence. `ttl_s`: its lease, which each request renews."""
    request = pb.CreateSessionRequest(
        model=_ref(model, version), origin=_origin(model, inputs), seed=integer(inputs, "seed"), request_id=request_id
    )
    request.nfe = integer(inputs, "nfe", bits=31)
    request.ttl.FromMilliseconds(round(ttl_s * 1000))
    return request


def outputs(model: Model, chunks: Sequence[pb.Chunk], start: common.Frames | None = None) -> dict[str, Tensor]:
    """`start`: what the world begins with, where it does."""
    return {
        "frames": _frames(model, [each.frames for each in chunks]),
        "start_frames": _frames(model, [] if start is None else [start]),
        "chunk_index": from_array(np.array([each.index for each in chunks], np.int64), "INT64"),
        "state_hash": from_texts([each.state_hash for each in chunks]),
    }


def chunk_bytes(model: Model) -> int:
    """Bytes of the frames of one chunk."""
    about: pb.Model = model.about
    return about.frames_per_chunk * about.height_px * about.width_px * 3


def _ref(model: Model, version: str) -> common.ModelRef:
    # without the digest: a package that is written anew under its version would be refused until we have heard of it
    return common.ModelRef(name=model.name, version=version)


def _origin(model: Model, inputs: Mapping[str, Tensor]) -> pb.Origin:
    given = [name for name in ("start", "start_frames", "prompt") if name in inputs]
    if len(given) > 1:
        raise InvalidRequest(
            f"inputs[{given[1]}]",
            f"inputs must say how a world begins by one of start, start_frames and prompt, got {' and '.join(given)}",
        )
    origin = pb.Origin(start=text(inputs, "start"), prompt=text(inputs, "prompt"))
    if "start_frames" in inputs:
        origin.frames.CopyFrom(images(inputs["start_frames"]))
    origin.actions.extend(actions(inputs, "start_actions"))
    about: pb.Model = model.about
    if not given and about.starts:
        origin.start = about.starts[0].name
    return origin


def _frames(model: Model, parts: Sequence[common.Frames]) -> Tensor:
    about: pb.Model = model.about
    shape = (sum(each.tensor.shape[0] for each in parts), about.height_px, about.width_px, 3)
    return Tensor("UINT8", shape, b"".join(each.tensor.data for each in parts))
