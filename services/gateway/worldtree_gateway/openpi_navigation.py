"""One stream of the navigator, in which one observation is answered before the next is sent."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio
import numpy as np
import numpy.typing as npt
from grpc_status import rpc_status
from worldtree.common.v1 import common_pb2 as common
from worldtree.navigator.v1 import navigator_pb2 as pb
from worldtree.video.v1 import video_generator_pb2 as video_pb
from worldtree_runtime.errors import WorldtreeError
from worldtree_runtime.messages import from_seconds
from worldtree_runtime.status import from_status

from worldtree_gateway.errors import NavigationFailed, ObservationRefused
from worldtree_gateway.metadata import Metadata
from worldtree_gateway.relay import receive, write


class Navigation:
    """`started`: what the navigator said of it. Raises what the navigator says, as errors of the family."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._began_s = 0.0
        self.started = pb.Started()

    @classmethod
    async def begin(cls, stub: Any, start: pb.Start, metadata: Metadata) -> "Navigation":
        navigation = cls(stub.Navigate(metadata=metadata))
        try:
            answer = await navigation._ask(pb.NavigateRequest(start=start))
        except BaseException:
            navigation.close()
            raise
        navigation.started = answer.started
        # From here, as the navigator's clock began before: one that was slow to start would find images of the future.
        navigation._began_s = time.monotonic()
        return navigation

    async def observe(self, image: npt.NDArray[np.uint8], executed: Sequence[int | str]) -> pb.ActionChunk:
        """What to do, now that the robot sees `image` [height, width, 3]. Raises ObservationRefused too."""
        tensor = common.Tensor(dtype=common.Tensor.D_TYPE_UINT8, shape=(1, *image.shape), data=image.tobytes())
        observation = pb.Observation(
            frame=common.Frames(tensor=tensor),
            taken_at=from_seconds(time.monotonic() - self._began_s),
            executed=[_action(each) for each in executed],
        )
        answer = await self._ask(pb.NavigateRequest(observation=observation))
        if answer.HasField("refusal"):
            refusal = answer.refusal
            raise ObservationRefused(refusal.field, refusal.reason, refusal.message)
        return answer.chunk

    @property
    def ended(self) -> bool:
        """By the navigator: it waited too long, went away, or another robot goes on with the episode."""
        return bool(self._call.done())

    async def check_taken(self) -> None:
        """Raises what the navigator said where another goes on with the episode of a navigation that has ended."""
        if await self._call.code() == grpc.StatusCode.ABORTED:
            await self._receive()

    def close(self) -> None:
        """Ends it; the navigator keeps the episode. Safe to call again."""
        self._call.cancel()

    async def _ask(self, request: pb.NavigateRequest) -> pb.NavigateResponse:
        with suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):  # it has ended, and reading tells why
            await write(self._call, request.SerializeToString())
        return await self._receive()

    async def _receive(self) -> pb.NavigateResponse:
        try:
            answer: Any = await receive(self._call)
        except grpc.aio.AioRpcError as error:
            raise told(error) from error
        if answer is None:
            raise NavigationFailed("OK", "the navigator has ended the navigation")
        response: pb.NavigateResponse = answer
        return response


def told(error: grpc.aio.AioRpcError) -> WorldtreeError:
    """What a service said, as an error of the family."""
    status = rpc_status.from_call(error)
    known = None if status is None else from_status(status)
    return known or NavigationFailed(error.code().name, error.details() or "")


def _action(given: int | str) -> video_pb.Action:
    return video_pb.Action(id=given) if isinstance(given, int) else video_pb.Action(name=given)
