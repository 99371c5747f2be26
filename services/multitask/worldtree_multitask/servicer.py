"""The gRPC edge: validate, convert, call, stream."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from typing import Any, TypeAlias

import grpc.aio
from worldtree.multitask.v1 import multi_task_pb2 as pb
from worldtree.multitask.v1.multi_task_pb2_grpc import MultiTaskServicer as Base
from worldtree_runtime.errors import NotFound
from worldtree_runtime.messages import REPLICA_KEY

from worldtree_multitask import convert, replies
from worldtree_multitask.catalog import Catalog
from worldtree_multitask.config import MultitaskSettings
from worldtree_multitask.creations import Creations
from worldtree_multitask.domain import Blend, Card, Recipe
from worldtree_multitask.errors import MakingStopped, NotAFront
from worldtree_multitask.making import made_key, named
from worldtree_multitask.merges import Merges
from worldtree_multitask.merging import Cancelled, Method, Needs, Step, method, methods
from worldtree_multitask.metrics import MultitaskMetrics
from worldtree_multitask.served import Made, Served, check_needs

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_CALIBRATION = "calibration"


class MultiTaskServicer(Base):
    """Serves a catalog of models. What an RPC promises stands in the proto."""

    def __init__(
        self,
        catalog: Catalog,
        merges: Merges,
        creations: Creations[Made],
        settings: MultitaskSettings,
        metrics: MultitaskMetrics,
    ) -> None:
        self._catalog = catalog
        self._merges = merges
        self._creations = creations
        self._settings = settings
        self._metrics = metrics

    async def ListTasks(self, request: pb.ListTasksRequest, context: Context) -> pb.ListTasksResponse:
        await context.send_initial_metadata(((REPLICA_KEY, self._settings.replica),))
        return replies.from_model(self._served(request.model), _all_methods(), self._catalog.names())

    async def Predict(self, request: pb.PredictRequest, context: Context) -> pb.PredictResponse:
        card = None
        if request.WhichOneof("merge") == "name":
            card = await self._merges.get(request.name)
            served = self._of(card, request)
        else:
            served = self._served(request.model)
        limit = self._settings.max_images
        images = convert.to_images(request.images, served.package, self._settings, "images", limit=limit)
        tasks = convert.to_tasks(request.tasks, served.package)
        blend = await (self._merges.blend(card) if card else served.blends.get(_recipe(request, served)))
        answer = await served.engine.predict(blend, images, tasks)
        return replies.from_answer(answer, served, blend, tasks)

    async def CreateMerge(
        self, request: pb.CreateMergeRequest, context: Context
    ) -> AsyncIterator[pb.CreateMergeResponse]:
        served = self._served(request.model)
        name = convert.to_name(request.name)
        recipe = served.resolve(convert.to_recipe(request.recipe), immediate=False)
        default = self._default_set(served, recipe)
        # in a thread, as thousands of images may have to be unpacked
        images, content = await asyncio.to_thread(
            convert.to_image_set, request, served, self._settings, default=default
        )
        check_needs(recipe, images)
        begun_s = time.perf_counter()
        counted = self._metrics.creations.labels
        result = "cancelled"
        work = partial(served.create, recipe, images)
        try:
            async with aclosing(self._creations.make(made_key(served, recipe, content), work)) as steps:
                async for step in steps:
                    if isinstance(step, Step):
                        yield replies.from_step(step, time.perf_counter() - begun_s)
                        continue
                    card = await self._merges.add(named(step, name, served))
                    result = "made"
                    yield pb.CreateMergeResponse(merge=self._message(card, step.blend))
        except Cancelled as stopped:  # it was wanted, and is not made all the same
            raise MakingStopped from stopped
        except Exception:
            result = "failed"
            raise
        finally:
            counted(served.stored.name, result).inc()

    async def GetMerge(self, request: pb.GetMergeRequest, context: Context) -> pb.GetMergeResponse:
        card = await self._merges.get(request.name)
        return pb.GetMergeResponse(merge=self._message(card, await self._merges.blend(card)))

    async def ListMerges(self, request: pb.ListMergesRequest, context: Context) -> pb.ListMergesResponse:
        size, first = convert.to_page(request)
        cards = await self._merges.cards()
        page = [self._message(card, None) for card in cards[first : first + size]]
        more = str(first + size) if first + size < len(cards) else ""
        return pb.ListMergesResponse(merges=page, next_page_token=more)

    async def DeleteMerge(self, request: pb.DeleteMergeRequest, context: Context) -> pb.DeleteMergeResponse:
        await self._merges.delete(request.name)
        return pb.DeleteMergeResponse()

    async def ParetoFront(self, request: pb.ParetoFrontRequest, context: Context) -> pb.ParetoFrontResponse:
        card = await self._merges.get(request.name)
        if not card.points:
            raise NotAFront(card.name, card.recipe.method)
        found = [(point, await self._merges.find(point.merge)) for point in card.points]
        return replies.from_front(card, [(point, own) for point, own in found if own is not None])

    def _served(self, ref: Any) -> Served:
        return self._catalog.get(ref.name, ref.version, ref.digest)

    def _of(self, card: Card, request: pb.PredictRequest) -> Served:
        """The model whose experts a merge is made of, which must be the one asked for, where one is.

        A gateway pins a request to the digest of the newest version; of a merge of another it must hear that there is
        no such model, and asks again as the caller did.
        """
        served = self._catalog.get(card.model, card.version, card.model_digest)
        ref = request.model
        asked = {"name": ref.name, "version": ref.version, "digest": ref.digest}
        own = {"name": card.model, "version": card.version, "digest": card.model_digest}
        if any(value and value != own[part] for part, value in asked.items()):
            wanted = "/".join(value for value in (ref.name, ref.version, ref.digest[:8]) if value)
            raise NotFound(
                "model", f"{wanted} of merge {card.name}", known=[f"{card.model}/{card.version}"], merge=card.name
            )
        return served

    def _default_set(self, served: Served, recipe: Recipe) -> str | None:
        """The set that a method learns from when nothing is said: one with labels where it needs them."""
        found = method(recipe.method)
        if found is None or found.needs is Needs.NOTHING:
            return None
        return _CALIBRATION if found.needs is Needs.IMAGES else served.package.scoring

    def _message(self, card: Card, blend: Blend | None) -> pb.Merge:
        try:
            package = self._catalog.get(card.model, card.version, card.model_digest).package
        except NotFound:  # its model is no longer served: the card says what there is to say
            return replies.from_card(card, None, (), ())
        return replies.from_card(card, blend, package.layer_names, package.task_names)


def _recipe(request: pb.PredictRequest, served: Served) -> Recipe:
    match request.WhichOneof("merge"):
        case "recipe":
            recipe = convert.to_recipe(request.recipe)
        case "preference":
            recipe = convert.to_preference(request.preference, served.package)
        case _:
            recipe = convert.equal_preference(served.package)
    return served.resolve(recipe, immediate=True)


def _all_methods() -> list[Method]:
    found = [method(name) for name in methods()]
    return [each for each in found if each is not None]
