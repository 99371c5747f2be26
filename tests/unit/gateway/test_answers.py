"""A recorded answer survives its trip through a shared store, and nothing else passes for one."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worldtree_gateway.answers import Answer, CorruptAnswerError

# some of them large and all alike, which are compressed
message = st.binary(max_size=100) | st.builds(
    lambda byte, count: byte * count, st.binary(max_size=2), st.integers(0, 9000)
)
messages = st.lists(message, max_size=8).map(tuple)
LIMIT = 1 << 20


@given(messages, st.floats(0, 1e12), st.floats(0, 1e12))
def test_what_is_encoded_is_decoded(messages: tuple[bytes, ...], stored_time_s: float, expire_time_s: float) -> None:
    answer = Answer(messages, stored_time_s, expire_time_s)
    assert Answer.decode(answer.encode(), byte_limit=LIMIT) == answer


@given(messages, st.data())
def test_an_answer_cut_short_is_corrupt(messages: tuple[bytes, ...], data: st.DataObject) -> None:
    encoded = Answer(messages, 1.0, 2.0).encode()
    with pytest.raises(CorruptAnswerError):
        Answer.decode(encoded[: data.draw(st.integers(0, len(encoded) - 1))], byte_limit=LIMIT)


@given(st.binary(max_size=100))
def test_random_bytes_are_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptAnswerError):
        Answer.decode(data, byte_limit=LIMIT)


def test_trailing_bytes_are_corrupt() -> None:
    with pytest.raises(CorruptAnswerError, match="2 messages were written, 2 are whole"):
        Answer.decode(Answer((b"a", b"b"), 1.0, 2.0).encode() + b"xyz", byte_limit=LIMIT)


def test_it_is_fresh_until_it_expires_and_for_those_who_take_its_age() -> None:
    answer = Answer((), stored_time_s=100.0, expire_time_s=110.0)
    assert answer.fresh(109.9)
    assert not answer.fresh(110.0)
    assert answer.fresh(105.0, age_max_s=5.0)
    assert not answer.fresh(105.1, age_max_s=5.0)


def test_what_is_large_and_regular_takes_little_room_and_noise_no_more_than_before() -> None:
    flat, noise = Answer((bytes(1 << 18),), 1.0, 2.0), Answer((os.urandom(1 << 18),), 1.0, 2.0)
    assert len(flat.encode()) < 1024
    assert len(noise.encode()) <= (1 << 18) + 64


def test_what_would_grow_beyond_the_limit_is_never_unpacked() -> None:
    encoded = Answer((bytes(1 << 18),), 1.0, 2.0).encode()
    with pytest.raises(CorruptAnswerError, match="at most 1000 bytes"):
        Answer.decode(encoded, byte_limit=1000)
    lying = encoded[:24] + (900).to_bytes(8, "little") + encoded[32:]
    with pytest.raises(CorruptAnswerError, match="the compressed frame says otherwise"):
        Answer.decode(lying, byte_limit=1000)


def test_a_damaged_frame_is_corrupt() -> None:
    encoded = bytearray(Answer((bytes(1 << 18),), 1.0, 2.0).encode())
    encoded[33:37] = b"none"
    with pytest.raises(CorruptAnswerError, match="compressed"):
        Answer.decode(bytes(encoded), byte_limit=LIMIT)
    with pytest.raises(CorruptAnswerError, match="can't be read"):
        Answer.decode(Answer((bytes(1 << 18),), 1.0, 2.0).encode() + b"xyz", byte_limit=LIMIT)
