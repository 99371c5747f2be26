"""The reader sees what protobuf sees, and no bytes crash it."""

from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree_gateway import session_id


@given(st.text(min_size=1, max_size=60), st.integers(0, 20), st.text(max_size=300))
def test_the_session_of_a_written_request_is_read(session: str, action_count: int, instruction: str) -> None:
    actions = [pb.Action(id=each, instruction=instruction) for each in range(action_count)]
    request = pb.StepRequest(session=session, actions=actions, request_id="r").SerializeToString()
    assert session_id.first_string(request) == session


@given(st.text(min_size=1, max_size=60), st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5))
def test_a_session_written_last_is_read_too(session: str, ids: list[int]) -> None:
    rest = pb.StepRequest(actions=[pb.Action(id=each) for each in ids]).SerializeToString()
    unknown = b"\x55\x00\x00\x00\x01" + b"\x51" + b"\x00" * 8 + b"\x50\x96\x01"  # fixed32, fixed64 and varint fields
    request = rest + unknown + pb.StepRequest(session=session).SerializeToString()
    assert session_id.first_string(request) == session


@given(st.binary(max_size=400))
def test_random_bytes_never_crash_it(request: bytes) -> None:
    found = session_id.first_string(request)
    assert found is None or (isinstance(found, str) and found)


@given(st.binary(max_size=60))
def test_random_bytes_after_the_tag_never_crash_it(rest: bytes) -> None:
    session_id.first_string(b"\x0a" + rest)


@given(st.text(min_size=1, max_size=60), st.data())
def test_a_request_cut_short_has_no_session_or_the_whole_one(session: str, data: st.DataObject) -> None:
    request = pb.StepRequest(session=session, actions=[pb.Action(id=1)]).SerializeToString()
    cut = data.draw(st.integers(0, len(request)))
    assert session_id.first_string(request[:cut]) in (None, session)


GROUP = b"\x4b\x50\x01\x4c"  # field 9, which no message of ours has


@given(st.lists(st.text(min_size=1, max_size=60), min_size=2, max_size=4), st.sampled_from([b"", GROUP, b"\x48\x01"]))
def test_of_several_sessions_the_last_is_read_as_the_service_does(sessions: list[str], between: bytes) -> None:
    request = between.join(pb.StepRequest(session=each).SerializeToString() for each in sessions)
    assert session_id.first_string(request) == pb.StepRequest.FromString(request).session == sessions[-1]
    assert session_id.first_string(request + b"\x0a\x00") is None, "an empty one is none"


def test_a_field_that_is_written_in_more_bytes_than_it_needs_is_read_too() -> None:
    request = pb.StepRequest(session="decoy.a").SerializeToString() + b"\x8a\x00\x06real.b"
    assert session_id.first_string(request) == pb.StepRequest.FromString(request).session == "real.b"


@given(st.binary(max_size=400))
def test_no_bytes_name_one_session_here_and_another_to_the_service(request: bytes) -> None:
    try:
        named = pb.GetRequest.FromString(request).session
    except DecodeError:
        named = ""
    assert (session_id.first_string(request) or "") == named


def test_a_session_too_long_to_be_ours_and_one_that_is_no_text_are_none() -> None:
    assert session_id.first_string(pb.GetRequest(session="x" * 253).SerializeToString()) == "x" * 253
    assert session_id.first_string(pb.GetRequest(session="x" * 254).SerializeToString()) is None
    assert session_id.first_string(b"\x0a\x02\xff\xfe") is None
    assert session_id.first_string(pb.GetRequest().SerializeToString()) is None


def test_home_is_what_follows_the_last_dot() -> None:
    assert session_id.home("abc.video-1") == "video-1"
    assert session_id.home("a.b.video-1") == "video-1"
    for other in ("", ".", "abc", "abc.", ".video-1"):
        assert session_id.home(other) is None


@given(st.lists(st.text(min_size=1, max_size=60), max_size=5), st.binary(max_size=200))
def test_the_sessions_of_an_answer_are_read(sessions: list[str], data: bytes) -> None:
    forked = pb.ForkResponse(sessions=[pb.Session(session=each, block_count=3) for each in sessions])
    assert list(session_id.sessions_in(forked.SerializeToString())) == sessions
    created = pb.CreateSessionResponse(session=pb.Session(session="s.a"), warnings=["w"])
    created.frames.tensor.data = data
    assert list(session_id.sessions_in(created.SerializeToString())) == ["s.a"]


@given(st.binary(max_size=200))
def test_no_answer_crashes_it(answer: bytes) -> None:
    assert all(isinstance(each, str) for each in session_id.sessions_in(answer))
