"""Which version of a model is asked, where a request names none: so many of a hundred requests a new one, to try it.

A request always gets the same version while the shares stay, whichever gateway it comes to: repeated, it is the same
call, and its answer lies in the cache under one key.
"""

import hashlib
from collections.abc import Mapping

from google.protobuf.message import DecodeError

from worldtree_gateway.domain import Method
from worldtree_gateway.identity import current_caller
from worldtree_gateway.shares import Shares


class Canary:
    """Fills in versions by `shares`; what is left of 1 is the newest version's."""

    def __init__(self, shares: Shares) -> None:
        self._shares = shares

    def pinned(self, method: Method, request: bytes) -> bytes:
        """The request with a version where it has a model of ours, and neither a version, nor a digest, nor a merge's
        name, which is of the version that it was made of."""
        if not self._shares or method.model_field is None or method.request_class is None:
            return request
        try:
            message = method.request_class.FromString(request)
        except DecodeError:
            return request  # its service says what is wrong with it
        model = getattr(message, method.model_field)
        versions = self._shares.get(model.name)
        if not versions or model.version or model.digest or method.names_merge(message):
            return request
        model.version = self._drawn(versions, message.SerializeToString(deterministic=True))
        return message.SerializeToString(deterministic=True)

    def _drawn(self, versions: Mapping[str, float], request: bytes) -> str:
        hashed = hashlib.sha256(current_caller().key_id.encode() + b"\0" + request).digest()
        place = int.from_bytes(hashed[:8], "big") / 2**64
        for version, share in versions.items():
            place -= share
            if place < 0:
                return version
        return ""
