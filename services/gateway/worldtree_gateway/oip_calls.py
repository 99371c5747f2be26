"""Calls that the inference protocol makes for its callers: through the gateway's own gRPC server, as anyone's are."""

import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from grpc_status import rpc_status
from worldtree.multitask.v1.multi_task_pb2_grpc import MultiTaskStub
from worldtree.navigator.v1.navigator_pb2_grpc import NavigatorStub
from worldtree.reward.v1.reward_scorer_pb2_grpc import RewardScorerStub
from worldtree.video.v1.video_generator_pb2_grpc import VideoGeneratorStub
from worldtree_runtime.errors import DeadlineExceeded, Unavailable, WorldtreeError
from worldtree_runtime.interceptors import REQUEST_ID_KEY
from worldtree_runtime.logs import current_request_id
from worldtree_runtime.status import from_status
from worldtree_runtime.tracing import TRACEPARENT_KEY, trace_metadata

from worldtree_gateway.metadata import Context, Metadata, clean
from worldtree_gateway.relay import receive

_OURS = frozenset({"triton_grpc_error", REQUEST_ID_KEY, TRACEPARENT_KEY})


@dataclass(frozen=True, slots=True)
class Asker:
    """For whom calls are made: what it says of itself, and until when it waits (None: as long as it takes)."""

    metadata: Metadata = ()
    ends_s: float | None = None

    @classmethod
    def of(cls, context: Context) -> "Asker":
        """The caller of an RPC."""
        theirs = tuple(pair for pair in clean(context.invocation_metadata() or ()) if pair[0] not in _OURS)
        theirs = (*theirs, *trace_metadata())
        request_id = current_request_id()
        left_s = context.time_remaining()
        return cls(
            theirs if request_id is None else (*theirs, (REQUEST_ID_KEY, request_id)),
            None if left_s is None else time.monotonic() + left_s,
        )

    def within(self, timeout_s: float) -> "Asker":
        """The same, who waits no longer than that from now."""
        ends_s = time.monotonic() + timeout_s
        return Asker(self.metadata, ends_s if self.ends_s is None else min(ends_s, self.ends_s))

    @property
    def left_s(self) -> float | None:
        """How long it still waits."""
        return None if self.ends_s is None else max(0.0, self.ends_s - time.monotonic())

    @property
    def options(self) -> dict[str, Any]:
        """What a call of a stub is given beside its request."""
        return {"metadata": self.metadata, "timeout": self.left_s}


class Calls:
    """Stubs of the services that stand behind the gateway. `robots`: a channel for what stays open between requests,
    which would else take the places of calls that come and go.
    """

    def __init__(self, channel: grpc.aio.Channel, robots: grpc.aio.Channel) -> None:
        self.video: Any = VideoGeneratorStub(channel)
        self.multitask: Any = MultiTaskStub(channel)
        self.reward: Any = RewardScorerStub(channel)
        self.navigator: Any = NavigatorStub(channel)
        self.robots: Any = NavigatorStub(robots)


async def next_of(call: Any) -> Any:
    """The next message of a stub's stream. None: the call ended OK. Raises AioRpcError."""
    message: Any = await receive(call)
    return message


@asynccontextmanager
async def explained(words: Mapping[str, str]) -> AsyncIterator[None]:
    """What a service refuses, as an error of the family that speaks of inputs. `words`: a service's fields, and the
    inputs that they came of. What is no error of the family stays as it is.
    """
    try:
        yield
    except grpc.aio.AioRpcError as error:
        known = told(error, words)
        if known is None:
            raise
        raise known from error
    except WorldtreeError as error:
        raise _in_words(error, words) from error


def told(error: grpc.aio.AioRpcError, words: Mapping[str, str]) -> WorldtreeError | None:
    """What a service said; None: it was not of the family."""
    status = rpc_status.from_call(error)
    known = _of_the_transport(error) if status is None else from_status(status)
    return None if known is None else _in_words(known, words)


def _in_words(known: WorldtreeError, words: Mapping[str, str]) -> WorldtreeError:
    message, field = known.message, known.field
    for theirs, ours in words.items():  # the longer ones come first
        # what is a word as well is a field only where the message begins, as messages do, with the field
        pattern = re.compile(rf"\b{re.escape(theirs)}\b" if "." in theirs else rf"^{re.escape(theirs)}\b")
        message = pattern.sub(ours, message)
        field = None if field is None else pattern.sub(ours, field)
    return WorldtreeError(
        known.kind,
        known.reason,
        message,
        metadata={**known.metadata, **({} if field is None else {"field": field})},
        field=field,
        resource_type=known.resource_type,
        resource_name=known.resource_name,
        subject=known.subject,
        retry_after_s=known.retry_after_s,
    )


def _of_the_transport(error: grpc.aio.AioRpcError) -> WorldtreeError | None:
    """What the way to our own server made up."""
    match error.code():
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded("DEADLINE_EXCEEDED", "no answer within the time that the request had")
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:
            return Unavailable("DRAINING", "the gateway is about to stop", retry_after_s=1.0)
    return None
