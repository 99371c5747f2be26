"""Whose cached answers are whose, and which keys a purge means."""

from collections.abc import Sequence

import pytest
from pydantic import ValidationError
from worldtree.common.v1 import common_pb2
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree_gateway.config import GatewaySettings
from worldtree_gateway.domain import SERVICES
from worldtree_gateway.keys import CacheableRequest, KeyPattern
from worldtree_gateway.sharing import Sharing

GENERATE = SERVICES[0].methods["/worldtree.video.v1.VideoGenerator/Generate"]
MODELS = SERVICES[0].methods["/worldtree.video.v1.VideoGenerator/ListModels"]


def generate(name: str = "minigrid", version: str = "", digest: str = "d") -> CacheableRequest:
    assert GENERATE.cache is not None
    model = common_pb2.ModelRef(name=name, version=version, digest=digest)
    return CacheableRequest(GENERATE, GENERATE.cache, pb.GenerateRequest(model=model, seed=7))


def key(request: CacheableRequest, tenant: str, sharing: Sharing) -> bytes:
    return request.keyed(None, sharing.owner_of(request, tenant))[0]


def keys_of(request: CacheableRequest, sharing: Sharing, tenants: Sequence[str]) -> set[bytes]:
    return {key(request, tenant, sharing) for tenant in tenants}


def test_each_tenant_has_its_own_answers() -> None:
    assert len(keys_of(generate(), Sharing([], {}), ["acme", "globex", "group:x", "tenant:acme", ""])) == 5


def test_a_model_that_is_declared_is_shared_by_all_and_no_other() -> None:
    sharing = Sharing(["minigrid", "doom/2"], {})
    tenants = ["acme", "globex"]
    assert len(keys_of(generate(), sharing, tenants)) == 1
    assert len(keys_of(generate("doom", "2"), sharing, tenants)) == 1
    assert len(keys_of(generate("doom", "1"), sharing, tenants)) == 2
    assert len(keys_of(generate("doom"), sharing, tenants)) == 2
    assert len(keys_of(generate("minigrid-2"), sharing, tenants)) == 2
    assert len(keys_of(generate(""), sharing, tenants)) == 2


def test_tenants_of_a_group_share_with_one_another_only() -> None:
    sharing = Sharing([], {"lab": ["acme", "globex"], "shop": ["initech"]})
    assert len(keys_of(generate(), sharing, ["acme", "globex"])) == 1
    assert len(keys_of(generate(), sharing, ["acme", "initech", "hooli", "lab", "group:lab"])) == 5


def test_what_a_proto_shares_is_shared_without_being_declared() -> None:
    assert MODELS.cache is not None
    request = CacheableRequest(MODELS, MODELS.cache, pb.ListModelsRequest())
    assert len(keys_of(request, Sharing([], {}), ["acme", "globex"])) == 1


def test_a_tenant_of_two_groups_is_refused() -> None:
    with pytest.raises(ValidationError, match="a tenant is in one group, once: acme"):
        GatewaySettings(cache_shared_tenants={"lab": ["acme"], "shop": ["acme"]})


def test_a_pattern_means_the_keys_of_its_owner_and_its_model() -> None:
    sharing = Sharing([], {})
    mine, theirs = key(generate(), "acme", sharing), key(generate(), "globex", sharing)
    other = key(generate(digest="e"), "acme", sharing)

    def found(owner: str | None, digest: str | None) -> list[bytes]:
        pattern = KeyPattern.of(owner, digest)
        assert KeyPattern.parse(pattern.glob) == pattern
        return [each for each in (mine, theirs, other) if pattern.matches(each)]

    assert found(sharing.owner("acme"), None) == [mine, other]
    assert found(None, "d") == [mine, theirs]
    assert found(sharing.owner("acme"), "d") == [mine]
    assert found(None, None) == [mine, theirs, other]
    assert found(sharing.owner("hooli"), None) == []


@pytest.mark.parametrize("text", ["", "*", "?" * 32, "?" * 33 + "*", "zz" * 16 + "*"])
def test_what_is_no_pattern_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"pattern|hex"):
        KeyPattern.parse(text)
