"""What makes two requests the same request."""

import hashlib
from dataclasses import dataclass

from google.protobuf.message import DecodeError, Message
from worldtree.common.v1 import common_pb2

from worldtree_gateway.domain import ANONYMOUS_TENANT, CacheRule, Method

_FORMAT = b"worldtree-answer-1"


@dataclass(frozen=True, slots=True)
class CacheableRequest:
    """A request in its canonical form. It has a key once no reference is `unpinned`."""

    method: Method
    rule: CacheRule
    message: Message

    @property
    def unpinned(self) -> common_pb2.ModelRef | None:
        """The reference that doesn't say which digest it means. None: it does, or such requests have none."""
        if self.rule.model_field is None:
            return None
        ref: common_pb2.ModelRef = getattr(self.message, self.rule.model_field)
        return None if ref.digest else ref

    def with_digest(self, digest: str) -> "CacheableRequest":
        """The same request, pinned: a backend with another version refuses it rather than fill our cache with it."""
        assert self.rule.model_field is not None
        pinned = type(self.message)()
        pinned.CopyFrom(self.message)
        getattr(pinned, self.rule.model_field).digest = digest
        return CacheableRequest(self.method, self.rule, pinned)

    def canonical(self) -> bytes:
        """The bytes that are sent and hashed: equal for equal messages, in whatever order a client wrote them."""
        return self.message.SerializeToString(deterministic=True)


def parse(method: Method, rule: CacheRule, request: bytes) -> CacheableRequest | None:
    """None: the bytes are no such message, and the backend says so better."""
    try:
        return CacheableRequest(method, rule, rule.request_class.FromString(request))
    except DecodeError:
        return None


def key(request: CacheableRequest, canonical: bytes, tenant: str = ANONYMOUS_TENANT) -> bytes:
    """SHA-256, 32 bytes. The model's digest is in the canonical bytes and once more on its own."""
    digest = getattr(request.message, request.rule.model_field).digest if request.rule.model_field else ""
    hashed = hashlib.sha256(_FORMAT)
    for part in (request.method.path.encode(), digest.encode(), b"" if request.rule.shared else tenant.encode()):
        hashed.update(len(part).to_bytes(8, "little"))  # so that no two lists of parts are one string
        hashed.update(part)
    hashed.update(canonical)
    return hashed.digest()
