"""What makes two requests the same request."""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

from google.protobuf.message import DecodeError, Message
from worldtree.common.v1 import common_pb2

from worldtree_gateway.domain import CacheRule, Method

_FORMAT = b"worldtree-answer-1"
_MARK_BYTES = 8
_MARK_CHARS = 2 * _MARK_BYTES
_ANY = "?" * _MARK_CHARS
# of requests that came lately: how many, of how many bytes, and for how many owners or digests each
_KEPT_COUNT, _KEPT_BYTES, _KEPT_KEYS = 1024, 1024, 4


class CacheableRequest:
    """A request as it was read. `model`: the one that is asked for; None: such requests name none. `unpinned`: that
    model, where it doesn't say which digest it means. `names_merge`: whether it names a merge, which the model's digest
    does not tell.

    Its canonical form and its key are made once, for each digest and owner.
    """

    def __init__(self, method: Method, rule: CacheRule, message: Message) -> None:
        self.rule = rule
        field = rule.model_field
        self.model: common_pb2.ModelRef | None = None if field is None else getattr(message, field)
        self.unpinned = None if self.model is None or self.model.digest else self.model
        self.names_merge = method.names_merge(message)
        self._method, self._message = method, message
        self._keyed: dict[tuple[str | None, str], tuple[bytes, bytes]] = {}

    def keyed(self, digest: str | None, owner: str) -> tuple[bytes, bytes]:
        """Its key, and the bytes that are sent and hashed: equal for equal messages, in whatever order a client wrote
        them. `digest`: what the `unpinned` reference means; a backend with another version refuses the request rather
        than fill our cache with it.
        """
        found = self._keyed.get((digest, owner))
        if found is None:
            message = self._message if digest is None else self._pinned(digest)
            canonical = message.SerializeToString(deterministic=True)
            meant = digest or ("" if self.model is None else self.model.digest)
            found = _key(self._method, meant, canonical, owner), canonical
            if len(self._keyed) >= _KEPT_KEYS:
                self._keyed.clear()
            self._keyed[digest, owner] = found
        return found

    def _pinned(self, digest: str) -> Message:
        assert self.rule.model_field is not None
        pinned = type(self._message)()
        pinned.CopyFrom(self._message)
        getattr(pinned, self.rule.model_field).digest = digest
        return pinned


class RequestReader:
    """Reads requests of cacheable methods. Short ones that came lately are not read again."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, bytes], CacheableRequest] = OrderedDict()

    def read(self, method: Method, rule: CacheRule, request: bytes) -> CacheableRequest | None:
        """None: the bytes are no such message, and the backend says so better."""
        name = method.path, request
        found = self._kept.get(name)
        if found is not None:
            self._kept.move_to_end(name)
            return found
        try:
            found = CacheableRequest(method, rule, rule.request_class.FromString(request))
        except DecodeError:
            return None
        if len(request) <= _KEPT_BYTES:
            self._kept[name] = found
            if len(self._kept) > _KEPT_COUNT:
                self._kept.popitem(last=False)
        return found


def _key(method: Method, digest: str, canonical: bytes, owner: str) -> bytes:
    """The owner's mark, the model's, and a SHA-256: of one owner's answers, and of one model's, all keys are alike in
    one place. What belongs to another has another key: the owner is hashed too.
    """
    hashed = hashlib.sha256(_FORMAT)
    for part in (method.path.encode(), digest.encode(), owner.encode()):
        hashed.update(len(part).to_bytes(8, "little"))  # so that no two lists of parts are one string
        hashed.update(part)
    hashed.update(canonical)
    return _mark(owner) + _mark(digest) + hashed.digest()


def _mark(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:_MARK_BYTES]


@dataclass(frozen=True, slots=True)
class KeyPattern:
    """Keys of one owner, of one model, of one model for one owner, or all. None: any."""

    owner: bytes | None = None
    model: bytes | None = None

    @classmethod
    def of(cls, owner: str | None, digest: str | None) -> "KeyPattern":
        return cls(None if owner is None else _mark(owner), None if digest is None else _mark(digest))

    @classmethod
    def parse(cls, glob: str) -> "KeyPattern":
        """Of what `glob` told. Raises ValueError."""
        marks = [glob[:_MARK_CHARS], glob[_MARK_CHARS : 2 * _MARK_CHARS]]
        found = cls(*(None if mark == _ANY else bytes.fromhex(mark) for mark in marks))
        if found.glob != glob:
            raise ValueError(f"no pattern of keys: {glob[:100]!r}")
        return found

    @property
    def glob(self) -> str:
        """Of keys in hexadecimal."""
        return "".join(_ANY if mark is None else mark.hex() for mark in (self.owner, self.model)) + "*"

    def matches(self, key: bytes) -> bool:
        return (self.owner is None or key.startswith(self.owner)) and (
            self.model is None or key.startswith(self.model, _MARK_BYTES)
        )
