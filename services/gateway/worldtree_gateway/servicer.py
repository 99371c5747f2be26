"""What operators ask of the gateway itself."""

import logging
from typing import Any

from worldtree.gateway.v1 import gateway_pb2 as pb
from worldtree.gateway.v1.gateway_pb2_grpc import GatewayServicer

from worldtree_gateway.errors import PurgeUnclear
from worldtree_gateway.identity import current_caller
from worldtree_gateway.keys import KeyPattern
from worldtree_gateway.purges import Purges
from worldtree_gateway.sharing import Sharing

_log = logging.getLogger(__name__)


class GatewayAdmin(GatewayServicer):
    """The service worldtree.gateway.v1.Gateway. The guard lets operators in only."""

    def __init__(self, purges: Purges, sharing: Sharing) -> None:
        self._purges, self._sharing = purges, sharing

    async def PurgeCache(self, request: pb.PurgeCacheRequest, _context: Any) -> pb.PurgeCacheResponse:
        if request.all == bool(request.tenant or request.digest):
            raise PurgeUnclear
        owner = self._sharing.owner(request.tenant) if request.tenant else None
        what = {"tenant": request.tenant or "all", "digest": request.digest or "all", "key": current_caller().key_id}
        _log.info("cached answers are purged", extra=what)
        purged = await self._purges.purge(KeyPattern.of(owner, request.digest or None))
        counts = {"local_count": purged.local_count, "shared_count": purged.shared_count}
        _log.info("cached answers were purged", extra={**what, **counts})
        return pb.PurgeCacheResponse(**counts, all_gateways=self._purges.reaches_all)
