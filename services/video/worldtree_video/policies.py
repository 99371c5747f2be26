"""Which blocks of a history stay in view: the built-in policies, and those of plug-ins.

A policy is a pure function of what a history holds: two histories with equal keys must get equal answers, or worlds
that should be the same differ. So a plug-in whose answers change takes another name.

A plug-in is an entry point of the group `worldtree.kv_policies`: a callable that gets the `KvPolicy` of a session and
returns a `Policy`. Its name is what a client asks for (`kv.plugin`); it is imported when the first one does.

Summaries (`domain.Summary`) are made by the model's commit, only for a `KvPolicy` that `compares`: the pose at the end
of each chunk where the package declares how actions move one, else the mean of its keys.
"""

import math
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from itertools import pairwise
from operator import mul
from typing import Any, Protocol, TypeVar

from worldtree_video.domain import Action, KvPolicy, PolicyKind, Summary, SummaryKind
from worldtree_video.errors import PolicyBroken, UnknownPolicy

ENTRY_POINT_GROUP = "worldtree.kv_policies"
Answer = TypeVar("Answer")


class History(Protocol):
    """What a policy may know. Positions count from 0, the first chunk of the start."""

    def __len__(self) -> int:
        """Chunks so far."""

    def action(self, position: int) -> Action | None:
        """What steered a chunk; None for the first."""

    def summary(self, position: int) -> Summary | None:
        """What can be compared of a chunk that is kept; None where nothing is known of it."""


class Policy(Protocol):
    """Decides what the model sees."""

    def visible(self, history: History) -> list[int]:
        """Positions in view for the next chunk: ascending, at most `window_chunks`, the newest always last."""

    def kept(self, length: int) -> Collection[int]:
        """Positions below `length` that `visible` may ask for, then or later. What it leaves out never comes back.

        So `kept` of a longer history has no position below `length` that is not here too.
        """

    def can_grow(self, length: int) -> bool:
        """Whether a history of `length` chunks may get one more."""


@lru_cache(maxsize=256)
def resolve(policy: KvPolicy) -> Policy:
    """The rules of a policy. Raises UnknownPolicy for a plug-in that is not installed, PolicyBroken for a bad one."""
    if policy.kind is PolicyKind.RETRIEVE:
        return Retrieve(policy)
    if policy.kind is PolicyKind.PLUGIN:
        return CheckedPlugin(policy)
    return Positional(policy)


def plugin_names() -> list[str]:
    """Names of the plug-ins that are installed."""
    return sorted({point.name for point in entry_points(group=ENTRY_POINT_GROUP)})


class Positional:
    """full, sliding and sink_window: what is in view follows from the length, and what left it never comes back."""

    def __init__(self, policy: KvPolicy) -> None:
        self._policy = policy

    def visible(self, history: History) -> list[int]:
        return self._policy.visible(len(history))

    def kept(self, length: int) -> list[int]:
        return self._policy.visible(length)

    def can_grow(self, length: int) -> bool:
        return self._policy.can_grow(length)


class Retrieve:
    """The sinks, the older chunks that matter now, and the newest `recent_chunks`.

    The older ones are chosen among the `bank_chunks` before the recent ones, by what they share with the newest:
    - poses: the distance in steps, plus 2 for each quarter turn between the two headings: a view from the next tile
      shows more of what is ahead than one from here to the side. Of equal poses the latest comes first and the others
      after all that differ: they show the same.
    - keys: the cosine of the angle between them.
    Equally good ones: the later first. Without a summary of the newest chunk: the latest.
    """

    def __init__(self, policy: KvPolicy) -> None:
        self._window = policy.window_chunks
        self._sinks = policy.sink_chunks
        self._recent = policy.recent_chunks
        self._bank = policy.bank_chunks

    def visible(self, history: History) -> list[int]:
        length = len(history)
        if length <= self._window:
            return list(range(length))
        recent_from = length - self._recent
        bank = range(max(self._sinks, recent_from - self._bank), recent_from)
        chosen = _ranked(history, bank)[: self._window - self._sinks - self._recent]
        return [*range(self._sinks), *sorted(chosen), *range(recent_from, length)]

    def kept(self, length: int) -> Collection[int]:
        if length <= self._window:
            return range(length)
        return {*range(self._sinks), *range(max(self._sinks, length - self._recent - self._bank), length)}

    def can_grow(self, length: int) -> bool:
        del length
        return True


class CheckedPlugin:
    """A stranger's policy, whose every answer is looked at: a wrong one ends the run that it was for, and no other."""

    def __init__(self, policy: KvPolicy) -> None:
        self._policy = policy
        self._name = policy.plugin
        found = [point for point in entry_points(group=ENTRY_POINT_GROUP) if point.name == policy.plugin]
        if not found:
            raise UnknownPolicy(policy.plugin, plugin_names())
        self._plugin: Policy = self._ask("cannot be loaded", lambda: _load(found[0])(policy))

    def visible(self, history: History) -> list[int]:
        length, most = len(history), self._policy.window_chunks
        positions = self._ask("visible() raised", lambda: list(self._plugin.visible(history)))
        shown = f"visible() of {length} chunks is {str(positions)[:80]}"
        self._integers(positions, shown)
        if any(after <= before for before, after in pairwise(positions)):
            raise PolicyBroken(self._name, f"{shown}: not ascending")
        if len(positions) > most:
            raise PolicyBroken(self._name, f"{shown}: {len(positions)} positions, the window has {most}")
        if length and (not positions or positions[-1] != length - 1):
            raise PolicyBroken(self._name, f"{shown}: the newest, {length - 1}, is not the last")
        lost = set(positions).difference(self.kept(length))
        if lost:
            raise PolicyBroken(self._name, f"{shown}: kept({length}) leaves out {sorted(lost)[:8]}")
        return positions

    def kept(self, length: int) -> Collection[int]:
        most = self._policy.window_chunks + self._policy.bank_chunks
        positions = self._ask("kept() raised", lambda: set(self._plugin.kept(length)))
        self._integers(positions, f"kept({length}) is {str(positions)[:80]}")
        if len(positions) > most:
            raise PolicyBroken(
                self._name, f"kept({length}) has {len(positions)} positions, window_chunks + bank_chunks is {most}"
            )
        if positions and not (min(positions) >= 0 and max(positions) < length):
            raise PolicyBroken(self._name, f"kept({length}) goes from {min(positions)} to {max(positions)}")
        return positions

    def can_grow(self, length: int) -> bool:
        return self._ask("can_grow() raised", lambda: bool(self._plugin.can_grow(length)))

    def _integers(self, positions: Collection[int], shown: str) -> None:
        if not all(type(position) is int for position in positions):
            raise PolicyBroken(self._name, f"{shown}: not all integers")

    def _ask(self, problem: str, question: Callable[[], Answer]) -> Answer:
        try:
            return question()
        except Exception as error:  # an edge: whatever a stranger's code raises belongs to the run that asked
            raise PolicyBroken(self._name, f"{problem}: {type(error).__name__}: {str(error)[:200]}") from error


def _load(point: EntryPoint) -> Callable[[KvPolicy], Any]:
    factory: Callable[[KvPolicy], Any] = point.load()
    return factory


def _ranked(history: History, positions: range) -> list[int]:
    """Positions, the one that matters most first."""
    latest_first = list(reversed(positions))
    newest = history.summary(len(history) - 1)
    if newest is None:
        return latest_first
    seen: set[tuple[float, ...]] = set()
    ranks: dict[int, tuple[bool, float]] = {}
    for position in latest_first:
        summary = history.summary(position)
        if summary is None or summary.kind is not newest.kind:
            ranks[position] = (True, math.inf)
        elif summary.kind is SummaryKind.POSE:
            ranks[position] = (summary.values in seen, _pose_distance(summary.values, newest.values))
            seen.add(summary.values)
        else:
            ranks[position] = (False, -_cosine(summary.values, newest.values))
    return sorted(latest_first, key=ranks.__getitem__)  # stable: of equal ranks the latest stays first


def _pose_distance(one: Sequence[float], other: Sequence[float]) -> float:
    apart = abs(one[2] - other[2]) % 1.0
    quarter_turns = 4.0 * min(apart, 1.0 - apart)
    return math.hypot(one[0] - other[0], one[1] - other[1]) + 2.0 * quarter_turns


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    # Plain sums in order: the same on every machine, and fast enough for a bank of hundreds.
    length = math.sqrt(sum(map(mul, one, one)) * sum(map(mul, other, other)))
    return sum(map(mul, one, other)) / length if length else 0.0
