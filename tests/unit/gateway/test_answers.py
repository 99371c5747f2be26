"""A recorded answer survives its trip through a shared store, and nothing else passes for one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worldtree_gateway.answers import Answer, CorruptAnswerError

messages = st.lists(st.binary(max_size=100), max_size=8).map(tuple)


@given(messages, st.floats(0, 1e12), st.floats(0, 1e12))
def test_what_is_encoded_is_decoded(messages: tuple[bytes, ...], stored_time_s: float, expire_time_s: float) -> None:
    answer = Answer(messages, stored_time_s, expire_time_s)
    assert Answer.decode(answer.encode()) == answer


@given(messages, st.data())
def test_an_answer_cut_short_is_corrupt(messages: tuple[bytes, ...], data: st.DataObject) -> None:
    encoded = Answer(messages, 1.0, 2.0).encode()
    with pytest.raises(CorruptAnswerError):
        Answer.decode(encoded[: data.draw(st.integers(0, len(encoded) - 1))])


@given(st.binary(max_size=100))
def test_random_bytes_are_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptAnswerError):
        Answer.decode(data)


def test_trailing_bytes_are_corrupt() -> None:
    with pytest.raises(CorruptAnswerError, match="2 messages were written, 2 are whole"):
        Answer.decode(Answer((b"a", b"b"), 1.0, 2.0).encode() + b"xyz")


def test_it_is_fresh_until_it_expires_and_for_those_who_take_its_age() -> None:
    answer = Answer((), stored_time_s=100.0, expire_time_s=110.0)
    assert answer.fresh(109.9)
    assert not answer.fresh(110.0)
    assert answer.fresh(105.0, age_max_s=5.0)
    assert not answer.fresh(105.1, age_max_s=5.0)
