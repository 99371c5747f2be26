"""The walk sees what protobuf sees, and no bytes crash it."""

from hypothesis import given
from hypothesis import strategies as st
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree_gateway.wire import fields


@given(st.text(min_size=1, max_size=40), st.integers(1, 2**50), st.text(min_size=1, max_size=200))
def test_the_fields_that_are_asked_for_come_and_others_are_passed_over(start: str, seed: int, request_id: str) -> None:
    request = pb.CreateSessionRequest(origin=pb.Origin(start=start), seed=seed, request_id=request_id)
    request.model.name = "minigrid"
    found = dict(fields(request.SerializeToString(), (2, 7)))
    assert pb.Origin.FromString(found[2]).start == start
    assert found[7].decode() == request_id
    assert list(found) == [2, 7]


@given(st.binary(max_size=300))
def test_no_bytes_crash_it(message: bytes) -> None:
    assert all(number in (1, 2) and content in message for number, content in fields(message, (1, 2)))


def test_a_field_that_is_cut_off_does_not_count() -> None:
    message = pb.CreateSessionRequest(origin=pb.Origin(start="four-rooms")).SerializeToString()
    assert list(fields(message[:-1], (2,))) == []
