"""The engine's loop: batches, refusals, and members that fail alone."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from worldtree_multitask.config import MultitaskSettings
from worldtree_multitask.creations import Creations
from worldtree_multitask.domain import blend_of
from worldtree_multitask.errors import EngineStopped, PoisonedAnswer, TooManyCreations, TooManyWaiting
from worldtree_multitask.merging import Cancelled, Step
from worldtree_multitask.metrics import MultitaskMetrics
from worldtree_multitask.served import Served
from worldtree_runtime.model_repository import ModelRepository
from worldtree_runtime.multitask_package import MultitaskPackage
from worldtree_runtime.testing_experts import TinyExperts


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    folder = TinyExperts().write(tmp_path)
    stored = ModelRepository(tmp_path, MultitaskPackage).read(folder)
    settings = MultitaskSettings(max_batch=8, max_waiting_images=20)
    made = Served(stored, settings, MultitaskMetrics(CollectorRegistry()))
    yield made
    made.engine.stop()
    made.engine.check_integrity()


def pixels(count: int) -> Any:
    return np.random.default_rng(count).integers(0, 256, (count, 8, 8, 3), np.uint8)


def plain(served: Served, scale: float = 0.3) -> Any:
    return blend_of(served.stored.digest, np.full((2, 3), scale, np.float32), None)


async def test_requests_of_one_merge_share_a_run(served: Served) -> None:
    blend = plain(served)
    calls = [asyncio.create_task(served.engine.predict(blend, pixels(2), ["hue"])) for _ in range(4)]
    await asyncio.sleep(0)  # all wait before the loop begins
    served.engine.start()
    assert {answer.batch_size for answer in await asyncio.gather(*calls)} == {8}


async def test_each_gets_the_tasks_that_he_asked_for(served: Served) -> None:
    served.engine.start()
    blend = plain(served)
    answers = await asyncio.gather(
        served.engine.predict(blend, pixels(2), ["hue"]), served.engine.predict(blend, pixels(2), ["side", "bright"])
    )
    assert [list(answer.probabilities) for answer in answers] == [["hue"], ["side", "bright"]]


async def test_weights_that_answer_with_no_number_fail_who_asked_and_nobody_else(served: Served) -> None:
    served.engine.start()
    poisoned = blend_of(served.stored.digest, None, np.full(served.contents.layout.size, 3e38, np.float32))
    with pytest.raises(PoisonedAnswer, match="values that are not finite"):
        await served.engine.predict(poisoned, pixels(2), ["hue"])
    assert np.isfinite((await served.engine.predict(plain(served), pixels(2), ["hue"])).probabilities["hue"]).all()


async def test_one_who_leaves_is_dropped_before_his_run(served: Served) -> None:
    blend = plain(served)
    gone = asyncio.create_task(served.engine.predict(blend, pixels(4), ["hue"]))
    stays = asyncio.create_task(served.engine.predict(blend, pixels(3), ["hue"]))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    served.engine.start()
    assert (await stays).batch_size == 3


async def test_more_than_may_wait_is_refused_at_once(served: Served) -> None:
    blend = plain(served)
    waiting = asyncio.create_task(served.engine.predict(blend, pixels(20), ["hue"]))
    await asyncio.sleep(0)
    with pytest.raises(TooManyWaiting):
        await served.engine.predict(blend, pixels(1), ["hue"])
    served.engine.start()
    await waiting


async def test_a_stop_answers_what_waits(served: Served) -> None:
    waiting = asyncio.create_task(served.engine.predict(plain(served), pixels(2), ["hue"]))
    await asyncio.sleep(0)
    served.engine.start()
    served.engine.stop()
    assert (await waiting).batch_size == 2
    with pytest.raises(EngineStopped):
        await served.engine.predict(plain(served), pixels(2), ["hue"])


async def collected(creations: Creations[int], key: str, work: Any) -> list[Step | int]:
    return [each async for each in creations.make(key, work)]


async def test_work_is_done_once_for_all_and_remembered() -> None:
    creations: Creations[int] = Creations(limit=2)
    done: list[int] = []

    def work(tell: Any) -> int:
        tell(Step("counting", 1, 2))
        done.append(1)
        return 7

    ends = await asyncio.gather(*(collected(creations, "key", work) for _ in range(50)))
    assert {end[-1] for end in ends} == {7}
    assert await collected(creations, "key", work) == [7]
    assert done == [1]
    assert len(creations) == 0
    await creations.aclose()


async def test_work_that_fails_fails_for_all_and_is_tried_again_by_the_next() -> None:
    creations: Creations[int] = Creations(limit=2)

    def broken(tell: Any) -> int:
        raise ValueError("no")

    ends = await asyncio.gather(*(collected(creations, "key", broken) for _ in range(3)), return_exceptions=True)
    assert [str(end) for end in ends] == ["no"] * 3
    assert await collected(creations, "key", lambda tell: 3) == [3]
    await creations.aclose()


async def test_closing_stops_what_is_being_made() -> None:
    creations: Creations[int] = Creations(limit=1)
    stopped: list[bool] = []

    def endless(tell: Any) -> int:
        try:
            while True:
                tell(Step("on and on", 0, 0))
        except Cancelled:
            stopped.append(True)
            raise

    steps = creations.make("key", endless)
    assert isinstance(await anext(steps), Step)
    with pytest.raises(TooManyCreations):
        await anext(creations.make("other", endless))
    await creations.aclose()
    assert stopped == [True]
    with pytest.raises(Cancelled):
        [each async for each in steps]
