"""So many of a hundred requests get the version that is tried, the same ones each time."""

from collections import Counter

import pytest
from worldtree.common.v1 import common_pb2 as common
from worldtree.multitask.v1 import multi_task_pb2
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree_gateway.canary import Canary
from worldtree_gateway.domain import SERVICES, Method
from worldtree_gateway.identity import ANONYMOUS, Caller, Role, set_caller
from worldtree_gateway.shares import to_shares

VIDEO = next(service for service in SERVICES if service.section == "video")


def method(name: str) -> Method:
    return VIDEO.methods[f"/{VIDEO.full_name}/{name}"]


def generate(seed: int, **model: str) -> bytes:
    return pb.GenerateRequest(model=common.ModelRef(name="minigrid", **model), seed=seed).SerializeToString()


def version(canary: Canary, request: bytes) -> str:
    return str(pb.GenerateRequest.FromString(canary.pinned(method("Generate"), request)).model.version)


def test_requests_are_shared_out_and_each_keeps_its_version() -> None:
    canary = Canary(to_shares(["minigrid/1=0.7", "minigrid/2=0.1"]))
    drawn = [version(canary, generate(seed)) for seed in range(2000)]
    counted = Counter(drawn)
    assert counted["1"] == pytest.approx(1400, abs=90)
    assert counted["2"] == pytest.approx(200, abs=60)
    assert counted[""] == 2000 - counted["1"] - counted["2"]
    assert [version(canary, generate(seed)) for seed in range(50)] == drawn[:50]


def test_another_key_is_shared_out_on_its_own() -> None:
    canary = Canary(to_shares(["minigrid/2=0.5"]))
    mine = [version(canary, generate(seed)) for seed in range(64)]
    set_caller(Caller(tenant="acme", key_id="other", role=Role.USER))
    try:
        assert [version(canary, generate(seed)) for seed in range(64)] != mine
    finally:
        set_caller(ANONYMOUS)


def test_who_names_a_version_or_a_digest_gets_it() -> None:
    canary = Canary(to_shares(["minigrid/2=1"]))
    for request in (generate(1, version="1"), generate(1, digest="d" * 64)):
        assert canary.pinned(method("Generate"), request) == request
    assert version(canary, generate(1)) == "2"


def test_a_merge_is_of_the_version_that_it_was_made_of() -> None:
    predict, canary = SERVICES[1].methods["/worldtree.multitask.v1.MultiTask/Predict"], Canary(to_shares(["m/2=1"]))
    named, made = (
        multi_task_pb2.PredictRequest(model=common.ModelRef(name="m"), **merge)
        for merge in ({"name": "both"}, {"recipe": multi_task_pb2.Recipe(method="sum")})
    )
    assert canary.pinned(predict, named.SerializeToString()) == named.SerializeToString()
    pinned = multi_task_pb2.PredictRequest.FromString(canary.pinned(predict, made.SerializeToString()))
    assert pinned.model.version == "2"


def test_other_models_and_requests_pass_as_they_are() -> None:
    canary = Canary(to_shares(["doom/2=1"]))
    assert canary.pinned(method("Generate"), generate(1)) == generate(1)
    step = pb.StepRequest(session="s.a").SerializeToString()
    assert Canary(to_shares(["minigrid/2=1"])).pinned(method("Step"), step) == step
    assert Canary(to_shares(["minigrid/2=1"])).pinned(method("Generate"), b"\xff") == b"\xff"


def test_a_lookup_of_a_model_is_not_shared_out() -> None:
    request = pb.GetModelRequest(model=common.ModelRef(name="minigrid")).SerializeToString()
    assert Canary(to_shares(["minigrid/2=1"])).pinned(method("GetModel"), request) == request


def test_sessions_are_shared_out_too() -> None:
    request = pb.CreateSessionRequest(model=common.ModelRef(name="minigrid")).SerializeToString()
    pinned = Canary(to_shares(["minigrid/2=1"])).pinned(method("CreateSession"), request)
    assert pb.CreateSessionRequest.FromString(pinned).model.version == "2"


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["minigrid"], "MODEL/VERSION=SHARE"),
        (["minigrid/1=1.5"], "0 to 1"),
        (["minigrid/1=-0.5"], "MODEL/VERSION=SHARE"),
        (["minigrid/1=nan"], "MODEL/VERSION=SHARE"),
        (["minigrid/1=0.5", "minigrid/1=0.1"], "minigrid/1 has two"),
        (["minigrid/1=0.8", "minigrid/2=0.3"], "1 together at most, got 1.1"),
    ],
)
def test_what_are_no_shares_is_told(texts: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        to_shares(texts)
