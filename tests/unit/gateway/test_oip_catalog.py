"""The models of all services: asked of each, held for a moment, and none held up by a service that is not its own."""

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_status import rpc_status
from worldtree.common.v1 import common_pb2 as common
from worldtree.multitask.v1 import multi_task_pb2 as multitask_pb
from worldtree.navigator.v1 import navigator_pb2 as navigator_pb
from worldtree.reward.v1 import reward_scorer_pb2 as reward_pb
from worldtree.video.v1 import video_generator_pb2 as video_pb
from worldtree_gateway.oip_calls import Asker
from worldtree_gateway.oip_catalog import Catalog
from worldtree_runtime.catalog import Catalog as ServedModels
from worldtree_runtime.errors import Exhausted, InvalidRequest, NotFound, Unavailable, WorldtreeError
from worldtree_runtime.status import to_status

NOBODY = Asker()


def refused(error: WorldtreeError) -> grpc.aio.AioRpcError:
    status = to_status(error, request_id="x")
    trailers = grpc.aio.Metadata(*rpc_status.to_status(status).trailing_metadata)
    code = next(each for each in grpc.StatusCode if each.value[0] == status.code)
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailers, status.message)


class Services:
    """Stands for all stubs. `worlds`, `networks`, `judges`: names; `down`: sections that answer UNAVAILABLE, `hung`:
    that do not answer; `nameless`: that say of no model that it is known. `poor`: keys that have used up what they may.
    """

    def __init__(self) -> None:
        self.worlds, self.networks, self.judges = ["grid", "maze"], ["eyes"], ["critic"]
        self.down: set[str] = set()
        self.hung: set[str] = set()
        self.nameless: set[str] = set()
        self.poor: set[str] = set()
        self.slow_s = 0.0
        self.asked: list[str] = []
        self.video = self.multitask = self.reward = self.navigator = self

    async def _answer(self, section: str, timeout: float | None, metadata: Any = ()) -> None:
        self.asked.append(section)
        await asyncio.sleep(self.slow_s)
        if any(value in self.poor for _, value in metadata):
            raise refused(Exhausted("QUOTA_EXCEEDED", "its calls are used up", retry_after_s=1))
        if section in self.hung:
            await asyncio.sleep(1.0 if timeout is None else timeout)
            raise refused(Unavailable("TOO_SLOW", "no answer", retry_after_s=1))
        if section in self.nameless:
            raise refused(NotFound("model", "", reason="MODEL_NOT_FOUND"))
        if section in self.down:
            raise refused(Unavailable("BACKEND_DOWN", f"a {section} replica does not answer", retry_after_s=1))

    @staticmethod
    def _ref(ref: common.ModelRef, names: list[str]) -> common.ModelRef:
        """As the services find it, each model in two versions."""
        served = [SimpleNamespace(name=name, version=version, digest="") for name in names for version in ("1", "2")]
        catalog: Any = ServedModels([SimpleNamespace(stored=each) for each in served], kind="any", folder="models")
        try:
            found = catalog.get(ref.name, ref.version).stored
        except WorldtreeError as error:
            raise refused(error) from error
        return common.ModelRef(name=found.name, version=found.version)

    async def ListModels(self, request: Any, *, metadata: Any, timeout: Any) -> Any:
        await self._answer("video", timeout, metadata)
        refs = [common.ModelRef(name=name, version="2") for name in self.worlds]
        return video_pb.ListModelsResponse(models=[video_pb.Model(ref=ref) for ref in refs])

    async def GetModel(self, request: Any, *, metadata: Any, timeout: Any) -> Any:
        return video_pb.GetModelResponse(model=video_pb.Model(ref=self._ref(request.model, self.worlds)))

    async def ListTasks(self, request: Any, *, metadata: Any, timeout: Any) -> Any:
        await self._answer("multitask", timeout, metadata)
        return multitask_pb.ListTasksResponse(model=self._ref(request.model, self.networks), models=self.networks)

    async def ListRubrics(self, request: Any, *, metadata: Any, timeout: Any) -> Any:
        await self._answer("reward", timeout, metadata)
        return reward_pb.ListRubricsResponse(model=self._ref(request.model, self.judges), models=self.judges)

    async def ListPlanners(self, request: Any, *, metadata: Any, timeout: Any) -> Any:
        await self._answer("navigator", timeout, metadata)
        planners = [navigator_pb.Planner(name=name, height_px=size) for name, size in (("joint", 8), ("mlm_u", 0))]
        return navigator_pb.ListPlannersResponse(planners=[*planners, navigator_pb.Planner(name="mpc")])


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def services() -> Services:
    return Services()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def catalog(services: Services, clock: Clock) -> Catalog:
    sections = ["video", "multitask", "reward", "navigator"]
    calls: Any = services
    return Catalog(calls, sections, hold_s=2.0, timeout_s=0.2, clock=clock)


async def names(catalog: Catalog) -> dict[str, list[str]]:
    return {
        section: [each.name for each in listed.models] for section, listed in (await catalog.listed(NOBODY)).items()
    }


async def test_all_models_of_all_services_are_listed(catalog: Catalog) -> None:
    assert await names(catalog) == {
        "video": ["grid", "maze"],
        "multitask": ["eyes"],
        "reward": ["critic"],
        "navigator": ["joint", "mpc"],
    }


@pytest.mark.parametrize(
    "networks",
    [
        [],
        ["eyes"],
        ["ears", "eyes", "hands"],
        [f"net-{n:02}" for n in range(11)],
        [f"{n:03}-{'x' * 60}" for n in range(200)],
    ],
    ids=len,
)
async def test_a_service_that_tells_of_one_at_a_time_may_have_none_or_several(
    catalog: Catalog, services: Services, networks: list[str]
) -> None:
    services.networks = networks
    assert (await names(catalog))["multitask"] == networks
    for name in networks:
        assert (await catalog.find(name, "", NOBODY)).section == "multitask"


async def test_a_refusal_that_names_no_model_is_no_empty_list(
    catalog: Catalog, services: Services, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    services.networks = ["ears", "eyes"]
    assert (await names(catalog))["multitask"] == ["ears", "eyes"]
    clock.now_s += 2.1
    services.nameless.add("multitask")
    listed = (await catalog.listed(NOBODY))["multitask"]
    assert [each.name for each in listed.models] == ["ears", "eyes"]
    assert "not found" in listed.reason
    assert "names no model" in caplog.text
    with pytest.raises(Unavailable, match="multitask"):
        await catalog.find("eyes", "", NOBODY)


async def test_what_was_asked_is_held_for_a_moment(catalog: Catalog, services: Services, clock: Clock) -> None:
    await catalog.find("grid", "", NOBODY)
    services.asked.clear()
    await catalog.find("grid", "", NOBODY)
    assert services.asked == []
    clock.now_s += 2.1
    services.worlds.append("new")
    await catalog.find("grid", "", NOBODY)
    assert services.asked == ["video"]
    assert (await catalog.find("new", "", NOBODY)).version == "2"


async def test_another_version_is_asked_for_by_its_name(catalog: Catalog) -> None:
    for name in ("grid", "eyes", "critic"):
        assert (await catalog.find(name, "2", NOBODY)).version == "2"
        assert (await catalog.find(name, "1", NOBODY)).version == "1"
        with pytest.raises(WorldtreeError, match="not found"):
            await catalog.find(name, "9", NOBODY)


async def test_planners_have_no_versions(catalog: Catalog) -> None:
    assert (await catalog.find("joint", "", NOBODY)).version == ""
    with pytest.raises(NotFound, match='"1"'):
        await catalog.find("joint", "1", NOBODY)


async def test_a_name_that_two_services_have_needs_one_of_them_before_it(catalog: Catalog, services: Services) -> None:
    services.judges = ["grid"]
    with pytest.raises(InvalidRequest, match=r"say video\.grid or reward\.grid"):
        await catalog.find("grid", "", NOBODY)
    assert (await catalog.find("reward.grid", "", NOBODY)).section == "reward"
    assert (await catalog.find("video.grid", "1", NOBODY)).section == "video"
    assert (await catalog.find("video.maze", "", NOBODY)).name == "maze"
    with pytest.raises(NotFound):
        await catalog.find("reward.maze", "", NOBODY)


async def test_a_service_that_is_down_keeps_its_models_and_the_others_answer(
    catalog: Catalog, services: Services, clock: Clock
) -> None:
    await catalog.listed(NOBODY)
    services.down.add("multitask")
    clock.now_s += 2.1
    assert (await catalog.find("grid", "", NOBODY)).name == "grid"
    with pytest.raises(Unavailable, match="multitask"):
        await catalog.find("eyes", "", NOBODY)
    with pytest.raises(Unavailable, match="multitask"):  # which may have it
        await catalog.find("nobody", "", NOBODY)
    listed = (await catalog.listed(NOBODY))["multitask"]
    assert [each.name for each in listed.models] == ["eyes"]
    assert "does not answer" in listed.reason
    services.down.clear()
    clock.now_s += 0.6
    assert (await catalog.find("eyes", "", NOBODY)).name == "eyes"
    with pytest.raises(NotFound):
        await catalog.find("nobody", "", NOBODY)


async def test_a_service_that_hangs_holds_up_nobody_else_s_models(
    catalog: Catalog, services: Services, clock: Clock
) -> None:
    await catalog.listed(NOBODY)
    services.hung.add("reward")
    clock.now_s += 2.1
    waiting = asyncio.create_task(catalog.listed(NOBODY))
    async with asyncio.timeout(0.1):
        for name in ("grid", "maze", "eyes"):
            await catalog.find(name, "", NOBODY)
    assert not waiting.done()
    assert (await waiting)["reward"].reason


async def test_all_who_wait_for_a_service_that_hangs_wait_for_one_look_at_it(
    catalog: Catalog, services: Services, clock: Clock
) -> None:
    services.hung.add("reward")
    began_s = time.monotonic()
    answers = await asyncio.gather(*(catalog.listed(NOBODY) for _ in range(20)))
    assert time.monotonic() - began_s < 0.4  # it hangs for 0.2 s
    assert all(listed["reward"].reason for listed in answers)
    assert services.asked.count("reward") == 1
    await catalog.listed(NOBODY)  # a failure is held for a moment
    assert services.asked.count("reward") == 1
    clock.now_s += 0.6
    services.hung.clear()
    assert not (await catalog.listed(NOBODY))["reward"].reason


async def test_nobody_waits_for_models_longer_than_it_would(catalog: Catalog, services: Services) -> None:
    services.hung.add("reward")
    patient = asyncio.create_task(catalog.listed(NOBODY))
    await asyncio.sleep(0)
    began_s = time.monotonic()
    listed = await catalog.listed(NOBODY.within(0.05))
    assert time.monotonic() - began_s < 0.15
    assert "within the time" in listed["reward"].reason
    assert not patient.done()
    await patient


async def test_a_look_goes_on_for_others_when_who_asked_first_leaves(catalog: Catalog, services: Services) -> None:
    services.slow_s = 0.05
    first = asyncio.create_task(catalog.find("grid", "", NOBODY))
    await asyncio.sleep(0.01)
    second = asyncio.create_task(catalog.find("grid", "", NOBODY))
    await asyncio.sleep(0.01)
    first.cancel()
    assert (await second).name == "grid"
    assert services.asked.count("video") == 1


async def test_a_refusal_of_one_who_asks_is_no_answer_to_another(catalog: Catalog, services: Services) -> None:
    services.slow_s = 0.01
    services.poor.add("p")
    poor, rich = Asker((("x-api-key", "p"),)), Asker((("x-api-key", "r"),))
    refused_one = asyncio.create_task(catalog.find("grid", "", poor))
    await asyncio.sleep(0)
    found = await asyncio.gather(*(catalog.find("grid", "", rich) for _ in range(5)))
    assert {each.name for each in found} == {"grid"}
    with pytest.raises(Unavailable, match="used up"):
        await refused_one
    assert services.asked.count("video") == 2


async def test_a_catalog_that_is_closed_asks_no_more(catalog: Catalog, services: Services) -> None:
    services.hung.add("reward")
    before = len(asyncio.all_tasks())
    waiting = asyncio.create_task(catalog.listed(NOBODY))
    await asyncio.sleep(0.01)
    await catalog.close()
    await asyncio.wait([waiting])
    assert len(asyncio.all_tasks()) == before
