from datetime import timedelta
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from worldtree import InvalidRequest, KvPolicy, Resumed
from worldtree.common.v1 import common_pb2
from worldtree.convert import (
    frames_from_pb,
    frames_to_pb,
    integer,
    kv_from_pb,
    kv_to_pb,
    model_ref,
    resumed_from_pb,
    seconds,
    session_from_pb,
)
from worldtree.video.v1 import video_generator_pb2 as pb


@given(arrays(np.uint8, array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=6).map(lambda shape: (2, *shape))))
def test_frames_come_back_as_they_went_and_belong_to_the_caller(pixels: np.ndarray) -> None:
    back = frames_from_pb(frames_to_pb(pixels))
    np.testing.assert_array_equal(back, pixels)
    back += 1


def test_one_image_is_a_sequence_of_one() -> None:
    assert list(frames_to_pb(np.zeros((4, 5, 3), np.uint8)).tensor.shape) == [1, 4, 5, 3]


def test_a_view_that_is_not_contiguous_goes_as_it_looks() -> None:
    pixels = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    np.testing.assert_array_equal(frames_from_pb(frames_to_pb(pixels[:, ::-1, ::2])), pixels[:, ::-1, ::2])


def test_png_files_pass_through_and_are_read() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    message = frames_to_pb([file.getvalue(), file.getvalue()])
    assert len(message.png) == 2
    np.testing.assert_array_equal(frames_from_pb(message), np.stack([pixels, pixels]))


def test_float_frames_go_to_the_server_s_judgement_and_complex_ones_are_refused_here() -> None:
    assert frames_to_pb(np.zeros((1, 2, 2, 3), np.float32)).tensor.dtype == common_pb2.Tensor.D_TYPE_FLOAT32
    with pytest.raises(InvalidRequest, match="complex128") as refused:
        frames_to_pb(np.zeros((1, 2, 2, 3), np.complex128))
    assert refused.value.field == "frames"


@pytest.mark.parametrize(
    "kv",
    [
        KvPolicy("sliding", window=8),
        KvPolicy("sink_window", window=8, sink=0),
        KvPolicy("full", storage="fp32"),
        KvPolicy("retrieve", window=8, sink=1, recent=3, bank=32, storage="int8"),
        KvPolicy("plugin", plugin="surprise", bank=16),
        KvPolicy(),
    ],
)
def test_kv_policies_come_back_as_they_went(kv: KvPolicy) -> None:
    message = kv_to_pb(kv)
    assert message is not None
    assert kv_from_pb(message) == kv


def test_kv_as_a_mapping() -> None:
    message = kv_to_pb({"kind": "sink_window", "window": 8, "sink": 1})
    assert message is not None
    assert kv_from_pb(message) == KvPolicy("sink_window", window=8, sink=1)


def test_kv_takes_the_wire_s_spellings_too() -> None:
    ours = kv_to_pb({"kind": "retrieve", "window": 8, "sink": 2, "recent": 3, "bank": 40})
    wire = kv_to_pb({"kind": "retrieve", "window_chunks": 8, "sink_chunks": 2, "recent_chunks": 3, "bank_chunks": 40})
    assert ours == wire
    assert wire == pb.KvPolicy(
        kind=pb.KvPolicy.KIND_RETRIEVE, window_chunks=8, sink_chunks=2, recent_chunks=3, bank_chunks=40
    )
    with pytest.raises(InvalidRequest, match="another spelling"):
        kv_to_pb({"window": 8, "window_chunks": 8})


def test_naming_a_plugin_is_asking_for_it() -> None:
    assert kv_to_pb({"plugin": "surprise"}) == pb.KvPolicy(kind=pb.KvPolicy.KIND_PLUGIN, plugin="surprise")


@pytest.mark.parametrize("storage", ["fp32", "fp16", "int8"])
def test_each_storage_format_has_its_value_on_the_wire(storage: str) -> None:
    message = kv_to_pb({"storage": storage})
    assert message is not None
    assert pb.KvPolicy.Storage.Name(message.storage) == f"STORAGE_{storage.upper()}"


def test_a_kind_and_a_format_of_a_newer_server_read_as_the_default() -> None:
    assert kv_from_pb(pb.KvPolicy(kind=99, storage=99, window_chunks=8)) == KvPolicy(window=8)  # type: ignore[arg-type]


def test_a_session_says_that_it_is_spilled_and_journaled() -> None:
    info = session_from_pb(pb.Session(state=pb.Session.STATE_SPILLED, journaled=True))
    assert (info.state, info.journaled) == ("spilled", True)


def test_a_play_that_was_re_homed_says_where_it_is_and_how_long_it_stood() -> None:
    message = pb.PlayResponse.Resumed(chunk_index=4, rehomed=True, replica="video-b")
    assert resumed_from_pb(message) == Resumed(4, rehomed=True, replica="video-b", bit_identical=False, pause_s=None)
    message.bit_identical = True
    message.pause_duration.FromMilliseconds(250)
    assert resumed_from_pb(message).pause_s == 0.25
    # After a plain pause there is nothing to say about identity: the wire's false is no news.
    assert resumed_from_pb(pb.PlayResponse.Resumed(chunk_index=4)) == Resumed(4)


@pytest.mark.parametrize(("sink", "kind", "sent"), [(1, "sink_window", 1), (0, "sliding", None)])
def test_a_sliding_window_with_a_sink_is_a_sink_window(sink: int, kind: str, sent: int | None) -> None:
    message = kv_to_pb({"kind": "sliding", "window": 8, "sink": sink})
    assert message is not None
    assert kv_from_pb(message) == KvPolicy(kind, window=8, sink=sent)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kv", "field"),
    [
        ({"kindd": "sliding"}, "kv.kindd"),
        ({"kind": "round"}, "kv.kind"),
        ({"storage": "int4"}, "kv.storage"),
        ({"window": "8"}, "kv.window"),
        ({"window": 2**40}, "kv.window"),
        ({"sink": 0.5}, "kv.sink"),
        ({"bank": 0.5}, "kv.bank"),
        ({"recent_chunks": "3"}, "kv.recent"),
        ({"plugin": 3}, "kv.plugin"),
    ],
)
def test_a_wrong_kv_names_the_key_and_what_is_accepted(kv: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        kv_to_pb(kv)
    assert refused.value.field == field
    assert repr(next(iter(kv.values()))) in str(refused.value)


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), 1e300, timedelta(0)])
def test_a_duration_must_be_positive_and_fit_the_wire(value: float | timedelta) -> None:
    with pytest.raises(InvalidRequest, match="ttl"):
        seconds(value, field="ttl")


def test_durations_are_seconds_or_timedeltas() -> None:
    assert seconds(2, field="ttl") == 2.0
    assert seconds(timedelta(minutes=1), field="ttl") == 60.0


@pytest.mark.parametrize("value", [7, np.int64(7), np.uint8(7), np.array(7)])
def test_an_integer_may_be_numpy_s(value: object) -> None:
    assert integer(value, field="seed") == 7


@pytest.mark.parametrize(("value", "bits"), [(1.0, 64), ("1", 64), (None, 64), (True, 64), (2**63, 64), (2**31, 32)])
def test_what_the_wire_has_no_integer_for_is_refused_by_field_and_value(value: object, bits: int) -> None:
    with pytest.raises(InvalidRequest, match=f"nfe must be a {bits}-bit integer, got {value!r}"):
        integer(value, field="nfe", bits=bits)


@given(st.from_regex(r"[a-z]{1,8}", fullmatch=True), st.from_regex(r"[0-9]{1,3}", fullmatch=True))
def test_a_model_is_named_with_or_without_its_version(name: str, version: str) -> None:
    assert model_ref(name) == common_pb2.ModelRef(name=name)
    assert model_ref(f"{name}/{version}") == common_pb2.ModelRef(name=name, version=version)
