"""Which role a method needs, and which sessions it is about."""

import pytest
from worldtree_gateway.access import Access, Naming
from worldtree_gateway.domain import SERVICES
from worldtree_gateway.identity import Role

ACCESS = Access(SERVICES)
VIDEO = "/worldtree.video.v1.VideoGenerator/"


@pytest.mark.parametrize(
    ("path", "role"),
    [
        ("/grpc.health.v1.Health/Check", None),
        ("/grpc.health.v1.Health/Watch", None),
        ("/grpc.health.v1.Healthy/Check", Role.USER),
        ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Role.USER),
        (f"{VIDEO}Step", Role.USER),
        (f"{VIDEO}Introspect", Role.OPERATOR),
        (f"{VIDEO}Newer", Role.OPERATOR),
        ("/worldtree.multitask.v1.MultiTask/CreateMerge", Role.OPERATOR),
        ("/worldtree.multitask.v1.MultiTask/DeleteMerge", Role.OPERATOR),
        ("/worldtree.multitask.v1.MultiTask/Predict", Role.USER),
        ("/inference.GRPCInferenceService/ServerLive", None),
        ("/inference.GRPCInferenceService/ModelInfer", Role.USER),
        ("/inference.GRPCInferenceService/RepositoryModelLoad", Role.OPERATOR),
        ("", Role.USER),
        ("nonsense", Role.USER),
    ],
)
def test_a_method_needs_a_role(path: str, role: Role | None) -> None:
    assert ACCESS.needed(path) == role


@pytest.mark.parametrize(
    ("method", "naming"),
    [
        ("CreateSession", Naming(session=False, opens=True)),
        ("Restore", Naming(session=False, opens=True)),
        ("Fork", Naming(session=True, opens=True)),
        ("Step", Naming(session=True, opens=False)),
        ("Get", Naming(session=True, opens=False)),
        ("List", Naming(session=False, opens=False)),
        ("ListModels", Naming(session=False, opens=False)),
    ],
)
def test_a_method_is_about_sessions_as_its_messages_are(method: str, naming: Naming) -> None:
    assert ACCESS.naming(VIDEO + method) == naming


def test_of_a_foreign_method_nothing_is_known() -> None:
    assert ACCESS.naming("/inference.GRPCInferenceService/ModelInfer") is None


def test_roles_are_ordered() -> None:
    assert Role.USER < Role.OPERATOR
