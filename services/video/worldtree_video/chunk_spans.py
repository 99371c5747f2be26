"""The trace of each chunk of a play: where its time went, from when it could have been made to when it was taken."""

from collections.abc import Iterator

from worldtree_runtime.logs import current_request_id
from worldtree_runtime.tracing import Past, SideTrace, Span, chunk_trace

from worldtree_video.play import Played


class ChunkSpans:
    """Of one Play call, with the span `span`. For every chunk `next`, then `tell`: who passes it on counts along."""

    def __init__(self, span: Span, *, session: str, model: str, tenant: str) -> None:
        self._span = span
        self._request_id = current_request_id()
        self._attributes = {"worldtree.session": session, "worldtree.model": model, "worldtree.tenant": tenant}
        self._count = 0
        self._trace: SideTrace | None = None

    def next(self) -> str | None:
        """The id of the next chunk's trace; None: it is not among those that are kept."""
        heard = self._span.parent or self._span.context
        self._trace = chunk_trace(self._span, heard, self._request_id, self._count)
        self._count += 1
        return None if self._trace is None else self._trace.trace_id

    def tell(self, played: Played, *, encode_s: float, send_s: float, end_s: float, taken: bool) -> None:
        """The chunk has left: encoded from `encode_s`, sent from `send_s`, `taken` at `end_s` or given up then.

        All by the engine's clock, which is time.monotonic().
        """
        if self._trace is None:
            return
        parts = [*made(played), Past("hold", played.made_s, encode_s), Past("encode", encode_s, send_s)]
        parts.append(Past("send", send_s, end_s, failed=not taken))
        chunk = played.chunk
        attributes: dict[str, str | bool | int | float] = {
            **self._attributes,
            "worldtree.chunk.index": chunk.record.chunk_index,
            "worldtree.chunk.nfe": chunk.record.nfe,
            "worldtree.chunk.tick_count": len(chunk.timing.ticks),
            "worldtree.chunk.denoise_s": chunk.timing.denoise_s,
            "worldtree.chunk.commit_s": chunk.timing.commit_s,
            "worldtree.chunk.late_s": played.late_s,
            "worldtree.chunk.degraded": played.degraded,
        }
        if played.control_arrival_s is not None:
            attributes["worldtree.chunk.control_s"] = end_s - played.control_arrival_s
        self._trace.lead(Past("chunk", parts[0].begin_s, end_s, attributes, failed=not taken), parts)


def made(played: Played) -> Iterator[Past]:
    """Its way through the engine: one span for the wait, one for each tick. A chunk that was known takes none."""
    timing = played.chunk.timing
    queued_s = timing.ticks[0].begin_s if timing.ticks else played.made_s
    yield Past("queue", queued_s - timing.queue_s, queued_s)
    for tick in timing.ticks:
        yield Past("tick", tick.begin_s, tick.end_s, {"worldtree.tick.batch_size": tick.member_count})
