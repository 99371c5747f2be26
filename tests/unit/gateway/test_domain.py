"""What a service's descriptors say of its models, whatever the service."""

import pytest
from worldtree.common.v1 import common_pb2
from worldtree.multitask.v1 import multi_task_pb2
from worldtree.video.v1 import video_generator_pb2
from worldtree_gateway.domain import SERVICES, Affinity, Service

BY_SECTION = {service.section: service for service in SERVICES}
REF = common_pb2.ModelRef(name="rooms", version="3")
PINNED = common_pb2.ModelRef(name="rooms", version="3", digest="d" * 64)
MULTITASK = "/worldtree.multitask.v1.MultiTask"


def test_a_model_is_described_by_whichever_method_the_service_has_for_it() -> None:
    video, multitask = BY_SECTION["video"].describe, BY_SECTION["multitask"].describe
    assert video is not None
    assert multitask is not None
    asked = video_generator_pb2.GetModelRequest.FromString(video.request(REF))
    assert asked.model == REF
    answer = video_generator_pb2.GetModelResponse(model=video_generator_pb2.Model(ref=PINNED))
    assert video.digest(answer.SerializeToString()) == PINNED.digest
    listed = multi_task_pb2.ListTasksRequest.FromString(multitask.request(REF))
    assert listed.model == REF
    tasks = multi_task_pb2.ListTasksResponse(model=PINNED)
    assert multitask.digest(tasks.SerializeToString()) == PINNED.digest
    assert multitask.digest(b"") == ""


def test_what_is_cached_and_where_it_names_its_model_is_read_from_the_descriptors() -> None:
    methods = BY_SECTION["multitask"].methods
    predict, listing = methods[f"{MULTITASK}/Predict"].cache, methods[f"{MULTITASK}/ListTasks"].cache
    assert predict is not None
    assert listing is not None
    assert (predict.ttl_s, predict.shared, predict.model_field) == (600.0, False, "model")
    # the method that names the digest can't wait for the digest
    assert (listing.ttl_s, listing.shared, listing.model_field) == (5.0, True, None)
    assert methods[f"{MULTITASK}/CreateMerge"].cache is None


@pytest.mark.parametrize("name", ["GetMerge", "DeleteMerge", "ParetoFront", "Predict", "CreateMerge"])
def test_a_merge_may_be_asked_for_at_any_replica(name: str) -> None:
    assert BY_SECTION["multitask"].methods[f"{MULTITASK}/{name}"].affinity is Affinity.ANY


def test_a_describing_method_that_names_no_model_is_refused() -> None:
    service = Service(
        section="video",
        full_name="worldtree.video.v1.VideoGenerator",
        descriptor=video_generator_pb2.DESCRIPTOR.services_by_name["VideoGenerator"],
        describe_path="/worldtree.video.v1.VideoGenerator/KeepAlive",
    )
    with pytest.raises(AssertionError, match="without a ModelRef"):
        _ = service.describe
