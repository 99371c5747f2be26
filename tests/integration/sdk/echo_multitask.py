"""A multi-task service without a network, for the SDK's own tests: a class is the first byte of an image, and a merge
is what it was asked for. It counts its calls, and its method `slow` is made until nobody waits for it.
"""

import asyncio
import hashlib
import threading
from collections import Counter
from collections.abc import AsyncIterator
from io import BytesIO
from typing import Any

import grpc
import numpy as np
from PIL import Image
from worldtree.common.v1 import common_pb2
from worldtree.multitask.v1 import multi_task_pb2 as pb
from worldtree.multitask.v1 import multi_task_pb2_grpc as pb_grpc

MODEL = common_pb2.ModelRef(name="echo-tasks", version="1", digest="e" * 64)
SIDE_PX = 4
TASKS = {"front_object": ("empty", "wall"), "door_state": ("none", "open", "closed")}
METHODS = {"average": True, "ties": True, "slow": False, "mm_mo": False}
STEPS = 3


def tensor(array: np.ndarray) -> common_pb2.Tensor:
    data = np.ascontiguousarray(array, np.float32)
    return common_pb2.Tensor(dtype=common_pb2.Tensor.D_TYPE_FLOAT32, shape=data.shape, data=data.tobytes())


def pixels_of(frames: common_pb2.Frames) -> np.ndarray:
    if frames.png:
        return np.stack([np.asarray(Image.open(BytesIO(png)).convert("RGB")) for png in frames.png])
    return np.frombuffer(frames.tensor.data, np.uint8).reshape(tuple(frames.tensor.shape))


class EchoMultiTask(pb_grpc.MultiTaskServicer):
    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.requests: dict[str, Any] = {}
        self.merges: dict[str, pb.Merge] = {}
        self.cancelled = threading.Event()
        self.begun = threading.Event()
        self.failing: Counter[str] = Counter()  # calls that still end with UNAVAILABLE
        self.gone = False  # whether the model that answered cannot be described any more
        self.hits = False  # whether to say, as a gateway does, that answers come from the cache

    async def enter(self, method: str, request: Any, context: grpc.aio.ServicerContext) -> None:
        self.calls[method] += 1
        self.requests[method] = request
        if self.failing[method] > 0:
            self.failing[method] -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "away for a moment")

    async def ListTasks(self, request, context):
        await self.enter("ListTasks", request, context)
        if self.gone:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such model")
        return pb.ListTasksResponse(
            model=MODEL,
            description="bytes",
            height_px=SIDE_PX,
            width_px=SIDE_PX,
            tasks=[
                pb.Task(name=name, description=f"asks {name}", classes=classes, expert_score=0.9, base_score=0.5)
                for name, classes in TASKS.items()
            ],
            layers=["embed", "read"],
            parameter_count=12,
            methods=[
                pb.Method(
                    name=name,
                    immediate=immediate,
                    needs=pb.Method.NEEDS_NOTHING if immediate else pb.Method.NEEDS_IMAGES,
                    parameters_schema='{"properties": {"density": {"type": "number", "default": 0.2}}}',
                )
                for name, immediate in METHODS.items()
            ],
            image_sets=[pb.ImageSet(name="calibration", image_count=8)],
            models=[MODEL.name],
        )

    async def Predict(self, request, context):
        await self.enter("Predict", request, context)
        if request.name and request.name not in self.merges:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no merge {request.name}")
        first = pixels_of(request.images)[:, 0, 0, 0].astype(int)
        predictions = []
        for task in request.tasks or TASKS:
            count = len(TASKS[task])
            probabilities = np.full((len(first), count), 0.1 / (count - 1))
            probabilities[np.arange(len(first)), first % count] = 0.9
            predictions.append(
                pb.Prediction(task=task, class_ids=(first % count).tolist(), probabilities=tensor(probabilities))
            )
        response = pb.PredictResponse(model=MODEL, merge_digest="f" * 64, predictions=predictions)
        response.timing.run_duration.FromMilliseconds(2)
        response.timing.batch_size = len(first)
        if self.hits:
            context.set_trailing_metadata((("worldtree-cache", "hit"),))
        return response

    async def CreateMerge(self, request, context) -> AsyncIterator[pb.CreateMergeResponse]:
        await self.enter("CreateMerge", request, context)
        method = request.recipe.method
        try:
            for done in range(STEPS):
                objective = float("nan") if METHODS[method] else 3.0 - done
                progress = pb.MergeProgress(phase="searching", done=done, total=STEPS, objective=objective)
                yield pb.CreateMergeResponse(progress=progress)
                self.begun.set()
                if method == "slow":
                    await asyncio.sleep(30)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        merge = self.made(request)
        self.merges.setdefault(merge.name, merge)
        yield pb.CreateMergeResponse(merge=self.merges[merge.name])

    def made(self, request: pb.CreateMergeRequest) -> pb.Merge:
        digest = hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()
        merge = pb.Merge(
            name=request.name or f"{request.recipe.method}-{digest[:8]}",
            digest=digest,
            model=MODEL,
            recipe=request.recipe,
            scores=[pb.TaskScore(task=task, score=0.8, expert_score=0.9, base_score=0.5) for task in TASKS],
            mean_score=0.8,
            kept_share=0.8 / 0.9,
            notes=["made of echoes"],
            front_point_count=2 if request.recipe.method == "mm_mo" else 0,
        )
        merge.create_time.FromSeconds(1_800_000_000 + len(self.merges))
        if request.recipe.method != "ties":
            values = np.full((2, len(TASKS)), 1 / len(TASKS))
            merge.coefficients.CopyFrom(
                pb.Coefficients(layers=["embed", "read"], experts=list(TASKS), values=tensor(values))
            )
        return merge

    async def GetMerge(self, request, context):
        await self.enter("GetMerge", request, context)
        return pb.GetMergeResponse(merge=await self.held(request.name, context))

    async def ListMerges(self, request, context):
        await self.enter("ListMerges", request, context)
        names = list(self.merges)
        start = int(request.page_token or 0)
        # a page of one, whatever was asked for: the SDK goes on until there is no token
        token = str(start + 1) if start + 1 < len(names) else ""
        return pb.ListMergesResponse(
            merges=[self.merges[name] for name in names[start : start + 1]], next_page_token=token
        )

    async def DeleteMerge(self, request, context):
        await self.enter("DeleteMerge", request, context)
        await self.held(request.name, context)
        del self.merges[request.name]
        return pb.DeleteMergeResponse()

    async def ParetoFront(self, request, context):
        await self.enter("ParetoFront", request, context)
        front = await self.held(request.name, context)
        points = [
            pb.FrontPoint(
                merge=f"{front.name}.{index}",
                preference=[share, 1 - share],
                scores=[
                    pb.TaskScore(task=task, score=score, expert_score=0.9, base_score=0.5)
                    for task, score in zip(TASKS, (share, 1 - 0.6 * share), strict=True)
                ],
                objectives=[share, 1 - share],
                sparsity=0.25,
            )
            for index, share in enumerate((0.75, 0.25))
        ]
        return pb.ParetoFrontResponse(name=front.name, points=points, hypervolume=0.5, evaluation_count=40)

    async def held(self, name: str, context: grpc.aio.ServicerContext) -> pb.Merge:
        if name not in self.merges:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no merge {name}")
        return self.merges[name]
