"""What a request by HTTP has of a call by gRPC: the metadata that it brings along, and the status that it ends with."""

import grpc
from worldtree_runtime.errors import InvalidRequest

from worldtree_gateway.authenticator import CREDENTIALS
from worldtree_gateway.errors import FromAWebPage
from worldtree_gateway.http_server import HttpRequest
from worldtree_gateway.metadata import Metadata

_PASSED = (*CREDENTIALS, "x-request-id", "traceparent", "cache-control")
_STATUSES = {
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def metadata_of(request: HttpRequest) -> Metadata:
    """Of its headers, those that a call may have. Raises InvalidRequest, and FromAWebPage."""
    if "origin" in request.headers and not any(name in request.headers for name in CREDENTIALS):
        raise FromAWebPage(request.headers["origin"])
    metadata = tuple((name, request.headers[name]) for name in _PASSED if name in request.headers)
    for name, value in metadata:
        if not (value.isascii() and value.isprintable()):
            raise InvalidRequest(f"headers[{name}]", f"header {name} must be printable ASCII")
    return metadata


def http_status(code: grpc.StatusCode | int) -> int:
    """As google.rpc.Code maps its codes to HTTP. `code`: also as a number."""
    return _STATUSES.get(_CODES[code] if isinstance(code, int) else code, 500)
