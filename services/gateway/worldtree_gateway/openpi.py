"""The openpi policy protocol over WebSocket: metadata first, then an observation in, a chunk of actions out, in turn.

So robots that have openpi's own client are steered as they are. What cannot be answered is told in a text message, as
openpi's server does, and the connection goes on.
"""

import asyncio
import hashlib
import http
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, TypeVar
from uuid import uuid4
from weakref import WeakKeyDictionary

import grpc.aio
import numpy as np
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from worldtree.navigator.v1 import navigator_pb2 as pb
from worldtree.navigator.v1.navigator_pb2_grpc import NavigatorStub
from worldtree_runtime.address import joined
from worldtree_runtime.errors import InvalidRequest, Kind, WorldtreeError
from worldtree_runtime.interceptors import REQUEST_ID_KEY
from worldtree_runtime.logs import current_request_id, request_context

from worldtree_gateway.authenticator import AUTHORIZATION_KEY, CREDENTIALS
from worldtree_gateway.config import GatewaySettings
from worldtree_gateway.errors import TooManyPeerCalls
from worldtree_gateway.identity import Caller
from worldtree_gateway.metadata import Metadata
from worldtree_gateway.metrics import GatewayMetrics
from worldtree_gateway.openpi_codec import pack, unpack
from worldtree_gateway.openpi_episodes import Episodes
from worldtree_gateway.openpi_navigation import Navigation, told
from worldtree_gateway.openpi_observation import KEYS, to_observation
from worldtree_gateway.openpi_robot import Robot
from worldtree_gateway.security import Security

_TRY_AGAIN_LATER = 1013
_CLOSE_S = 2.0  # for a robot's last word, when the gateway stops
_ROOM = 4  # of a message: how many times the limit is read, so that the robot can be told
_IMAGINES = "mpc"  # plans in any world: its images and actions are those of the world
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
# In what the navigator says, its fields are those that the robot knows.
_KEYS_OF_FIELDS = {
    "observation.frame.tensor": "image",
    "observation.frame": "image",
    "observation.executed": "executed",
    "start.goal": "prompt",
    "start.chunk_length": "chunk_length",
    "start.seed": "seed",
    "start.episode": "episode",
}
_METHOD = "openpi"  # in the audit log; what is done for a robot is there too, as the calls that it is
_STATUS_OF = {
    Kind.UNAUTHENTICATED: http.HTTPStatus.UNAUTHORIZED,
    Kind.EXHAUSTED: http.HTTPStatus.TOO_MANY_REQUESTS,
}
_UNUSABLE = frozenset({Kind.INVALID, Kind.NOT_FOUND, Kind.PRECONDITION})

_log = logging.getLogger(__name__)
_transport_log = logging.getLogger(f"{__name__}.transport")
_transport_log.setLevel(logging.CRITICAL)  # a stranger's broken handshake is no news
_T = TypeVar("_T")


@asynccontextmanager
async def serve_openpi(
    settings: GatewaySettings, target: str, metrics: GatewayMetrics, security: Security
) -> AsyncIterator[str]:
    """Serves from here to the end of the block, and yields its HOST:PORT. `target`: the gRPC server that navigates.

    Where credentials are asked for, a handshake without them is answered with 401. Each call that is made for a robot
    brings its credentials along, so that a key that is revoked steers no longer than until the next navigation.

    At the end each connection is closed with code 1001. Raises OSError where the port can't be had.
    """
    options = (
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.enable_retries", 0),
        ("grpc.use_local_subchannel_pool", 1),
    )
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(target, options=options))
        endpoint = _Endpoint(NavigatorStub(channel), settings, metrics, security)
        server = await stack.enter_async_context(
            serve(
                endpoint.serve,
                settings.host,
                settings.openpi_port,
                process_request=endpoint.before_handshake,
                ssl=None if security.certificates is None else security.certificates.context(),
                origins=[None],  # robots send none: a page that somebody's browser shows must not steer one
                compression=None,  # images gain nothing, and the latency is a robot's
                max_size=_ROOM * settings.openpi_message_bytes,
                max_queue=1,  # one is asked at a time
                close_timeout=_CLOSE_S,
                logger=_transport_log,
            )
        )
        port = int(next(iter(server.sockets)).getsockname()[1])
        address = joined(settings.host, port)
        _log.info("serving openpi", extra={"openpi": address})
        yield address


class _Endpoint:
    """What all connections share."""

    def __init__(self, stub: Any, settings: GatewaySettings, metrics: GatewayMetrics, security: Security) -> None:
        self._stub, self._settings, self._metrics, self._security = stub, settings, metrics, security
        self._callers: WeakKeyDictionary[ServerConnection, Caller] = WeakKeyDictionary()
        self._episodes = Episodes(keep_s=settings.openpi_episode_ttl_s, limit=settings.openpi_episodes)
        self._count = 0

    async def before_handshake(self, connection: ServerConnection, request: Request) -> Response | None:
        """What is answered in the place of a handshake. None: nothing, it may go on."""
        if request.path.partition("?")[0] == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        shown = [(key, value) for key in CREDENTIALS for value in request.headers.get_all(key)]
        if len(shown) > 1 or not all(value.isascii() and value.isprintable() for _, value in shown):
            return connection.respond(http.HTTPStatus.BAD_REQUEST, "authorization must be printable ASCII, and one\n")
        authenticator = self._security.authenticator
        if authenticator is None:
            return None
        try:
            with self._security.peers.counted(_host(connection)):
                self._callers[connection] = await authenticator.identify(shown)
        except WorldtreeError as error:
            self._metrics.refused_callers.labels(error.reason).inc()
            self._security.audit.refused(None, _METHOD, f"{connection.remote_address}", error)
            status = _STATUS_OF.get(error.kind, http.HTTPStatus.SERVICE_UNAVAILABLE)
            return connection.respond(status, f"{error.reason}: {error.message}\n")
        return None

    async def serve(self, connection: ServerConnection) -> None:
        """One connection, from its handshake to its end."""
        limit = self._settings.openpi_connections
        if self._count >= limit:
            reason = f"{limit} robots are connected, the most there may be (setting gateway.openpi_connections)"
            await connection.close(_TRY_AGAIN_LATER, reason)
            return
        try:
            with self._security.peers.counted(_host(connection)):
                await self._serve(connection)
        except TooManyPeerCalls as error:
            await connection.close(_TRY_AGAIN_LATER, error.message)

    async def _serve(self, connection: ServerConnection) -> None:
        self._count += 1
        self._metrics.openpi_connections.set(self._count)
        try:
            with request_context(_request_id(connection)), suppress(ConnectionClosed):
                await self._converse(connection)
        finally:
            self._count -= 1
            self._metrics.openpi_connections.set(self._count)

    async def _converse(self, connection: ServerConnection) -> None:
        metadata = _call_metadata(connection)
        about = await _while_open(connection, self._about(metadata))
        await connection.send(pack(about))

        async def begin(start: pb.Start) -> Navigation:
            return await Navigation.begin(self._stub, start, metadata)

        robot = Robot(
            _owner(metadata, self._callers.get(connection)),
            self._episodes,
            begin,
            timeout_s=self._settings.openpi_timeout_s,
        )
        previous_s: float | None = None  # how long the answer before took, with its way out
        try:
            async for message in connection:
                began_s = time.monotonic()
                answer = await _while_open(connection, self._answer(robot, message, previous_s))
                await connection.send(answer)
                robot.sent()
                previous_s = time.monotonic() - began_s
        finally:
            robot.close()

    async def _answer(self, robot: Robot, message: str | bytes, previous_s: float | None) -> bytes | str:
        """The chunk for an observation, packed, or in a text why there is none."""
        began_s, result = time.monotonic(), "failed"
        try:
            observation = to_observation(unpack(self._checked(message)))
            chunk = await robot.decide(observation)
            answer = pack(_to_answer(chunk, robot.started, time.monotonic() - began_s, previous_s))
            result = "chunk"
            return answer
        except WorldtreeError as error:
            result = "refused" if error.kind in _UNUSABLE else "failed"
            return f"{error.reason}: {_in_words_of_the_robot(error.message)}"
        except Exception:
            _log.exception("an observation could not be answered")
            return "INTERNAL: this is a bug of the gateway's; its log says more"
        finally:
            self._metrics.openpi_seconds.labels(result).observe(time.monotonic() - began_s)

    def _checked(self, message: str | bytes) -> bytes:
        if isinstance(message, str):
            raise InvalidRequest(
                "observation", "observation must be msgpack in a binary message, got text", reason="NOT_MSGPACK"
            )
        limit = self._settings.openpi_message_bytes
        if len(message) > limit:
            raise InvalidRequest(
                "observation",
                f"observation must be {limit} bytes at most (setting gateway.openpi_message_bytes), got {len(message)}",
                reason="MESSAGE_TOO_LARGE",
                limit=limit,
            )
        return message

    async def _about(self, metadata: Metadata) -> dict[str, object]:
        """What a robot is told when it connects; without planners, and with the reason, while none answers."""
        try:
            listed: pb.ListPlannersResponse = await self._stub.ListPlanners(
                pb.ListPlannersRequest(), timeout=self._settings.probe_timeout_s, metadata=metadata
            )
        except grpc.aio.AioRpcError as error:
            why = told(error)
            return {**_about_planners(()), "notes": [f"{why.reason}: {why.message}"]}
        return _about_planners(listed.planners)


def _call_metadata(connection: ServerConnection) -> Metadata:
    """Who asks, as the robot's own headers say it, for each call that is made for it."""
    headers = connection.request.headers if connection.request is not None else {}
    theirs: Metadata = tuple((key, headers[key]) for key in CREDENTIALS if key in headers)
    request_id = current_request_id()
    return theirs if request_id is None else (*theirs, (REQUEST_ID_KEY, request_id))


def _owner(metadata: Metadata, caller: Caller | None) -> str:
    """Whose episodes a robot may go on with: its tenant's; else whoever has its key's, which is not kept itself."""
    if caller is not None:
        return caller.tenant
    key = str(dict(metadata).get(AUTHORIZATION_KEY, ""))
    return hashlib.blake2b(key.encode(), digest_size=16).hexdigest()


def _host(connection: ServerConnection) -> str:
    return str((connection.remote_address or ("",))[0])


def _request_id(connection: ServerConnection) -> str:
    headers = connection.request.headers if connection.request is not None else {}
    given = headers.get(REQUEST_ID_KEY, "")
    return given if _REQUEST_ID.fullmatch(given) else str(uuid4())


async def _while_open(connection: ServerConnection, work: Awaitable[_T]) -> _T:
    """What `work` gives. Raises ConnectionClosed, with the work cancelled, once nobody waits for it."""
    working = asyncio.ensure_future(work)
    closed = asyncio.ensure_future(connection.wait_closed())
    try:
        await asyncio.wait((working, closed), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise connection.protocol.close_exc
        return working.result()
    finally:
        working.cancel()
        closed.cancel()
        await asyncio.gather(working, closed, return_exceptions=True)


def _about_planners(planners: Sequence[pb.Planner]) -> dict[str, object]:
    """Of those that steer: the words of their goals, their actions by id, their images, and how far they look."""
    steering = {each.name: each for each in planners if each.height_px or each.name == _IMAGINES}
    first = next(iter(steering.values()), pb.Planner())
    return {
        "server": "worldtree",
        "planner": first.name,
        "actions": list(first.actions),
        "image": _image_shape(first),
        "chunk_length": first.max_chunk_length,
        "planners": {
            name: {
                "description": each.description,
                "words": list(each.words),
                "actions": list(each.actions),
                "image": _image_shape(each),
                "chunk_length": each.max_chunk_length,
            }
            for name, each in steering.items()
        },
        "observation": KEYS,
    }


def _image_shape(planner: pb.Planner) -> list[int]:
    """[height, width, 3]; empty: that of the world."""
    return [planner.height_px, planner.width_px, 3] if planner.height_px else []


def _to_answer(
    chunk: pb.ActionChunk, started: pb.Started, infer_s: float, previous_s: float | None
) -> dict[str, object]:
    """Each array has a row for each action, which is what openpi's ActionChunkBroker cuts into steps."""
    timing = chunk.timing
    answer: dict[str, object] = {
        "actions": np.array([[action.id] for action in chunk.actions], np.int64).reshape(-1, 1),
        "confidence": chunk.confidence,
        "planner": started.planner,
        "step": chunk.first_step,
        "server_timing": {
            "queue_ms": timing.queue_duration.ToMicroseconds() / 1e3,
            "world_model_ms": timing.world_model_duration.ToMicroseconds() / 1e3,
            "planner_ms": timing.planner_duration.ToMicroseconds() / 1e3,
            "encode_ms": timing.encode_duration.ToMicroseconds() / 1e3,
            "total_ms": timing.total_duration.ToMicroseconds() / 1e3,
            "infer_ms": infer_s * 1e3,  # with the ways between the services
            **({} if previous_s is None else {"prev_total_ms": previous_s * 1e3}),
        },
        "notes": [*started.notes, *chunk.notes],
    }
    if chunk.HasField("frames"):
        tensor = chunk.frames.tensor
        answer["frames"] = np.frombuffer(tensor.data, np.uint8).reshape(tensor.shape)
    return answer


def _in_words_of_the_robot(message: str) -> str:
    for field, key in _KEYS_OF_FIELDS.items():
        message = message.replace(field, key)
    return message
