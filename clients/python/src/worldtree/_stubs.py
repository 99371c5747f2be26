"""The stubs of each service by name, imported when a program first calls the service."""

from importlib import import_module
from typing import Any, Literal

Service = Literal["video", "multitask", "reward", "navigator", "gateway"]

_HOMES: dict[Service, tuple[str, str]] = {
    "video": ("worldtree.video.v1.video_generator_pb2_grpc", "VideoGeneratorStub"),
    "multitask": ("worldtree.multitask.v1.multi_task_pb2_grpc", "MultiTaskStub"),
    "reward": ("worldtree.reward.v1.reward_scorer_pb2_grpc", "RewardScorerStub"),
    "navigator": ("worldtree.navigator.v1.navigator_pb2_grpc", "NavigatorStub"),
    "gateway": ("worldtree.gateway.v1.gateway_pb2_grpc", "GatewayStub"),
}


class Stubs:
    """All services over one channel, of either kind."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._made: dict[Service, Any] = {}

    def method(self, service: Service, name: str) -> Any:
        """What calls the method of that name."""
        stub = self._made.get(service)
        if stub is None:
            module, kind = _HOMES[service]
            stub = self._made[service] = getattr(import_module(module), kind)(self._channel)
        return getattr(stub, name)
