"""One call at a backend for all gateways that are asked the same at once.

Whichever claims a key first makes the call, and records it in Redis message by message; the others read the recording
while it grows. The claim is a lock with a token and a short life, renewed for as long as the call lasts: when its
holder dies, the next reader takes it over and makes the call again, past what it has had. When the call fails, those
who wait are told how: what would fail again fails for all of them, anything else is tried once more by one of them.
When Redis fails, each gateway goes on with a call of its own: the answer is a pure function of the request.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, suppress
from functools import partial
from importlib import resources
from typing import Any

import grpc
import grpc.aio
from google.rpc import status_pb2  # type: ignore[import-untyped]
from grpc.aio import Metadata
from worldtree_runtime.stores import StoreUnavailable
from worldtree_runtime.stores.redis_connection import RedisConnection

from worldtree_gateway.breaker import CircuitBreaker
from worldtree_gateway.metrics import GatewayMetrics
from worldtree_gateway.verdicts import STATUS_DETAILS_KEY, status_of

# Opens the call with so many seconds to live (None: no limit) and yields its messages.
Source = Callable[[float | None], AsyncGenerator[bytes]]

_SCRIPT = resources.files("worldtree_gateway").joinpath("flight.lua").read_text()
# what an entry of a recording is; the last: there will be no more of it, make the call yourself
_MESSAGE, _END, _ALONE, _FAILED = b"m", b"e", b"a", b"f"
# what may go well the next time
_PASSING = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
    }
)
_OWN = frozenset({grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED})  # says nothing of the others' calls
FLIGHTS = "worldtree:flight:"  # what the names of locks and recordings begin with
_POLL_FIRST_S, _POLL_MAX_S = 0.01, 0.1
# A claim lives so long until its holder has said a first word. Redis may carry one out that nobody waits for any more,
# when it comes back from a pause: then nobody says a word, and the others should not wait as for one who died.
_CLAIM_S = 1.0
_READ_COUNT = 4  # entries at a time, one where they are large
_TRIP_BYTES = 1 << 20  # at a time, so that each is answered within its timeout

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class SharedFlights:
    """`ttl_s`: how long a dead holder keeps the others waiting, and how long a recording stays when it has ended.
    `recording_bytes`: a larger one is given up. Two connections to one Redis: a look may cost a request only so much, a
    write goes on beside it.
    """

    def __init__(
        self,
        reads: RedisConnection,
        writes: RedisConnection,
        breaker: CircuitBreaker,
        metrics: GatewayMetrics,
        *,
        ttl_s: float,
        recording_bytes: int,
    ) -> None:
        self.ttl_s, self.recording_bytes = ttl_s, recording_bytes
        self._reads, self._writes, self._breaker, self._metrics = reads, writes, breaker, metrics
        self._script = reads.redis.register_script(_SCRIPT)
        self._recording: set[asyncio.Task[None]] = set()

    async def messages(self, key: bytes, source: Source, timeout_s: float | None) -> AsyncGenerator[bytes]:
        """The answer's messages, of a call made here or by another gateway. Raises what `source` does."""
        ends_s = None if timeout_s is None else time.monotonic() + timeout_s
        had, alone = 0, False
        failed: str | None = None  # the holder that has
        while True:
            token = secrets.token_hex(8)
            holder = None if alone else await self._claimed(key, token, failed)
            if holder in (None, token):
                recording = None if holder is None else _Recording(self, key, token)
                left_s = None if ends_s is None else max(0.0, ends_s - time.monotonic())
                async with aclosing(source(left_s)) as call, aclosing(_made(call, recording)) as made:
                    async for message in made:
                        if had:
                            had -= 1
                        else:
                            yield message
                return
            async with aclosing(self._entries(key, str(holder), had)) as entries:
                async for entry in entries:
                    if entry[:1] == _END:
                        return
                    if entry[:1] == _ALONE:
                        alone = True
                        break
                    if entry[:1] == _FAILED:
                        error = _error_in(entry[1:])
                        if failed is not None or error.code() not in _PASSING:
                            raise error
                        failed = holder
                        break
                    had += 1
                    yield entry[1:]
            await asyncio.sleep(_POLL_FIRST_S)  # its recording has ended or was lost: its claim is given up in a moment

    async def close(self) -> None:
        """Waits for what is being written, which has its own timeout."""
        await asyncio.gather(*self._recording, return_exceptions=True)
        await self._reads.close()
        await self._writes.close()

    async def _entries(self, key: bytes, holder: str, had: int) -> AsyncGenerator[bytes]:
        """What another gateway records, after the first `had`. Ends where its holder has failed or died, and with
        _ALONE where Redis does not say.
        """
        poll_s, count = _POLL_FIRST_S, 1  # nobody knows how large they are
        while True:
            try:
                held, entries = await self._reads.call(partial(self._look, key, holder, had, count))
            except StoreUnavailable as error:
                self._failed(error)
                yield _ALONE
                return
            if entries is None:
                return
            for entry in entries:
                had += 1
                yield entry
            if entries:
                poll_s = _POLL_FIRST_S
                count = _READ_COUNT if _READ_COUNT * len(entries[-1]) <= _TRIP_BYTES else 1
            elif held:
                await asyncio.sleep(poll_s)
                poll_s = min(2 * poll_s, _POLL_MAX_S)
            else:
                return

    async def _look(self, key: bytes, holder: str, had: int, count: int) -> tuple[bool, list[bytes] | None]:
        """Whether `holder` still has the lock, and at most `count` entries of its recording after the first `had`;
        None: it was lost.
        """
        held, length, entries, failure = await self._run(self._reads, key, holder, "look", had, count)
        if not entries and failure is not None:
            return False, [failure]  # before it had come so far
        return bool(held), entries if length >= had else None

    async def _claimed(self, key: bytes, token: str, failed: str | None) -> str | None:
        """Who makes the call: the one with this token. `failed`: who has made it and failed, so that all who waited for
        that one wait for the same next one. None: Redis does not say.
        """
        if self._breaker.failing or not self._breaker.allows():
            return None  # the look-up before this has cost the caller what Redis may cost him
        try:
            holder = await self._reads.call(partial(self._claim, key, token, failed))
        except StoreUnavailable as error:
            self._failed(error)
            if error.fault == "timeout":  # it may have been made all the same
                self.start(asyncio.create_task(self._take_back(key, token), name="take back a claim"))
            return None
        self._breaker.succeeded()
        return str(holder.decode())

    async def _take_back(self, key: bytes, token: str) -> None:
        with suppress(StoreUnavailable):  # a claim alone does not live long
            await self._writes.call(partial(self._run, self._writes, key, token, "drop"))

    @property
    def claim_s(self) -> float:
        return min(_CLAIM_S, self.ttl_s)

    async def _claim(self, key: bytes, token: str, failed: str | None) -> Any:
        claim_ms = round(1000 * self.claim_s)
        if failed is None:
            return await self._run(self._reads, key, token, "claim", claim_ms)
        keys = [*_names(key, token), f"{_names(key, failed)[1]}:next"]
        return await self._script(
            keys=keys, args=["retry", token, round(1000 * self.ttl_s), claim_ms], client=self._reads.redis
        )

    async def _run(self, redis: RedisConnection, key: bytes, token: str, what: str, *more: int | bytes) -> Any:
        """One step of the script."""
        lock, log = _names(key, token)
        arguments: list[str | int | bytes] = [what, token, round(1000 * self.ttl_s), *more]
        return await self._script(keys=[lock, log], args=arguments, client=redis.redis)

    def start(self, writing: "asyncio.Task[None]") -> None:
        self._recording.add(writing)
        writing.add_done_callback(self._recording.discard)

    def _failed(self, error: StoreUnavailable) -> None:
        self._metrics.store_errors.labels("flight", error.fault).inc()
        self._breaker.failed(error)

    async def written(self, key: bytes, token: str, what: str, *more: int | bytes) -> bool:
        """Whether the holder of `token` may go on recording."""
        try:
            return bool(await self._writes.call(lambda: self._run(self._writes, key, token, what, *more)))
        except StoreUnavailable as error:
            self._failed(error)
            return False


class _Recording:
    """What the holder of a key tells the others, by a task of its own."""

    def __init__(self, flights: SharedFlights, key: bytes, token: str) -> None:
        self._flights, self._key, self._token = flights, key, token
        self._entries: list[bytes] = []
        self._bytes = 0
        self._written_count = 0
        self._told = False  # that the holder lives
        self._ended = self._left = False
        self._failure: bytes | None = None
        self._taken = True  # what came last was taken by those that it came for
        self._woken = asyncio.Event()
        self._flights.start(asyncio.create_task(self._write(), name="record a shared flight"))

    def add(self, message: bytes) -> None:
        self._taken = False
        if self._ended:
            return
        self._bytes += len(message)
        if self._bytes > self._flights.recording_bytes:
            self._end(_ALONE)
        else:
            self._put(_MESSAGE + message)

    def taken(self) -> None:
        self._taken = True

    def end(self) -> None:
        """All of it has come, and ended well."""
        if not self._ended:
            self._end(_END)

    def fail(self, error: grpc.aio.AioRpcError) -> None:
        """It has ended so."""
        if error.code() not in _OWN:
            self._failure = _FAILED + _entry_of(error)

    def leave(self) -> None:
        """Nothing more will come; what did not end well is nobody's any more."""
        self._left = True
        self._woken.set()

    def _end(self, entry: bytes) -> None:
        self._put(entry)
        self._ended = True

    def _put(self, entry: bytes) -> None:
        self._entries.append(entry)
        self._woken.set()

    async def _write(self) -> None:
        while True:
            woken = await self._wait()
            if not (woken or self._taken or self._ended):
                self._end(_ALONE)  # our callers do not read: those of others shall not wait for them
            entries = self._next()
            # with no entries it says that the holder lives
            if (entries or not self._ended) and not await self._add(entries):
                self._ended = True
                self._entries.clear()
                await self._flights.written(self._key, self._token, "drop")
                return
            if self._left and not self._entries:
                if not self._ended and self._failure is not None:
                    await self._flights.written(self._key, self._token, "fail", self._written_count, self._failure)
                elif not self._ended:
                    await self._flights.written(self._key, self._token, "drop")
                return

    async def _wait(self) -> bool:
        """Whether there is something to write before it is time to say that the holder lives."""
        if self._entries:
            return True
        try:
            lives_s = self._flights.ttl_s if self._told else self._flights.claim_s
            async with asyncio.timeout(lives_s / 3):
                await self._woken.wait()
        except TimeoutError:
            return False
        self._woken.clear()
        return True

    def _next(self) -> list[bytes]:
        """As many entries as one write may hold, at least one."""
        count = size = 0
        for entry in self._entries:
            size += len(entry)
            if count and size > _TRIP_BYTES:
                break
            count += 1
        found, self._entries = self._entries[:count], self._entries[count:]
        return found

    async def _add(self, entries: list[bytes]) -> bool:
        done = await self._flights.written(self._key, self._token, "add", self._written_count, *entries)
        self._written_count += len(entries)
        self._told = True
        return done


def _names(key: bytes, token: str) -> tuple[str, str]:
    """The lock and the recording; a cluster keeps both on one node."""
    lock = f"{FLIGHTS}{{{key.hex()}}}"
    return lock, f"{lock}:{token}"


async def _made(call: AsyncIterator[bytes], recording: _Recording | None) -> AsyncGenerator[bytes]:
    """What a call brings; `recording` is told, and never waited for."""
    try:
        async for message in call:
            if recording is not None:
                recording.add(message)
            yield message
            if recording is not None:
                recording.taken()
        if recording is not None:
            recording.end()
    except grpc.aio.AioRpcError as error:
        if recording is not None:
            recording.fail(error)
        raise
    finally:
        if recording is not None:
            recording.leave()


def _entry_of(error: grpc.aio.AioRpcError) -> bytes:
    """A status as it travels: its details hold what it says, and more."""
    return bytes(status_of(error).SerializeToString())


def _error_in(entry: bytes) -> grpc.aio.AioRpcError:
    status = status_pb2.Status.FromString(entry)
    trailers = Metadata((STATUS_DETAILS_KEY, entry)) if status.details else Metadata()
    return grpc.aio.AioRpcError(_CODES[status.code], Metadata(), trailers, details=status.message)
