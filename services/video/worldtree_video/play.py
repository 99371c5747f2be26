"""A run in real time: a person steers, chunks are made against a clock, a bounded look ahead of it."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from worldtree_video.admission import Paced
from worldtree_video.branch import Branch
from worldtree_video.degrade import NfeLadder
from worldtree_video.domain import Action, Chunk, Priority, Record
from worldtree_video.introspection import PlayRecord


@dataclass(frozen=True, slots=True)
class Played:
    """A chunk and how it kept its time. `control_arrival_s`: None when the action was repeated.

    `done_action_count`: of the actions it was sent, those that were used or forgotten so far, this chunk's included.
    `degraded`: made with fewer evaluations than its session asks for. `made_s`: when it was, by the engine's clock.
    """

    chunk: Chunk
    control_arrival_s: float | None
    late_s: float
    queued_count: int
    done_action_count: int = 0
    degraded: bool = False
    made_s: float = 0.0


class PlaySink(Protocol):
    """Where played chunks go. Called under the engine's lock, from its thread: must not block."""

    def put(self, item: Played) -> None:
        """One more chunk."""

    def close(self, error: Exception | None = None) -> None:
        """No more will come."""


class Play:
    """The clock: chunk n is due at `anchor + (n + 1) x period` and may be started `lookahead` periods before that.

    So with a look-ahead of 1 a chunk has its own period to be made in, and a control waits for one chunk at most.
    One that comes while a chunk is made may still get into it (`outdated`), so that fewer of them just miss theirs.

    Waiting for an action and pauses move the anchor, so time lost to a person is never made up for in a burst; so
    does a late chunk, once its lateness has been reported. Every method is called under the engine's lock.

    `period_s` 0: without a clock, as fast as it goes; it has no deadline, so it is worked off like a step.
    `degrade_to`: numbers of evaluations to take instead of its own when a chunk would be late; empty: none.
    `admitted`: it goes on with a play that broke off, which was promised its fps then.
    """

    given = None
    steered = True

    def __init__(
        self,
        branch: Branch,
        *,
        period_s: float,
        lookahead_chunks: int,
        repeat: bool,
        sink: PlaySink,
        now: float,
        frames_per_chunk: int = 1,
        degrade_to: Sequence[int] = (),
        tenant: str = "anonymous",
        admitted: bool = False,
        session: str = "",
    ) -> None:
        self.branch = branch
        self.session = session
        self.admitted = admitted
        self.tenant = tenant
        self.priority = Priority.PLAY if period_s else Priority.STEP
        self.period_s = period_s
        self.fps = frames_per_chunk / period_s if period_s else 0.0
        self.lookahead_chunks = lookahead_chunks
        self.chunk_count = 0
        self.missed_count = 0  # of these, made after they were due
        self.degraded_count = 0  # of these, made with fewer evaluations
        self._ladder = NfeLadder(branch.nfe, degrade_to)
        self._sent_count = 0  # actions
        self._repeat = repeat
        self._sink = sink
        self._queue: deque[tuple[Action, float]] = deque()
        self._last: Action | None = None
        self._making: tuple[Action, float | None] | None = None
        self._remade = False  # the chunk in the making, for a newer action
        self._anchor_s = now
        self._made_count = 0  # since the anchor's chunk 0
        self._unsent_count = 0  # delivered, and not yet taken by the transport
        self._starving = True  # no action waits, so the clock waits too
        self._paused = False
        self.held = False  # its branch is being moved
        self._draining = False
        self._leaving = False
        self._closed = False

    @property
    def over(self) -> bool:
        return self._closed

    @property
    def paused(self) -> bool:
        return self._paused

    @property
    def queued_count(self) -> int:
        return len(self._queue)

    @property
    def paced(self) -> Paced | None:
        return self if self.period_s else None

    @property
    def full_nfe(self) -> int:
        return self.branch.nfe

    @property
    def deadline_s(self) -> float:
        return self._anchor_s + (self._made_count + 1) * self.period_s

    @property
    def next_start_s(self) -> float:
        return self._anchor_s + (self._made_count + 1 - self.lookahead_chunks) * self.period_s

    @property
    def fresh(self) -> bool:
        """Whether it has never been sent an action, so that its clock has never run."""
        return self._sent_count == 0

    @property
    def left(self) -> tuple[int, int]:
        """One chunk: it has no end that is known."""
        return self.branch.nfe, 1

    def pace(self, left_s: float, chunk_s: Callable[[int], float]) -> None:
        self._ladder.choose(left_s, chunk_s)

    def record(self, now: float) -> PlayRecord:
        """How it keeps its time. A clock that stands has a whole period left."""
        stands = self._paused or self._starving or self.held
        slack_s = self.period_s if stands or not self.period_s else self.deadline_s - now
        return PlayRecord(self.fps, slack_s, self.chunk_count, self.missed_count, self.degraded_count)

    def due(self, now: float) -> float | None:
        if self._closed or self._paused or self._leaving or self.held or self._unsent_count >= self.lookahead_chunks:
            return None
        if not self._queue and (self._draining or not self._repeat or self._last is None):
            return None
        if not self.period_s:
            return now
        return self.next_start_s

    def next_record(self) -> Record:
        if self._queue:
            action, arrival_s = self._queue.popleft()
            self._making = (action, arrival_s)
        else:
            assert self._last is not None, "a play with no queued and no last action is never due"
            self._making = (self._last, None)
        self._last = self._making[0]
        return self.branch.next_record(self._last, nfe=self._ladder.nfe)

    def deliver(self, chunk: Chunk, now: float) -> None:
        assert self._making is not None, "a chunk came that the play did not ask for"
        _, arrival_s = self._making
        self._making = None
        late_s = max(0.0, now - self.deadline_s) if self.period_s else 0.0
        degraded = chunk.record.nfe < self.branch.nfe
        self.chunk_count += 1
        self.missed_count += late_s > 0
        self.degraded_count += degraded
        self._anchor_s += late_s
        self._made_count += 1
        self._remade = False
        self._unsent_count += 1
        done_count = self._sent_count - len(self._queue)
        self._sink.put(Played(chunk, arrival_s, late_s, len(self._queue), done_count, degraded, now))
        self._starving = not self._queue and not self._repeat
        self._close_if_done()

    def fail(self, error: Exception) -> None:
        self._close(error)

    def act(self, actions: Iterable[Action], now: float, *, replace: bool = False, delay_s: float = 0.0) -> None:
        """Queues actions; `replace` forgets those that have not been started. None is taken after a stop.

        `delay_s`: how long a clock that waited for an action waits on.
        """
        if self._draining:
            return
        if replace:
            self._queue.clear()
        for action in actions:
            self._queue.append((action, now))
            self._sent_count += 1
        if self._queue and self._starving:
            # The clock waited with us: the next chunk is due one period from now at the earliest.
            behind_s = now - (self._anchor_s + self._made_count * self.period_s)
            self._anchor_s += max(0.0, behind_s) + delay_s
            self._starving = False

    def outdated(self, *, replace: bool) -> bool:
        """Whether the chunk in the making should rather use an action that came just now, `replace`: instead of all.

        Nobody has seen anything of that chunk: it may be begun anew, if there is time. Once, or a stream of actions
        would never get one.
        """
        if self._making is None or not self._queue or self._remade:
            return False
        if self._paused or self.held or self._draining:
            return False  # the chunk in flight is the last for now
        return replace or self._making[1] is None

    def remake(self) -> None:
        """The chunk in the making is dropped: its action is forgotten, and the next one is taken instead."""
        self._making = None
        self._remade = True

    def taken(self) -> None:
        """The transport has taken a delivered chunk: there is room for another."""
        self._unsent_count -= 1

    def pause(self) -> None:
        """Stops the clock."""
        self._paused = True

    def resume(self, now: float) -> None:
        """Starts the clock again where it stopped. Harmless for one that is not paused."""
        if not self._paused:
            return  # or each resume would give the play another look ahead
        self._paused = False
        self._anchor_s = now - self._made_count * self.period_s

    def cleared(self) -> None:
        """The branch was moved: the queue and the chunk in the making are forgotten."""
        self._queue.clear()
        self._making = None
        self._last = None
        self._starving = True

    def finish(self) -> None:
        """No control will come any more: ends once the queued actions are done, or at once when paused for ever."""
        self._draining = True
        self._close_if_done()

    def stop(self) -> None:
        """Ends after the chunk in flight."""
        self._queue.clear()
        self.finish()

    def leave(self) -> None:
        """Ends after the chunk in flight. What is queued is not done, nor counted so: another replica will do it."""
        self._leaving = True
        self.finish()

    def _close_if_done(self) -> None:
        if self._draining and self._making is None and (self._paused or self._leaving or not self._queue):
            self._close(None)

    def _close(self, error: Exception | None) -> None:
        if not self._closed:
            self._closed = True
            self._sink.close(error)
