"""`client.multitask` of the asyncio client: the same names as worldtree's, awaited."""

from collections.abc import Sequence
from typing import Any

from worldtree import _multitask_calls as _calls
from worldtree.aio._transport import Transport
from worldtree.errors import NotFound
from worldtree.multitask_convert import Classes
from worldtree.multitask_types import (
    Answer,
    FrontPoint,
    Merge,
    MergeLike,
    OnMergeProgress,
    ParetoFront,
    Recipe,
    TaskModel,
)
from worldtree.types import Seconds


class MultiTask:
    """The multi-task service of a client. For the event loop that the client is on."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._classes: dict[str, Classes] = {}  # by the model's digest

    async def tasks(self, model: str | TaskModel | None = None) -> TaskModel:
        """What can be asked of images, how experts can be merged, and which images a merge can learn from. `model` is
        "name" or "name/version"; None: the only one that is served."""
        return await self._transport.call(_calls.list_tasks(model))

    async def predict(
        self,
        images: Any,
        *,
        tasks: Sequence[str] | str | None = None,
        merge: MergeLike | None = None,
        model: str | TaskModel | None = None,
        timeout: Seconds | None = None,
    ) -> Answer:
        """Answers `tasks` (None: all) for images: uint8 [images, height, width, 3] or [height, width, 3], a list of
        frames, PNG files as bytes, or PIL images.

        `merge` says with which weights: a merge that `create_merge` made, or its name; a preference, {task: weight} or
        one weight a task in their order, of which only the ratios count; or a `Recipe` of an immediate method, such as
        `Recipe("ties", density=0.2)`. None: equal preference among all tasks.
        """
        call = _calls.predict(images, tasks=tasks, merge=merge, model=model)
        predicted = await self._transport.call(call, timeout=timeout)
        return predicted.named(await self._classes_of(predicted))

    async def create_merge(
        self,
        method: str | Recipe,
        *,
        name: str | None = None,
        images: Any = None,
        labels: Any = None,
        image_set: str | None = None,
        progress: OnMergeProgress | None = None,
        model: str | TaskModel | None = None,
        timeout: Seconds | None = None,
        **parameters: Any,
    ) -> Merge:
        """Makes a merge by `method` with its `parameters` (`tasks().methods` lists both) and returns it with its card.

        It learns from `image_set` of the model's (None: "calibration") or from the caller's own `images`: those of
        predict for all tasks, or {task: images}, there with `labels` {task: class ids} for methods that need them.
        `progress` is called with a MergeProgress as it goes on. Cancelling this call, or an exception of
        `progress`, ends the making on the server unless others wait for the same merge. The same recipe over the same
        images is the same merge: it is found, not made again.
        """
        call = _calls.create_merge(
            method,
            parameters,
            name=name,
            images=images,
            labels=labels,
            image_set=image_set,
            progress=progress,
            model=model,
        )
        return await self._transport.gather(call, timeout=timeout)

    async def merge(self, name: str | FrontPoint) -> Merge:
        """A merge by its name, with its card."""
        return await self._transport.call(_calls.get_merge(name))

    async def merges(self) -> list[Merge]:
        """The merges that have a name, oldest first."""
        merges: list[Merge] = []
        page_token = ""
        while True:
            page = await self._transport.call(_calls.list_merges(page_token))
            merges += page.merges
            page_token = page.next_page_token
            if not page_token:
                return merges

    async def delete_merge(self, merge: str | Merge) -> None:
        """Forgets a merge, and with a front its points. Predictions under way end with it."""
        await self._transport.call(_calls.delete_merge(merge))

    async def pareto_front(self, front: str | Merge) -> ParetoFront:
        """The points of a search with several objectives (method mm_mo), the best mean score first."""
        return await self._transport.call(_calls.pareto_front(front))

    async def _classes_of(self, predicted: _calls.Predicted) -> Classes:
        """Asked for once a model. Empty where the model is gone."""
        digest = predicted.model.digest
        if digest not in self._classes:
            try:
                self._classes[digest] = await self._transport.call(_calls.task_classes(predicted.model))
            except NotFound:
                # A merge of a version that went away may still answer although nobody can look its classes up.
                return {}
        return self._classes[digest]
