"""HTTP/1.1, read by h11: whole requests in, responses out, whole or part by part."""

import asyncio
import logging
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import ExitStack, aclosing, suppress
from dataclasses import dataclass, field, replace
from typing import TypeVar

import h11

from worldtree_gateway.body_room import BodyRoom, RoomPart
from worldtree_gateway.errors import TooManyPeerCalls
from worldtree_gateway.peer_limit import PeerCalls

_HEAD_BYTES_MAX = 16 * 1024
_READ_BYTES = 64 * 1024
_IDLE_S = 60.0  # between two requests of a connection
_REQUEST_S = 60.0  # for a whole one to arrive
_CLOSE_S = 5.0  # for the rest of a response to be read
_LINGER_S = 2.0  # for the rest of a request that is refused: left unread, it would take the answer away with it

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """`path` is without its query. `headers` are by lower-case name; of one given twice, the last. `body`: empty while
    only the head is there. `peer`: the address that it comes from.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = b""
    peer: str = ""


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """`body`: parts, written one after the other. `stream`: in its place, parts that come by and by; it fills in the
    `trailers` before it ends.
    """

    status: int
    body: tuple[bytes, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    stream: AsyncGenerator[bytes, None] | None = None
    trailers: Mapping[str, str] = field(default_factory=dict)


_Made = TypeVar("_Made")
Admit = Callable[[HttpRequest], Awaitable[int | HttpResponse]]
Answer = Callable[[HttpRequest], Awaitable[HttpResponse]]
Refuse = Callable[[int, str], HttpResponse]


class HttpServer:
    """`admit`: from a request's head, how many bytes its body may have, or why it is not read. `refuse`: what a request
    that is none is answered with. `buffer_bytes`: of all bodies together. `peers`: counts connections by address.
    """

    def __init__(
        self,
        admit: Admit,
        answer: Answer,
        refuse: Refuse,
        peers: PeerCalls,
        *,
        buffer_bytes: int,
        max_connections: int,
    ) -> None:
        self._admit = admit
        self._answer = answer
        self._refuse = refuse
        self._peers = peers
        self._room = BodyRoom(buffer_bytes)
        self._max_connections = max_connections
        self._server: asyncio.Server | None = None
        self._stopping = False
        self._busy: set[asyncio.Task[None]] = set()
        self._idle: set[asyncio.Task[None]] = set()
        self.port = 0

    async def start(self, host: str, port: int, context: ssl.SSLContext | None) -> None:
        """Listens; port 0 picks a free one. Raises OSError where the address can't be had."""
        self._server = await asyncio.start_server(self._accept, host, port, ssl=context, limit=_READ_BYTES)
        self.port = int(self._server.sockets[0].getsockname()[1])

    async def stop(self, timeout_s: float) -> None:
        """No new requests; those under way get so long."""
        self._stopping = True
        if self._server is not None:
            self._server.close()
        for task in self._idle:
            task.cancel()
        if self._busy:
            await asyncio.wait(self._busy, timeout=timeout_s)
        left = [*self._busy, *self._idle]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._busy) + len(self._idle) >= self._max_connections:
            writer.close()
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer), name="http connection")
        self._idle.add(task)
        task.add_done_callback(self._idle.discard)
        task.add_done_callback(self._busy.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD_BYTES_MAX)
        try:
            with ExitStack() as stack:
                try:
                    stack.enter_context(self._peers.counted(_address(writer)))
                except TooManyPeerCalls as error:
                    await _write(connection, writer, self._refuse(429, error.message))
                    await _linger(reader)
                    return
                await self._converse(connection, reader, writer)
        except (TimeoutError, ConnectionError, h11.LocalProtocolError):
            pass  # a client that left, or never finished what it began: there is nobody to tell
        except Exception:  # of a stream, whose client sees that it has no end
            _log.exception("a response by HTTP broke off")
        except asyncio.CancelledError:
            writer.transport.abort()
            raise
        finally:
            writer.close()
            try:
                async with asyncio.timeout(_CLOSE_S):
                    await writer.wait_closed()
            except (ConnectionError, TimeoutError, ssl.SSLError):
                writer.transport.abort()  # what was written and is not read

    async def _converse(
        self, connection: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None, "it runs in a task"
        while True:
            try:
                if not await _first_byte(connection, reader):
                    return
                self._idle.discard(task)
                self._busy.add(task)
                response = await self._respond(connection, reader, writer)
            except h11.RemoteProtocolError as error:
                response = self._refuse(error.error_status_hint, f"the request is no HTTP/1.1: {error}")
            if self._stopping:  # a connection that was busy takes no other request
                response = replace(response, headers={**response.headers, "Connection": "close"})
            if response.stream is None:
                await _write(connection, writer, response)
            else:
                async with aclosing(response.stream) as parts:
                    await _while_there(connection, reader, _write_parts(connection, writer, response, parts))
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                if connection.their_state is h11.SEND_BODY:
                    await _linger(reader)
                return
            if self._stopping:
                return
            connection.start_next_cycle()
            self._busy.discard(task)
            self._idle.add(task)

    async def _respond(
        self, connection: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> HttpResponse:
        with self._room.part() as room:
            async with asyncio.timeout(_REQUEST_S):
                request = await self._read(connection, reader, writer, room)
            if isinstance(request, HttpResponse):
                return request
            return await _while_there(connection, reader, self._safely(self._answer, request))

    async def _read(
        self, connection: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, room: RoomPart
    ) -> HttpRequest | HttpResponse:
        """A request, or why it is not read."""
        head: HttpRequest | None = None
        parts: list[bytes] = []
        limit = 0
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                if connection.they_are_waiting_for_100_continue:
                    writer.write(connection.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
                data = await reader.read(_READ_BYTES)
                connection.receive_data(data)
                if not data and connection.their_state is h11.SEND_BODY:
                    raise ConnectionError("the client left in the middle of a request")
            elif isinstance(event, h11.Request):
                head = _head_of(event, writer)
                admitted = await self._safely(self._admit, head)
                if isinstance(admitted, HttpResponse):
                    return admitted
                limit = admitted
                length = int(head.headers.get("content-length", "0"))
                if length > limit:
                    return self._refuse(413, f"a request must have {limit} bytes at most, got {length}")
            elif isinstance(event, h11.Data):
                if room.taken + len(event.data) > limit:
                    return self._refuse(413, f"a request must have {limit} bytes at most")
                if not room.take(len(event.data)):
                    return self._refuse(503, f"requests under way have {self._room.limit} bytes already; try again")
                parts.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                assert head is not None, "a message begins with its head"
                return replace(head, body=b"".join(parts))
            else:
                raise ConnectionError("the client left")

    async def _safely(
        self, ask: Callable[[HttpRequest], Awaitable[_Made]], request: HttpRequest
    ) -> _Made | HttpResponse:
        try:
            return await ask(request)
        except Exception:
            _log.exception("a request by HTTP could not be answered", extra={"path": request.path})
            return self._refuse(500, "internal error; our log has it")


def _head_of(event: h11.Request, writer: asyncio.StreamWriter) -> HttpRequest:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers}
    path = event.target.decode("latin-1").partition("?")[0]
    return HttpRequest(event.method.decode("latin-1"), path, headers, peer=_address(writer))


def _address(writer: asyncio.StreamWriter) -> str:
    return str((writer.get_extra_info("peername") or ("",))[0])


async def _linger(reader: asyncio.StreamReader) -> None:
    """Lets a client that still sends read its answer, and close."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_S):
            while await reader.read(_READ_BYTES):
                pass


async def _first_byte(connection: h11.Connection, reader: asyncio.StreamReader) -> bool:
    """Waits for a request to begin. False: the client has left, or says nothing."""
    if connection.trailing_data[0]:
        return True
    try:
        async with asyncio.timeout(_IDLE_S):
            data = await reader.read(_READ_BYTES)
    except TimeoutError:
        return False
    connection.receive_data(data)
    return bool(data)


async def _while_there(
    connection: h11.Connection, reader: asyncio.StreamReader, work: Coroutine[None, None, _Made]
) -> _Made:
    """What `work` gives. Raises ConnectionError, with the work cancelled, once nobody waits for it."""
    working = asyncio.create_task(work, name="http answer")
    reading = asyncio.create_task(reader.read(_READ_BYTES), name="http: whether the client is there")
    try:
        await asyncio.wait((working, reading), return_when=asyncio.FIRST_COMPLETED)
        if reading.done():
            data = reading.result()
            if data:
                connection.receive_data(data)  # of its next request, which it has begun already
            elif not working.done():
                raise ConnectionError("the client left before its answer")
        return await working
    finally:
        working.cancel()
        reading.cancel()
        await asyncio.gather(working, reading, return_exceptions=True)


async def _write(connection: h11.Connection, writer: asyncio.StreamWriter, response: HttpResponse) -> None:
    if connection.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
        return
    size = sum(map(len, response.body))
    headers = {"Content-Length": str(size), **response.headers}
    if connection.their_state is not h11.DONE:
        headers["Connection"] = "close"  # what is left of the request is not read
    sent = [connection.send(h11.Response(status_code=response.status, headers=list(headers.items())))]
    sent += [connection.send(h11.Data(data=part)) for part in response.body]
    sent.append(connection.send(h11.EndOfMessage()))
    writer.writelines([part for part in sent if part])
    async with asyncio.timeout(_REQUEST_S):
        await writer.drain()


async def _write_parts(
    connection: h11.Connection, writer: asyncio.StreamWriter, response: HttpResponse, parts: AsyncIterator[bytes]
) -> None:
    """Each when it comes, and no faster than they are read. Who speaks HTTP/1.0 has all when the connection ends."""
    head = h11.Response(status_code=response.status, headers=list(response.headers.items()))
    writer.write(connection.send(head) or b"")
    async for part in parts:
        writer.write(connection.send(h11.Data(data=part)) or b"")
        async with asyncio.timeout(_REQUEST_S):
            await writer.drain()
    trailers = response.trailers if connection.their_http_version == b"1.1" else {}
    writer.write(connection.send(h11.EndOfMessage(headers=list(trailers.items()))) or b"")
    async with asyncio.timeout(_REQUEST_S):
        await writer.drain()
