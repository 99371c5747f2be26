"""Each error of the family becomes one status, whatever it carries."""

import re
from collections import Counter

import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st
from worldtree_runtime import errors
from worldtree_runtime.errors import Kind, WorldtreeError
from worldtree_runtime.status import from_status, to_status

TRAILER_BYTES_MAX = 8192

reasons = st.from_regex(r"[A-Z][A-Z0-9_]{0,61}[A-Z0-9]", fullmatch=True)
texts = st.text(max_size=2000)
numbers = st.integers(-(10**12), 10**12)
known_errors = st.builds(
    WorldtreeError,
    st.sampled_from(Kind),
    reasons,
    texts,
    metadata=st.dictionaries(st.from_regex(r"[a-z][a-z0-9_]{0,30}", fullmatch=True), texts, max_size=8),
    field=st.none() | texts,
    resource_type=st.none() | texts,
    resource_name=st.none() | texts,
    subject=st.none() | texts,
    retry_after_s=st.none() | st.floats(-1, 1e30),
)


def details_of(status: object) -> dict[str, object]:
    found = {}
    for packed in status.details:  # type: ignore[attr-defined]
        name = packed.TypeName().rpartition(".")[2]
        found[name] = getattr(error_details_pb2, name)()
        assert packed.Unpack(found[name])
    return found


@given(known_errors)
def test_each_detail_type_comes_at_most_once_and_error_info_always(error: WorldtreeError) -> None:
    status = to_status(error, request_id="r")
    counts = Counter(packed.TypeName() for packed in status.details)
    assert set(counts.values()) == {1}
    info = details_of(status)["ErrorInfo"]
    assert (info.reason, info.domain) == (error.reason, "worldtree")  # type: ignore[attr-defined]


@given(known_errors)
def test_who_passes_an_error_on_tells_what_it_was_told(error: WorldtreeError) -> None:
    status = to_status(error, request_id="r")
    passed = from_status(status)
    assert passed is not None
    again = to_status(passed, request_id="r")
    assert (again.code, again.message, details_of(again)) == (status.code, status.message, details_of(status))


def test_what_is_not_of_the_family_is_not_passed_on_as_if_it_were() -> None:
    assert from_status(to_status(ValueError("x"), request_id="r")) is None
    foreign = status_pb2.Status(code=code_pb2.NOT_FOUND, message="no such pod")
    foreign.details.add().Pack(error_details_pb2.ErrorInfo(reason="GONE", domain="example.com"))
    assert from_status(foreign) is None


@given(known_errors)
def test_a_status_fits_the_trailers_of_a_call(error: WorldtreeError) -> None:
    status = to_status(error, request_id="r" * 128)
    percent_encoded = sum(1 if 0x20 <= byte <= 0x7E and byte != 0x25 else 3 for byte in status.message.encode())
    base64 = len(status.SerializeToString()) * 4 / 3
    assert percent_encoded + base64 < TRAILER_BYTES_MAX - 256


@given(
    st.dictionaries(st.sampled_from(["needed", "free", "limit", "value", "maximum"]), numbers, min_size=1),
    st.sampled_from(["invalid", "exhausted", "aborted", "precondition", "unavailable", "data_loss", "not_found"]),
)
def test_every_number_of_the_message_is_repeated_in_the_metadata(given_numbers: dict[str, int], kind: str) -> None:
    message = ", ".join(f"{name} {value}" for name, value in given_numbers.items())
    error: WorldtreeError
    match kind:
        case "invalid":
            error = errors.InvalidRequest("count", message, **given_numbers)
        case "exhausted":
            error = errors.Exhausted("FULL_NOW", message, retry_after_s=1, subject="s", **given_numbers)
        case "aborted":
            error = errors.Aborted("BUSY_NOW", message, **given_numbers)
        case "precondition":
            error = errors.FailedPrecondition("CLOSED", message, subject="s", **given_numbers)
        case "unavailable":
            error = errors.Unavailable("DOWN", message, retry_after_s=1, **given_numbers)
        case "data_loss":
            error = errors.DataLoss("CORRUPT", message, **given_numbers)
        case _:
            error = errors.NotFound("model", message, **given_numbers)
    status = to_status(error, request_id="r")
    info = details_of(status)["ErrorInfo"]
    values = " ".join(info.metadata.values())  # type: ignore[attr-defined]
    assert all(number in values for number in re.findall(r"-?\d+", status.message))
    assert {name: str(value) for name, value in given_numbers.items()}.items() <= dict(info.metadata).items()  # type: ignore[attr-defined]


@given(st.sampled_from(Kind))
def test_every_kind_has_a_code_of_its_own(kind: Kind) -> None:
    codes = [to_status(WorldtreeError(each, "REASON", "m"), request_id="r").code for each in Kind]
    assert len(set(codes)) == len(Kind)
    own = to_status(WorldtreeError(kind, "REASON", "m"), request_id="r").code
    assert own not in (code_pb2.OK, code_pb2.UNKNOWN, code_pb2.INTERNAL)


@given(
    st.sampled_from([ValueError, KeyError, RuntimeError, OSError, AssertionError]), st.text(min_size=8, max_size=200)
)
def test_anything_else_is_internal_and_its_text_stays_here(kind: type[Exception], text: str) -> None:
    status = to_status(kind(f"<{text}>"), request_id="r-1")
    assert status.code == code_pb2.INTERNAL
    assert f"<{text}>" not in str(status)
    found = details_of(status)
    assert set(found) == {"ErrorInfo", "RequestInfo"}
    assert (found["ErrorInfo"].reason, found["RequestInfo"].request_id) == ("BUG", "r-1")  # type: ignore[attr-defined]


@given(st.floats(0, 86_400))
def test_a_retry_is_never_told_too_early(retry_after_s: float) -> None:
    status = to_status(errors.Unavailable("DOWN", "down", retry_after_s=retry_after_s), request_id="r")
    delay = details_of(status)["RetryInfo"].retry_delay  # type: ignore[attr-defined]
    assert retry_after_s - 1e-9 <= delay.seconds + delay.nanos / 1e9 <= retry_after_s + 0.002


def test_a_name_that_is_not_found_lists_few_known_names_and_the_closest_of_many() -> None:
    assert errors.NotFound("model", "x").message == 'model "x" not found'
    assert errors.NotFound("model", "x", known=["a", "b"]).message == 'model "x" not found; known: a, b'
    many = ["four-rooms", *(f"world-{number:02}" for number in range(29))]
    assert "; close: four-rooms (30 are known)" in errors.NotFound("start", "four-room", known=many).message
    assert errors.NotFound("start", "zzz", known=many).message == 'start "zzz" not found; 30 are known'
    assert errors.NotFound("model version", "x").reason == "MODEL_VERSION_NOT_FOUND"
    assert len(errors.NotFound("model", "m" * 10_000).message) < 200


@given(st.lists(st.text("abc-", min_size=1, max_size=200), max_size=30))
def test_the_metadata_tells_how_many_names_are_known_and_as_many_of_them_as_fit(known: list[str]) -> None:
    info = details_of(to_status(errors.NotFound("model", "x", known=known), request_id="r"))["ErrorInfo"]
    told = dict(info.metadata)  # type: ignore[attr-defined]
    assert told["known_count"] == str(len(known))
    listed = told["known"].split(", ") if "known" in told else []
    assert set(listed) <= set(known)
    assert len(", ".join(listed)) <= 160
    if len(", ".join(known)) <= 160:
        assert listed == known
    assert listed or all(len(name) > 160 for name in known)
    assert "known_count" not in errors.NotFound("model", "x").metadata


@pytest.mark.parametrize("reason", ["lower", "", "A", "A" * 64, "A-B", "_A"])
def test_a_reason_that_programs_could_not_match_is_our_own_mistake(reason: str) -> None:
    with pytest.raises(AssertionError, match="reason must be UPPER_SNAKE"):
        errors.Aborted(reason, "m")
