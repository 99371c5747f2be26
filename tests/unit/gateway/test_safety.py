"""Every method of the video service is either safe to repeat, safe with its own mark, or never repeated."""

import pytest
from google.protobuf.message import Message
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree_gateway.domain import SERVICES, Method
from worldtree_gateway.safety import is_repeatable

VIDEO = {method.path.rpartition("/")[2]: method for method in SERVICES[0].methods.values()}


@pytest.mark.parametrize(
    ("name", "request_", "safe"),
    [
        ("Get", pb.GetRequest(), True),
        ("List", pb.ListRequest(), True),
        ("KeepAlive", pb.KeepAliveRequest(), True),
        ("Delete", pb.DeleteRequest(), True),
        ("Save", pb.SaveRequest(), True),
        ("ListModels", pb.ListModelsRequest(), True),
        ("GetModel", pb.GetModelRequest(), True),
        ("Introspect", pb.IntrospectRequest(), True),
        ("Generate", pb.GenerateRequest(), True),
        ("Rollout", pb.RolloutRequest(), True),
        ("Step", pb.StepRequest(request_id="r"), True),
        ("Step", pb.StepRequest(session="s"), False),
        ("Fork", pb.ForkRequest(request_id="r"), True),
        ("Fork", pb.ForkRequest(count=2), False),
        ("CreateSession", pb.CreateSessionRequest(request_id="r"), True),
        ("CreateSession", pb.CreateSessionRequest(), False),
        ("Restore", pb.RestoreRequest(request_id="r"), True),
        ("Restore", pb.RestoreRequest(snapshot="s"), False),
        ("Rewind", pb.RewindRequest(expected_chunk_index=0), True),
        ("Rewind", pb.RewindRequest(chunk_count=1), False),
    ],
)
def test_what_may_be_sent_twice(name: str, request_: Message, safe: bool) -> None:
    assert is_repeatable(VIDEO[name], request_.SerializeToString()) is safe


def test_all_methods_but_play_are_named_above() -> None:
    marked = test_what_may_be_sent_twice.pytestmark[0].args[1]  # type: ignore[attr-defined]
    assert {name for name, _, _ in marked} == VIDEO.keys() - {"Play"}


def test_whatever_may_be_cached_may_be_sent_twice() -> None:
    methods = {path.rpartition("/")[2]: each for service in SERVICES for path, each in service.methods.items()}
    for name in ("Predict", "ListTasks", "Score", "Compare", "Rank", "ListRubrics"):
        assert is_repeatable(methods[name], b""), name
    assert not is_repeatable(methods["CreateMerge"], b"")


def test_what_is_unknown_or_unreadable_is_never_repeated() -> None:
    assert not is_repeatable(Method("/worldtree.video.v1.VideoGenerator/Get", False, False), b"")
    assert not is_repeatable(VIDEO["Step"], b"\x0a\xff")
    assert not is_repeatable(VIDEO["Play"], b"")
