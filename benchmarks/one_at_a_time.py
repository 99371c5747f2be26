"""A policy server of the usual kind: the navigator's model and threads, one call at a time, each to its end.

Run by `navigator.py` as a process of its own. It answers Navigator.Plan for the planner "joint" and nothing else.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc.aio
from threadpoolctl import threadpool_limits
from worldtree.navigator.v1 import navigator_pb2 as pb
from worldtree.navigator.v1.navigator_pb2_grpc import NavigatorServicer, add_NavigatorServicer_to_server
from worldtree.video.v1 import video_generator_pb2 as video_pb
from worldtree_navigator.navigate_convert import to_images, to_words
from worldtree_navigator.policy import Draft, Policy
from worldtree_runtime.model_repository import ModelRepository
from worldtree_runtime.policy_package import PolicyPackage


class OneAtATime(NavigatorServicer):
    """The loop itself runs the model: who comes meanwhile waits for all of it."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    async def Plan(  # noqa: N802
        self, request: pb.PlanRequest, context: Any
    ) -> pb.PlanResponse:
        del context
        policy, spec = self._policy, self._policy.package.planners[0]
        image_spec = policy.package.image
        (image,) = to_images(request.past.frames, (image_spec.height_px, image_spec.width_px), max_pixels=1 << 20)
        view, _ = policy.read(image)
        memory = policy.memory()
        memory.see(view)
        words = policy.words(to_words("question.goal", request.question.goal, policy.package.goal))
        draft = Draft(policy, view, memory, words, planner=spec)
        while not draft.is_done:
            policy.step([draft])
        return pb.PlanResponse(
            actions=_actions(draft.actions.tolist()), confidence=draft.confidence(len(draft.actions))
        )


def _actions(ids: Sequence[int]) -> list[video_pb.Action]:
    return [video_pb.Action(id=action) for action in ids]


async def serve(models: Path, name: str) -> None:
    repository = ModelRepository(models, PolicyPackage)
    folder = next(each for each in repository.folders() if each.parent.name == name)
    server = grpc.aio.server()
    servicer = OneAtATime(Policy(repository.read(folder)))  # type: ignore[abstract]  # the other methods are answered UNIMPLEMENTED
    add_NavigatorServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"ready grpc=127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    threadpool_limits(limits=1, user_api="blas")  # as the navigator has it
    asyncio.run(serve(Path("models"), "joint"))
