"""The loop of a policy: who is due first goes first, who has left is not run, a round that fails fails alone."""

import asyncio
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from worldtree_navigator.errors import PoisonedPlan, PolicyStopped, RoundFailed
from worldtree_navigator.metrics import NavigatorMetrics
from worldtree_navigator.policy_engine import PolicyEngine


class Rounds:
    """A draft of so many rounds."""

    def __init__(self, name: str, rounds: int = 1, *, broken: bool = False) -> None:
        self.name, self.left, self.is_broken = name, rounds, broken

    @property
    def is_done(self) -> bool:
        return self.left == 0


class Gate:
    """A policy that runs when it is let."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.fails = False
        self.may_run = threading.Event()

    def step(self, drafts: Sequence[Any]) -> None:
        self.may_run.wait(10)
        self.batches.append([draft.name for draft in drafts])
        if self.fails:
            raise RuntimeError("out of memory")
        for draft in drafts:
            draft.left -= 1


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def engine(gate: Gate) -> Iterator[PolicyEngine]:
    made = PolicyEngine(gate, NavigatorMetrics(CollectorRegistry()), name="p", max_batch=2)  # type: ignore[arg-type]
    made.start()
    yield made
    gate.may_run.set()
    made.stop()


async def asked(engine: PolicyEngine, *drafts: tuple[Rounds, float]) -> list[asyncio.Task[Any]]:
    tasks = []
    for draft, due_s in drafts:
        tasks.append(asyncio.create_task(engine.finish(draft, due_s=due_s)))  # type: ignore[arg-type]
        await asyncio.sleep(0)
    return tasks


async def test_who_is_due_first_goes_first_and_rounds_are_shared(engine: PolicyEngine, gate: Gate) -> None:
    first = await asked(engine, (Rounds("first"), 0.0))
    await asyncio.sleep(0.05)  # it runs, and waits at the gate
    others = await asked(engine, (Rounds("late"), 9.0), (Rounds("long", 3), 2.0), (Rounds("soon"), 1.0))
    gate.may_run.set()
    await asyncio.gather(*first, *others)
    assert gate.batches == [["first"], ["soon", "long"], ["long", "late"], ["long"]]


async def test_who_has_left_is_not_run(engine: PolicyEngine, gate: Gate) -> None:
    first = await asked(engine, (Rounds("first"), 0.0))
    await asyncio.sleep(0.05)
    (gone,) = await asked(engine, (Rounds("gone"), 1.0))
    gone.cancel()
    await asyncio.sleep(0)
    gate.may_run.set()
    await asyncio.gather(*first, *await asked(engine, (Rounds("next"), 2.0)))
    assert gate.batches == [["first"], ["next"]]


async def test_a_round_that_fails_fails_those_who_shared_it(engine: PolicyEngine, gate: Gate) -> None:
    gate.may_run.set()
    gate.fails = True
    (failing,) = await asked(engine, (Rounds("a"), 0.0))
    with pytest.raises(RoundFailed, match="policy p failed"):
        await failing
    gate.fails = False
    (fine,) = await asked(engine, (Rounds("b"), 0.0))
    assert (await fine).run_s >= 0


async def test_what_is_no_number_is_told_to_whom_it_belongs(engine: PolicyEngine, gate: Gate) -> None:
    gate.may_run.set()
    broken, fine = await asked(engine, (Rounds("a", broken=True), 0.0), (Rounds("b"), 0.0))
    with pytest.raises(PoisonedPlan, match="policy p"):
        await broken
    await fine


async def test_a_stopping_engine_ends_what_waits_and_takes_nothing_more(engine: PolicyEngine, gate: Gate) -> None:
    waiting = await asked(engine, (Rounds("a", 2), 0.0), (Rounds("b"), 1.0), (Rounds("c"), 2.0))
    stopping = asyncio.create_task(asyncio.to_thread(engine.stop))
    await asyncio.sleep(0.05)
    with pytest.raises(PolicyStopped):
        await engine.finish(Rounds("d"))  # type: ignore[arg-type]
    gate.may_run.set()
    await asyncio.gather(stopping, *waiting)


async def test_its_thread_goes_before_others_where_that_is_allowed(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nice() -> int:
        engine = PolicyEngine(gate, NavigatorMetrics(CollectorRegistry()), name="p", max_batch=1)  # type: ignore[arg-type]
        engine.start()
        try:
            await engine.finish(Rounds("a"))  # type: ignore[arg-type]
            return os.getpriority(os.PRIO_PROCESS, engine._thread.native_id or 0)
        finally:
            engine.stop()

    gate.may_run.set()
    assert await nice() in (-10, 0), "0 for who has no CAP_SYS_NICE"

    def refuse(*_: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "setpriority", refuse)
    assert await nice() == 0
