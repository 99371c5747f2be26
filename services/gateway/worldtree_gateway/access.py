"""Who may call which method, where a gateway asks for credentials."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from google.protobuf.descriptor import MethodDescriptor
from worldtree.options.v1 import options_pb2

from worldtree_gateway.domain import Service
from worldtree_gateway.identity import Role

_SESSION = "worldtree.video.v1.Session"
_DESCRIBING = frozenset({"Get", "List", "Rewind"})
_HEALTH = "/grpc.health.v1.Health/"
_CHANNELZ = "/grpc.channelz."
_ROLES: Mapping[int, Role] = {
    options_pb2.ACCESS_UNSPECIFIED: Role.USER,
    options_pb2.ACCESS_USER: Role.USER,
    options_pb2.ACCESS_OPERATOR: Role.OPERATOR,
}
# What speaks another protocol has no options of ours in its descriptors. None: open to all.
_FOREIGN: Mapping[str, Role | None] = {
    "/inference.GRPCInferenceService/ServerLive": None,
    "/inference.GRPCInferenceService/ServerReady": None,
    "/inference.GRPCInferenceService/RepositoryModelLoad": Role.OPERATOR,
    "/inference.GRPCInferenceService/RepositoryModelUnload": Role.OPERATOR,
}


@dataclass(frozen=True, slots=True)
class Naming:
    """Which sessions a method is about: whether its request names one, and whether its answer those that it opened."""

    session: bool
    opens: bool


class Access:
    """What each method asks of its callers, by its path.

    A method says it in its proto (`option (worldtree.options.v1.access)`). One of a service that is known here, which
    is itself unknown here (a newer backend may have it), is for operators: nobody has looked at whom it is for.
    """

    def __init__(self, services: Iterable[Service]) -> None:
        self._roles: dict[str, Role | None] = dict(_FOREIGN)
        self._known: set[str] = set()
        self._naming: dict[str, Naming] = {}
        for service in services:
            self._known.add(service.full_name)
            for method in service.descriptor.methods:
                path = f"/{service.full_name}/{method.name}"
                self._roles[path] = _role_of(method)
                self._naming[path] = _naming_of(method)

    def needed(self, path: str) -> Role | None:
        """The least role that may call a method. None: whoever asks, also without credentials."""
        if path.startswith(_HEALTH):
            return None
        if path.startswith(_CHANNELZ):
            return Role.OPERATOR
        if path in self._roles:
            return self._roles[path]
        return Role.OPERATOR if path[1:].partition("/")[0] in self._known else Role.USER

    def naming(self, path: str) -> Naming | None:
        """None: the method is not known here."""
        return self._naming.get(path)


def _naming_of(method: MethodDescriptor) -> Naming:
    asked = method.input_type.fields_by_number.get(1)
    told = method.output_type.fields_by_number.get(1)
    made = told is not None and told.message_type is not None and told.message_type.full_name == _SESSION
    # what only describes a session has opened none
    return Naming(asked is not None and asked.name == "session", made and method.name not in _DESCRIBING)


def _role_of(method: MethodDescriptor) -> Role:
    # an access that is newer than this gateway is not one that it can check
    return _ROLES.get(method.GetOptions().Extensions[options_pb2.access], Role.OPERATOR)
