"""The metrics of all workers of a gateway as one page: each series with the worker that it is of."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping

from prometheus_client.core import Metric
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

_TIMEOUT_S = 2.0
_LABEL = "worker"

_log = logging.getLogger(__name__)


class WorkerPages(Collector):
    """`addresses`: where the workers that there are show their metrics, by their number."""

    def __init__(self, addresses: Callable[[], Mapping[int, str]]) -> None:
        self._addresses = addresses
        self._pages: dict[int, str] = {}
        self.ready = False  # whether any of them took calls when they were asked last

    async def fetch(self) -> None:
        """Asks all of them. One that does not answer is left out."""
        addresses = self._addresses()
        found = await asyncio.gather(*(self._asked(address) for address in addresses.values()))
        self._pages = {index: page for index, (page, _) in zip(addresses, found, strict=True) if page is not None}
        self.ready = any(ready for _, ready in found)

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for index, page in self._pages.items():
            for family in text_string_to_metric_families(page):  # type: ignore[no-untyped-call]
                merged = families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type, family.unit)
                )
                for name, labels, value, timestamp, exemplar, *_ in family.samples:
                    merged.samples.append(Sample(name, {**labels, _LABEL: str(index)}, value, timestamp, exemplar))
        return families.values()

    async def _asked(self, address: str) -> tuple[str | None, bool]:
        """Its page and whether it is ready."""
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                _, page = await _get(address, "/metrics")
                status, _ = await _get(address, "/readyz")
        except (OSError, TimeoutError, ValueError) as error:
            _log.warning("a worker does not tell its metrics", extra={"address": address, "reason": str(error)})
            return None, False
        return page, status == "200"


async def _get(address: str, path: str) -> tuple[str, str]:
    """The status and the body of what is there."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    try:
        asked = (f"GET {path} HTTP/1.1", f"Host: {address}", f"Accept: {CONTENT_TYPE_LATEST}", "", "")
        writer.write("\r\n".join(asked).encode("latin-1"))
        await writer.drain()
        head, whole, body = (await reader.read()).partition(b"\r\n\r\n")
        if not whole:
            raise ValueError("it ended before its answer did")
        return head.split(b" ", 2)[1].decode(), body.decode()
    finally:
        writer.close()
