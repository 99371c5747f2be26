"""Where a chunk spent its time, as spans."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from worldtree_runtime.tracing import Past, TraceContext
from worldtree_video.chunk_spans import ChunkSpans, made
from worldtree_video.domain import Action, Chunk, Record, Tick, Timing
from worldtree_video.play import Played

HEARD = TraceContext("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", True)


@dataclass
class Kept:
    """A span that keeps every second trace beside it."""

    parent: TraceContext | None = None
    context: TraceContext = HEARD
    asked: list[tuple[TraceContext, str]] = field(default_factory=list)
    told: list[tuple[Past, Sequence[Past]]] = field(default_factory=list)
    trace_id = "c" * 32

    def aside(self, of: TraceContext, key: str) -> Any:
        self.asked.append((of, key))
        return self if len(self.asked) % 2 else None

    def lead(self, root: Past, parts: Sequence[Past]) -> None:
        self.told.append((root, parts))


def played(*ticks: Tick, index: int = 0, control_arrival_s: float | None = None) -> Played:
    record = Record(chunk_index=index, action=Action(1), seed=7, nfe=2, key=b"k")
    timing = Timing(queue_s=0.5, ticks=list(ticks))
    return Played(Chunk(record, b"", timing), control_arrival_s, 0.25, 0, made_s=13.0)


def tell(spans: ChunkSpans, item: Played, *, taken: bool = True) -> str | None:
    trace_id = spans.next()
    spans.tell(item, encode_s=13.5, send_s=13.75, end_s=14.0, taken=taken)
    return trace_id


def test_a_chunk_waits_and_then_is_in_one_tick_after_the_other() -> None:
    queue, first, second = made(played(Tick(11.0, 11.5, 3), Tick(12.0, 13.0, 1)))
    assert (queue.name, queue.begin_s, queue.end_s) == ("queue", 10.5, 11.0)
    assert (first.begin_s, first.end_s, first.attributes) == (11.0, 11.5, {"worldtree.tick.batch_size": 3})
    assert (second.name, second.begin_s, second.end_s) == ("tick", 12.0, 13.0)


def test_a_chunk_that_was_known_only_waits() -> None:
    (queue,) = made(played())
    assert (queue.name, queue.begin_s, queue.end_s) == ("queue", 12.5, 13.0)


@pytest.mark.parametrize("taken", [True, False])
def test_its_trace_is_from_when_it_could_be_made_to_when_it_was_taken(taken: bool) -> None:
    span = Kept()
    spans = ChunkSpans(span, session="s.a", model="tiny", tenant="acme")
    tell(spans, played(Tick(11.0, 13.0, 1), index=4, control_arrival_s=10.0), taken=taken)
    ((root, parts),) = span.told
    assert (root.name, root.begin_s, root.end_s, root.failed) == ("chunk", 10.5, 14.0, not taken)
    assert [part.name for part in parts] == ["queue", "tick", "hold", "encode", "send"]
    assert [part.failed for part in parts] == [False] * 4 + [not taken]
    assert (parts[2].begin_s, parts[2].end_s) == (13.0, 13.5)
    assert root.attributes["worldtree.session"] == "s.a"
    assert root.attributes["worldtree.chunk.index"] == 4
    assert root.attributes["worldtree.chunk.late_s"] == 0.25
    assert root.attributes["worldtree.chunk.control_s"] == 4.0


def test_chunks_are_counted_also_those_that_are_not_kept_and_named_by_what_was_heard() -> None:
    span = Kept(parent=HEARD, context=TraceContext("a" * 32, "b" * 16, True))
    spans = ChunkSpans(span, session="s.a", model="tiny", tenant="acme")
    assert [tell(spans, played(index=index)) for index in (5, 6, 7)] == ["c" * 32, None, "c" * 32]
    assert [key.rpartition(" ")[2] for _, key in span.asked] == ["0", "1", "2"]
    assert {of for of, _ in span.asked} == {HEARD}
    assert [root.attributes["worldtree.chunk.index"] for root, _ in span.told] == [5, 7]
