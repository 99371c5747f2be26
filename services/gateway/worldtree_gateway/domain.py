"""What the gateway knows of the services behind it, read once from their descriptors."""

from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from worldtree.common.v1 import common_pb2
from worldtree.gateway.v1 import gateway_pb2
from worldtree.multitask.v1 import multi_task_pb2
from worldtree.navigator.v1 import navigator_pb2
from worldtree.options.v1 import options_pb2
from worldtree.reward.v1 import reward_scorer_pb2
from worldtree.video.v1 import video_generator_pb2

DEFAULT_TTL_S = 3600.0  # the one that options.proto promises


class Affinity(Enum):
    """Which replica must answer."""

    ANY = auto()  # the least loaded one
    HOME = auto()  # field 1 is a session's id: only its home has it
    PREFER_HOME = auto()  # field 1 is a snapshot's id: its home has it for sure, others when they share a store
    REPLICA = auto()  # field 1 is a replica's name: that one, or any where it is empty


@dataclass(frozen=True, slots=True)
class CacheRule:
    """How the answers of one method may be cached."""

    ttl_s: float
    shared: bool  # between tenants
    request_class: type[Message]
    model_field: str | None  # the request's ModelRef, whose digest is part of the key


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC that is proxied."""

    path: str
    client_streaming: bool
    server_streaming: bool
    affinity: Affinity = Affinity.ANY
    cache: CacheRule | None = None
    request_class: type[Message] | None = None  # None: no proto here knows it
    model_field: str | None = None  # the request's ModelRef, where it says what is to be run
    merge_field: str | None = None  # the request's name of a merge, which is of one version of a model
    start_fields: tuple[int, int] | None = None  # numbers of those that say the model and the start of a world
    opens_session: bool = False
    takes_credentials: bool = False  # its backend may ask a gateway in turn, for whoever asked it

    def names_merge(self, request: Message) -> bool:
        return self.merge_field is not None and request.HasField(self.merge_field)


@dataclass(frozen=True, slots=True)
class Describe:
    """The method that resolves a ModelRef: asked with one that may lack its digest, it answers with one that has it."""

    method: Method
    request_class: type[Message]
    response_class: type[Message]
    request_field: str
    response_path: tuple[str, ...]  # names of fields, from the response down to the ModelRef

    def request(self, model: common_pb2.ModelRef) -> bytes:
        message = self.request_class()
        getattr(message, self.request_field).CopyFrom(model)
        return message.SerializeToString()

    def digest(self, response: bytes) -> str:
        """Empty: the answer names none. Raises DecodeError."""
        found: Any = self.response_class.FromString(response)
        for name in self.response_path:
            found = getattr(found, name)
        digest: str = found.digest
        return digest


@dataclass(frozen=True)
class Service:
    """One service that may stand behind the gateway. `section` names its backends in the settings.

    `homes`: whether the sessions that its requests name live on its own replicas.
    """

    section: str
    full_name: str
    descriptor: ServiceDescriptor
    probe: str | None = None  # a cheap method that any live backend answers; None: ask its health only
    describe_path: str | None = None  # of the method that resolves a ModelRef to its digest; None: it has no models
    homes: bool = True

    @cached_property
    def methods(self) -> dict[str, Method]:
        """By path."""
        return {method.path: method for method in map(self._method, self.descriptor.methods)}

    @cached_property
    def describe(self) -> Describe | None:
        """None: the service has no models."""
        if self.describe_path is None:
            return None
        method = self.descriptor.methods_by_name[self.describe_path.rpartition("/")[2]]
        request_path, response_path = _path_to_ref(method.input_type), _path_to_ref(method.output_type)
        assert request_path is not None, f"{self.describe_path} is asked without a ModelRef"
        assert len(request_path) == 1, f"the ModelRef that {self.describe_path} is asked with is {request_path}"
        assert response_path is not None, f"{self.describe_path} answers without a ModelRef"
        return Describe(
            method=self.methods[self.describe_path],
            request_class=message_factory.GetMessageClass(method.input_type),
            response_class=message_factory.GetMessageClass(method.output_type),
            request_field=request_path[0],
            response_path=response_path,
        )

    def _method(self, method: MethodDescriptor) -> Method:
        path = f"/{self.full_name}/{method.name}"
        return Method(
            path=path,
            client_streaming=method.client_streaming,
            server_streaming=method.server_streaming,
            affinity=_affinity(method) if self.homes else Affinity.ANY,
            cache=_cache_rule(method, resolves=path != self.describe_path),
            request_class=message_factory.GetMessageClass(method.input_type),
            model_field=_model_field(method.input_type) if path != self.describe_path else None,
            merge_field=_merge_field(method.input_type),
            start_fields=_start_fields(method.input_type),
            opens_session=_opens_session(method),
            takes_credentials=not self.homes,
        )


_AFFINITIES = {"session": Affinity.HOME, "snapshot": Affinity.PREFER_HOME, "replica": Affinity.REPLICA}


def _affinity(method: MethodDescriptor) -> Affinity:
    first = method.input_type.fields_by_number.get(1)
    if first is None or first.type != first.TYPE_STRING or first.is_repeated:
        return Affinity.ANY
    return _AFFINITIES.get(first.name, Affinity.ANY)


def _cache_rule(method: MethodDescriptor, *, resolves: bool) -> CacheRule | None:
    options = method.GetOptions()
    if not options.HasExtension(options_pb2.cache) or method.client_streaming:
        return None
    policy = options.Extensions[options_pb2.cache]
    return CacheRule(
        ttl_s=policy.ttl.ToTimedelta().total_seconds() if policy.HasField("ttl") else DEFAULT_TTL_S,
        shared=policy.scope == options_pb2.CachePolicy.SCOPE_SHARED,
        request_class=message_factory.GetMessageClass(method.input_type),
        # the method that names the digest can't wait for the digest
        model_field=_model_field(method.input_type) if resolves else None,
    )


def _start_fields(message: Descriptor) -> tuple[int, int] | None:
    numbers = {kind: message.fields_by_name[name].number for name, kind in _singular_messages(message)}
    origin = numbers.get(video_generator_pb2.Origin.DESCRIPTOR.full_name)
    return None if origin is None or _REF_NAME not in numbers else (numbers[_REF_NAME], origin)


def _opens_session(method: MethodDescriptor) -> bool:
    """Where there was none: a Fork stays where its parent is."""
    told = method.output_type.fields_by_number.get(1)
    if told is None or told.is_repeated or told.message_type is not video_generator_pb2.Session.DESCRIPTOR:
        return False
    return _affinity(method) is not Affinity.HOME


_REF_NAME = common_pb2.ModelRef.DESCRIPTOR.full_name


def _model_field(message: Descriptor) -> str | None:
    return next((name for name, kind in _singular_messages(message) if kind == _REF_NAME), None)


def _merge_field(message: Descriptor) -> str | None:
    """Where a request says by which merge: by name, or by what would make one."""
    said = message.oneofs_by_name.get("merge")
    return next((field.name for field in said.fields if field.type == field.TYPE_STRING), None) if said else None


def _singular_messages(message: Descriptor | None) -> list[tuple[str, str]]:
    """Names and types of the fields that hold one message."""
    return [
        (field.name, field.message_type.full_name)
        for field in (message.fields if message is not None else ())
        if field.message_type is not None and not field.is_repeated
    ]


def _path_to_ref(message: Descriptor) -> tuple[str, ...] | None:
    """Where a message names its model: in a field of its own, else in one of the messages it holds. None: nowhere."""
    for name, kind in _singular_messages(message):
        if kind == _REF_NAME:
            return (name,)
    for name, _ in _singular_messages(message):
        for inner, kind in _singular_messages(message.fields_by_name[name].message_type):
            if kind == _REF_NAME:
                return (name, inner)
    return None


SERVICES = (
    Service(
        section="video",
        full_name="worldtree.video.v1.VideoGenerator",
        descriptor=video_generator_pb2.DESCRIPTOR.services_by_name["VideoGenerator"],
        probe="/worldtree.video.v1.VideoGenerator/ListModels",
        describe_path="/worldtree.video.v1.VideoGenerator/GetModel",
    ),
    Service(
        section="multitask",
        full_name="worldtree.multitask.v1.MultiTask",
        descriptor=multi_task_pb2.DESCRIPTOR.services_by_name["MultiTask"],
        # Its health is enough: no call is bound to a replica by name, and ListTasks fails where there is no model yet.
        describe_path="/worldtree.multitask.v1.MultiTask/ListTasks",
    ),
    Service(
        section="reward",
        full_name="worldtree.reward.v1.RewardScorer",
        descriptor=reward_scorer_pb2.DESCRIPTOR.services_by_name["RewardScorer"],
        describe_path="/worldtree.reward.v1.RewardScorer/ListRubrics",
    ),
    Service(
        section="navigator",
        full_name="worldtree.navigator.v1.Navigator",
        descriptor=navigator_pb2.DESCRIPTOR.services_by_name["Navigator"],
        # It asks for sessions of the video service, on whatever replica they are: any navigator may answer.
        homes=False,
    ),
)

# What the gateway answers itself.
GATEWAY = Service(
    section="gateway",
    full_name="worldtree.gateway.v1.Gateway",
    descriptor=gateway_pb2.DESCRIPTOR.services_by_name["Gateway"],
)
