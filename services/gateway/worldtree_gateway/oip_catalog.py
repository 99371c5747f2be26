"""The models of all services behind the gateway, asked of them and held for a moment."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from worldtree.common.v1 import common_pb2 as common
from worldtree.multitask.v1 import multi_task_pb2 as multitask_pb
from worldtree.navigator.v1 import navigator_pb2 as navigator_pb
from worldtree.reward.v1 import reward_scorer_pb2 as reward_pb
from worldtree.video.v1 import video_generator_pb2 as video_pb
from worldtree_runtime.errors import InvalidRequest, NotFound, Unavailable

from worldtree_gateway import oip_experts, oip_judges, oip_planners, oip_worlds
from worldtree_gateway.oip_calls import Asker, Calls, explained, told
from worldtree_gateway.oip_models import Model

_NO_MODEL = "MODEL_NOT_FOUND"  # what a service says that serves none, or several of which none was named
_FAILED_HOLD_S = 0.5  # what is down may be back at any moment, and who asks meanwhile need not wait for it again
_OF_ASKER = (
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)

_log = logging.getLogger(__name__)

_Ask = Callable[[Asker], Awaitable[list[Model]]]


@dataclass(frozen=True, slots=True)
class Listed:
    """What one service serves. `reason`: why it could not be asked just now; the models are those of before."""

    models: tuple[Model, ...] = ()
    reason: str = ""


class _Service:
    """One service's models, asked for again after `hold_s`; after a failure a moment later. All who need them then wait
    for one look at them, each no longer than it would.
    """

    def __init__(self, ask: _Ask, *, hold_s: float, timeout_s: float, clock: Callable[[], float]) -> None:
        self.listed = Listed()
        self._ask = ask
        self._hold_s = hold_s
        self._timeout_s = timeout_s
        self._clock = clock
        self._held_until_s = -math.inf
        self._looking: asyncio.Task[tuple[Listed, bool]] | None = None

    async def look(self, asker: Asker) -> Listed:
        """What it serves now."""
        while self._clock() >= self._held_until_s:
            own = self._looking is None
            if self._looking is None:
                # it is for all, so it ends when it ends, whoever of them has left by then
                first = Asker(asker.metadata).within(self._timeout_s)
                self._looking = asyncio.create_task(self._look(first), name="look at models")
            try:
                async with asyncio.timeout(asker.left_s):
                    listed, of_asker = await asyncio.shield(self._looking)
            except TimeoutError:
                return Listed(self.listed.models, "it has not answered within the time that the request had")
            if own or not of_asker:
                return listed
        return self.listed

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])

    async def _look(self, asker: Asker) -> tuple[Listed, bool]:
        """What it serves, and whether it refused whoever asks, which tells nobody else anything."""
        asked_s = self._clock()
        try:
            listed = Listed(tuple(await self._ask(asker)))
            self._held_until_s = asked_s + self._hold_s
        except grpc.aio.AioRpcError as error:
            known = told(error, {})
            reason = known.message if known is not None else f"{error.code().name}: {error.details()}"
            listed = Listed(self.listed.models, reason)
            if error.code() in _OF_ASKER:
                return listed, True
            self._held_until_s = self._clock() + min(self._hold_s, _FAILED_HOLD_S)
        finally:
            self._looking = None
        self.listed = listed
        return listed, False


class Catalog:
    """`sections`: the services that there are. A name that two of them have must be said as `section.name`."""

    def __init__(
        self,
        calls: Calls,
        sections: Sequence[str],
        *,
        hold_s: float,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._calls = calls
        known: dict[str, _Ask] = {
            oip_worlds.SECTION: self._worlds,
            oip_experts.SECTION: self._experts,
            oip_judges.SECTION: self._judges,
            oip_planners.SECTION: self._planners,
        }
        self._services = {
            section: _Service(known[section], hold_s=hold_s, timeout_s=timeout_s, clock=clock)
            for section in sections
            if section in known
        }

    async def close(self) -> None:
        """Ends what is being asked."""
        for service in self._services.values():
            await service.close()

    async def listed(self, asker: Asker) -> dict[str, Listed]:
        """By section."""
        answers = await asyncio.gather(*(service.look(asker) for service in self._services.values()))
        return dict(zip(self._services, answers, strict=True))

    async def find(self, name: str, version: str, asker: Asker) -> Model:
        """Raises NotFound, Unavailable where its service might have it, or InvalidRequest for a name that two have."""
        holders = [
            each.section for each in _named({each: self._services[each].listed for each in self._services}, name)
        ]
        if holders:  # the other services need not be waited for
            answers = [await self._services[section].look(asker) for section in holders]
            listed = dict(zip(holders, answers, strict=True))
        else:
            listed = await self.listed(asker)
        found = _named(listed, name)
        if len(found) > 1:
            ways = " or ".join(f"{each.section}.{each.name}" for each in found)
            raise InvalidRequest(
                "model_name", f'model_name "{name}" means more than one model: say {ways}', reason="MODEL_AMBIGUOUS"
            )
        down = {section: each.reason for section, each in listed.items() if each.reason}
        if down and (not found or found[0].section in down):
            section = found[0].section if found else next(iter(down))
            raise Unavailable("MODELS_UNKNOWN", f"{section}: {down[section]}", retry_after_s=1.0, service=section)
        if not found:
            raise NotFound("model", name, known=sorted(each.name for every in listed.values() for each in every.models))
        model = found[0]
        return model if version in ("", model.version) else await self._version(model, version, asker)

    async def _version(self, model: Model, version: str, asker: Asker) -> Model:
        """Another one than the newest. Raises what its service says of it."""
        ref = common.ModelRef(name=model.name, version=version)
        async with explained({}):
            match model.section:
                case oip_worlds.SECTION:
                    world = await self._calls.video.GetModel(video_pb.GetModelRequest(model=ref), **asker.options)
                    return oip_worlds.describe(world.model)
                case oip_experts.SECTION:
                    return oip_experts.describe(await self._tasks(ref, asker))
                case oip_judges.SECTION:
                    return oip_judges.describe(await self._rubrics(ref, asker))
        raise NotFound("model version", version, known=[])

    async def _worlds(self, asker: Asker) -> list[Model]:
        answer = await self._calls.video.ListModels(video_pb.ListModelsRequest(), **asker.options)
        return [oip_worlds.describe(each) for each in answer.models]

    async def _experts(self, asker: Asker) -> list[Model]:
        names = await _names(self._tasks, asker)
        return [oip_experts.describe(await self._tasks(common.ModelRef(name=name), asker)) for name in names]

    async def _judges(self, asker: Asker) -> list[Model]:
        names = await _names(self._rubrics, asker)
        return [oip_judges.describe(await self._rubrics(common.ModelRef(name=name), asker)) for name in names]

    async def _planners(self, asker: Asker) -> list[Model]:
        answer = await self._calls.navigator.ListPlanners(navigator_pb.ListPlannersRequest(), **asker.options)
        return oip_planners.describe_all(answer)

    async def _tasks(self, ref: common.ModelRef, asker: Asker) -> multitask_pb.ListTasksResponse:
        answer: multitask_pb.ListTasksResponse = await self._calls.multitask.ListTasks(
            multitask_pb.ListTasksRequest(model=ref), **asker.options
        )
        return answer

    async def _rubrics(self, ref: common.ModelRef, asker: Asker) -> reward_pb.ListRubricsResponse:
        answer: reward_pb.ListRubricsResponse = await self._calls.reward.ListRubrics(
            reward_pb.ListRubricsRequest(model=ref), **asker.options
        )
        return answer


async def _names(about: Callable[[common.ModelRef, Asker], Awaitable[Any]], asker: Asker) -> list[str]:
    """All models of a service that tells of one at a time, and of the names of all with it. It takes no name for the
    only one there is; where there are several, its refusal names some, or at least one.
    """
    try:
        answer = await about(common.ModelRef(), asker)
    except grpc.aio.AioRpcError as error:
        refusal = told(error, {})
        if refusal is None or refusal.reason != _NO_MODEL:
            raise
        if refusal.metadata.get("known_count") == "0":
            return []
        known = refusal.metadata.get("known", "")
        if not known:
            _log.warning("a service refused to say what it serves, and names no model: %s", refusal.message)
            raise
        answer = await about(common.ModelRef(name=known.split(", ")[0]), asker)
    return list(answer.models)


def _named(listed: Mapping[str, Listed], name: str) -> list[Model]:
    """The models that a name may mean: it is one's own, or that and its section's before it."""
    return [
        each
        for section, every in listed.items()
        for each in every.models
        if name in (each.name, f"{section}.{each.name}")
    ]
