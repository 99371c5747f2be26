"""Calls that a gateway answers itself."""

from worldtree._calls import Call
from worldtree.errors import InvalidRequest
from worldtree.gateway.v1 import gateway_pb2 as pb
from worldtree.introspection import CachePurge


def purge_cache(tenant: str | None, digest: str | None, *, everything: bool) -> Call[CachePurge]:
    if everything == bool(tenant or digest):
        raise InvalidRequest("purge_cache wants a tenant, a digest or both, or everything=True and neither of them")
    request = pb.PurgeCacheRequest(tenant=tenant or "", digest=digest or "", all=everything)
    return Call("PurgeCache", request, _purge, retry=True, service="gateway")


def _purge(answer: pb.PurgeCacheResponse) -> CachePurge:
    return CachePurge(
        local_count=answer.local_count, shared_count=answer.shared_count, all_gateways=answer.all_gateways
    )
