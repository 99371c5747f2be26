from datetime import timedelta
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from worldtree import InvalidRequest, KvPolicy
from worldtree.common.v1 import common_pb2
from worldtree.convert import frames_from_pb, frames_to_pb, integer, kv_from_pb, kv_to_pb, model_ref, seconds


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
    ],
)
def test_a_wrong_kv_names_the_key_and_what_is_accepted(kv: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        kv_to_pb(kv)
    assert refused.value.field == field


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
