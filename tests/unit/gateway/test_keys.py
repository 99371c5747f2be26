"""Equal requests share a key, and no others do."""

from typing import Any

import pytest
from worldtree.common.v1 import common_pb2
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree_gateway import keys
from worldtree_gateway.domain import SERVICES, Affinity
from worldtree_gateway.sharing import Sharing

VIDEO = SERVICES[0]
METHODS = {path.rpartition("/")[2]: method for path, method in VIDEO.methods.items()}
GENERATE = METHODS["Generate"]
assert GENERATE.cache is not None


def request(digest: str = "d", **fields: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(model=common_pb2.ModelRef(name="m", digest=digest), **fields)


def key_of(message: pb.GenerateRequest, tenant: str = "t", method: Any = GENERATE) -> bytes:
    read = keys.RequestReader().read(method, method.cache, message.SerializeToString())
    assert read is not None
    return read.keyed(None, Sharing([], {}).owner_of(read, tenant))[0]


def test_the_key_depends_on_every_part() -> None:
    made = [
        key_of(request()),
        key_of(request(seed=1)),
        key_of(request(nfe=1)),
        key_of(request(digest="e")),
        key_of(request(actions=[pb.Action(id=0)])),
        key_of(request(actions=[pb.Action(name="")])),
        key_of(request(), tenant="u"),
    ]
    assert len(set(made)) == len(made)
    assert key_of(request()) == made[0]
    assert all(len(each) == 48 for each in made)


def test_a_shared_rule_has_one_key_for_all_tenants_and_a_tenants_rule_does_not() -> None:
    names = METHODS["GetModel"]
    raw = pb.GetModelRequest(model=common_pb2.ModelRef(name="m"))
    assert key_of(raw, "t", names) == key_of(raw, "u", names)
    assert key_of(request(), "t") != key_of(request(), "u")


def test_equal_bytes_of_two_methods_have_two_keys() -> None:
    empty = pb.ListModelsRequest()
    assert key_of(empty, method=METHODS["ListModels"]) != key_of(empty, method=METHODS["GetModel"])


def test_a_model_without_digest_is_unpinned_and_keyed_by_the_digest_that_it_turns_out_to_mean() -> None:
    read = keys.RequestReader().read(GENERATE, GENERATE.cache, request(digest="").SerializeToString())
    assert read is not None
    assert read.unpinned == common_pb2.ModelRef(name="m")
    key, canonical = read.keyed("d", "tenant:t")
    assert canonical == request(digest="d").SerializeToString(deterministic=True)
    assert key == key_of(request(digest="d"))
    assert read.keyed("e", "tenant:t")[0] == key_of(request(digest="e"))
    assert read.unpinned is not None, "it is as it was"


def test_bytes_that_are_no_request_have_no_key() -> None:
    assert keys.RequestReader().read(GENERATE, GENERATE.cache, b"\x0a\xff\xff") is None


def test_a_request_that_came_before_is_not_read_again_and_still_keyed_for_who_asks() -> None:
    reader, raw = keys.RequestReader(), request().SerializeToString()
    read = reader.read(GENERATE, GENERATE.cache, raw)
    assert read is not None
    assert reader.read(GENERATE, GENERATE.cache, bytes(bytearray(raw))) is read
    for tenant in 2 * [f"t{number}" for number in range(20)]:
        assert read.keyed(None, f"tenant:{tenant}")[0] == key_of(request(), tenant)


def test_long_requests_and_those_of_long_ago_are_not_kept() -> None:
    reader = keys.RequestReader()
    long, short = request(actions=[pb.Action(name="n" * 2000)]).SerializeToString(), request().SerializeToString()
    assert reader.read(GENERATE, GENERATE.cache, long) is not reader.read(GENERATE, GENERATE.cache, long)
    first = reader.read(GENERATE, GENERATE.cache, short)
    for seed in range(1100):
        reader.read(GENERATE, GENERATE.cache, request(seed=seed + 1).SerializeToString())
    assert reader.read(GENERATE, GENERATE.cache, short) is not first


def test_the_descriptors_say_what_is_cached_and_what_belongs_to_a_session() -> None:
    assert {name for name, method in METHODS.items() if method.cache} == {"ListModels", "GetModel", "Generate"}
    assert METHODS["Generate"].cache.ttl_s == 3600
    assert METHODS["GetModel"].cache.model_field is None, "it is asked for the digest, so it can't need one"
    home = {name for name, method in METHODS.items() if method.affinity is Affinity.HOME}
    assert home == {"Step", "Play", "Rollout", "Fork", "Rewind", "Save", "Get", "Delete", "KeepAlive"}
    assert METHODS["Restore"].affinity is Affinity.PREFER_HOME


@pytest.mark.parametrize("name", ["CreateSession", "ListModels", "List", "Generate"])
def test_methods_without_a_session_may_go_anywhere(name: str) -> None:
    assert METHODS[name].affinity is Affinity.ANY
