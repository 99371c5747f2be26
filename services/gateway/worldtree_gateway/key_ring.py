"""The API keys of a gateway: from a file, from Redis, or both; rotated while it runs."""

import asyncio
import hmac
import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from worldtree_runtime.stores import RedisConnection, StoreUnavailable

from worldtree_gateway.api_key import KnownKey, PresentedKey
from worldtree_gateway.errors import AuthenticationBusy, KeyRefused, KeysUnread
from worldtree_gateway.identity import Caller
from worldtree_gateway.reloaded import ReloadedFiles

REDIS_KEYS = "worldtree:keys"  # a hash: the id of each key, and its line
# What waits for the one thread: ids, as of all callers after a restart, for a few seconds; and guesses at one id, so
# that who guesses at it keeps nobody else out.
_ID_COUNT_MAX = 64
_GUESS_COUNT_MAX = 3
_RETRY_S = 1.0

_log = logging.getLogger(__name__)


def read_keys(path: Path) -> dict[str, KnownKey]:
    """The keys of a file by id: a line each, empty lines and those that begin with # aside. Raises ValueError that
    names the line, or OSError."""
    known: dict[str, KnownKey] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            key = KnownKey.parse(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        if key.key_id in known:
            raise ValueError(f"{path}, line {number}: key {key.key_id} is there twice")
        known[key.key_id] = key
    return known


class RedisKeys:
    """The keys in a hash of Redis, read each `every_s`. While Redis is away the last ones stay."""

    def __init__(self, url: str, *, every_s: float) -> None:
        self.keys: Mapping[str, KnownKey] | None = None  # None: Redis has not answered yet
        self._connection = RedisConnection(url, timeout_s=2.0)
        self._every_s = every_s
        self._lines: dict[bytes, bytes] = {}
        self._away = False
        self._following: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Reads them once, if Redis answers, and from then on."""
        await self._look()
        self._following = asyncio.create_task(self._follow(), name="read keys from Redis")

    async def close(self) -> None:
        if self._following is not None:
            self._following.cancel()
            with suppress(asyncio.CancelledError):
                await self._following
        await self._connection.close()

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            await self._look()

    async def _look(self) -> None:
        try:
            lines = await self._connection.call(lambda: self._connection.redis.hgetall(REDIS_KEYS))
        except StoreUnavailable as error:
            if not self._away:  # not one line a look while it stays away
                _log.warning("the keys in Redis can't be read; the last ones stay", extra={"reason": str(error)})
            self._away = True
            return
        self._away = False
        if self.keys is not None and lines == self._lines:
            return
        self._lines = lines
        self.keys = _parsed(lines.items())
        _log.info("keys were read from Redis", extra={"key_count": len(self.keys)})


def _parsed(lines: Iterable[tuple[bytes, bytes]]) -> dict[str, KnownKey]:
    """One bad line must not lock everybody out who has another key."""
    known: dict[str, KnownKey] = {}
    for field, line in lines:
        try:
            key = KnownKey.parse(line.decode())
            if key.key_id.encode() != field:
                raise ValueError(f"the line of key {key.key_id} lies under another id")
        except ValueError as error:
            _log.error("a key in Redis is left out: %s", error)
        else:
            known[key.key_id] = key
    return known


class KeyRing:
    """Finds whose a key is. `file` and `shared` are where keys are kept; of one id in both, the file's counts.

    A key is hashed once, at its first use, for all who show it meanwhile. From then on it is known by its SHA-256, for
    as long as its line stays what it was: a look costs microseconds, and a key whose line is gone is refused at once.
    """

    def __init__(self, file: ReloadedFiles[dict[str, KnownKey]] | None, shared: RedisKeys | None) -> None:
        self._file = file
        self._shared = shared
        self._verified: dict[str, tuple[KnownKey, bytes]] = {}  # by id: the line, and the SHA-256 of its key
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="keys")
        # hashes under way: by id, then by the line and the SHA-256 of what was shown
        self._hashing: dict[str, dict[tuple[KnownKey, bytes], asyncio.Task[bool]]] = {}

    def recognize(self, presented: PresentedKey) -> Caller | None:
        """None: it is yet to be verified. Raises KeyRefused; KeysUnread while Redis has not told its keys."""
        known = self._known(presented.key_id)
        line, fingerprint = self._verified.get(known.key_id, (None, b""))
        if line != known:
            return None
        if hmac.compare_digest(fingerprint, presented.fingerprint()):
            return known.caller
        raise KeyRefused(presented.key_id)

    async def find(self, presented: PresentedKey) -> Caller:
        """As `recognize`, and verifies what has to be. Raises AuthenticationBusy while many guess."""
        caller = self.recognize(presented)
        if caller is not None:
            return caller
        known = self._known(presented.key_id)
        if not await self._is_key(known, presented):
            raise KeyRefused(presented.key_id)
        self._verified[known.key_id] = (known, presented.fingerprint())
        return known.caller

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _known(self, key_id: str) -> KnownKey:
        known = self._file.get().get(key_id) if self._file is not None else None
        if known is None and self._shared is not None:
            if self._shared.keys is None:
                raise KeysUnread(_RETRY_S)
            known = self._shared.keys.get(key_id)
        if known is None:
            raise KeyRefused(key_id)
        return known

    async def _is_key(self, known: KnownKey, presented: PresentedKey) -> bool:
        shown = known, presented.fingerprint()
        guesses = self._hashing.get(known.key_id, {})
        hashing = guesses.get(shown)
        if hashing is None:
            if len(guesses) >= _GUESS_COUNT_MAX:
                raise AuthenticationBusy(_GUESS_COUNT_MAX, _RETRY_S, key_id=known.key_id)
            if not guesses and len(self._hashing) >= _ID_COUNT_MAX:
                raise AuthenticationBusy(_ID_COUNT_MAX, _RETRY_S)
            hashing = asyncio.create_task(self._hashed(shown, presented), name="verify a key")
            self._hashing.setdefault(known.key_id, guesses)[shown] = hashing
        return await asyncio.shield(hashing)  # others may wait for it when this one leaves

    async def _hashed(self, shown: tuple[KnownKey, bytes], presented: PresentedKey) -> bool:
        known, _ = shown
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, known.is_key, presented)
        finally:
            del self._hashing[known.key_id][shown]
            if not self._hashing[known.key_id]:
                del self._hashing[known.key_id]
