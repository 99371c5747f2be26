"""What the gateway knows of the services behind it, read once from their descriptors."""

from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property

from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from worldtree.common.v1 import common_pb2
from worldtree.options.v1 import options_pb2
from worldtree.video.v1 import video_generator_pb2

DEFAULT_TTL_S = 3600.0  # the one that options.proto promises
ANONYMOUS_TENANT = "anonymous"  # every caller, for as long as the gateway knows no keys


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


@dataclass(frozen=True)
class Service:
    """One service that may stand behind the gateway. `section` names its backends in the settings."""

    section: str
    full_name: str
    descriptor: ServiceDescriptor | None
    probe: str | None = None  # a cheap method that any live backend answers; None: ask its health only
    describe: str | None = None  # the method that resolves a ModelRef to its digest

    @cached_property
    def methods(self) -> dict[str, Method]:
        """By path. Empty where there are no descriptors: bytes both ways is all that can be done then."""
        if self.descriptor is None:
            return {}
        return {method.path: method for method in map(self._method, self.descriptor.methods)}

    def _method(self, method: MethodDescriptor) -> Method:
        path = f"/{self.full_name}/{method.name}"
        return Method(
            path=path,
            client_streaming=method.client_streaming,
            server_streaming=method.server_streaming,
            affinity=_affinity(method),
            cache=_cache_rule(method, resolves=path != self.describe),
            request_class=message_factory.GetMessageClass(method.input_type),
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
    model_fields = [
        field.name
        for field in method.input_type.fields
        if field.message_type is not None and field.message_type.full_name == common_pb2.ModelRef.DESCRIPTOR.full_name
    ]
    return CacheRule(
        ttl_s=policy.ttl.ToTimedelta().total_seconds() if policy.HasField("ttl") else DEFAULT_TTL_S,
        shared=policy.scope == options_pb2.CachePolicy.SCOPE_SHARED,
        request_class=message_factory.GetMessageClass(method.input_type),
        # the method that names the digest can't wait for the digest
        model_field=model_fields[0] if model_fields and resolves else None,
    )


SERVICES = (
    Service(
        section="video",
        full_name="worldtree.video.v1.VideoGenerator",
        descriptor=video_generator_pb2.DESCRIPTOR.services_by_name["VideoGenerator"],
        probe="/worldtree.video.v1.VideoGenerator/ListModels",
        describe="/worldtree.video.v1.VideoGenerator/GetModel",
    ),
    # Their protos come with their services; until then they are proxied as bytes, and a session in their field 1 is a
    # video session, which says nothing about where these calls belong.
    Service(section="navigator", full_name="worldtree.navigator.v1.Navigator", descriptor=None),
    Service(section="multitask", full_name="worldtree.multitask.v1.MultiTask", descriptor=None),
    Service(section="reward", full_name="worldtree.reward.v1.RewardScorer", descriptor=None),
)
