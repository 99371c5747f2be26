"""Who may ask by HTTP at all, found from a request's head: a stranger's body is not read."""

from worldtree_runtime.errors import WorldtreeError

from worldtree_gateway.http_calls import metadata_of
from worldtree_gateway.http_server import HttpRequest
from worldtree_gateway.metrics import GatewayMetrics
from worldtree_gateway.security import Security


class HttpDoor:
    """The guard's question, asked sooner. The guard asks again of the call that comes of it, then for the role too."""

    def __init__(self, security: Security, metrics: GatewayMetrics) -> None:
        self._authenticator, self._audit = security.authenticator, security.audit
        self._metrics = metrics

    async def admit(self, request: HttpRequest, method: str) -> None:
        """Raises what there is against its caller, as the guard does. `method`: as the audit log names it."""
        metadata = metadata_of(request)
        if self._authenticator is None:
            return
        try:
            await self._authenticator.identify(metadata)
        except WorldtreeError as error:
            self._metrics.refused_callers.labels(error.reason).inc()
            self._audit.refused(None, method, request.peer, error)
            raise
