import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worldtree import Action, InvalidRequest
from worldtree.actions import action_from_pb, action_to_pb, actions_to_pb
from worldtree.cli.actions_text import parse_actions

names = st.text(min_size=1, max_size=12)
ids = st.integers(-(2**31), 2**31 - 1)
vectors = st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=5).map(tuple)


@given(st.one_of(names, ids, vectors))
def test_an_action_comes_back_as_it_went(value: object) -> None:
    assert action_from_pb(action_to_pb(value)) == value
    assert action_from_pb(action_to_pb(Action(value, "go to the door"))) == Action(value, "go to the door")


@pytest.mark.parametrize(
    ("written", "count"),
    [
        ("forward", 1),
        (2, 1),
        (np.int64(2), 1),
        (["forward"], 1),
        (["left", 2], 2),
        ([1, 2, 3], 3),
        (np.array([1, 2, 3]), 3),
        ([0.5, -0.5], 1),
        (np.array([0.5, -0.5], np.float32), 1),
        ([[0.5, -0.5], [0.0, 1.0]], 2),
        (np.zeros((4, 2), np.float32), 4),
        ((Action("left"), Action(1)), 2),
        ([], 0),
        (iter(["left", "right"]), 2),
        (np.array(1), 1),
        (np.array([1, 2]), 2),
    ],
)
def test_one_action_or_many_are_told_apart(written: object, count: int) -> None:
    assert len(actions_to_pb(written)) == count


@pytest.mark.parametrize("wrong", [None, True, 1.5, object(), b"left", 2**31])
def test_what_is_no_action_is_refused_by_field_and_value(wrong: object) -> None:
    with pytest.raises(InvalidRequest, match="actions") as refused:
        actions_to_pb([wrong] if wrong != 1.5 else 1.5)
    assert refused.value.field.startswith("actions")
    assert refused.value.code == "INVALID_ARGUMENT"


def test_an_id_is_named_where_the_model_has_a_name_for_it() -> None:
    assert action_from_pb(action_to_pb(1), ("left", "right")) == "right"
    assert action_from_pb(action_to_pb(7), ("left", "right")) == 7


def test_actions_as_text() -> None:
    assert parse_actions("forward*3, left,2,0.5:-1.0*2") == ["forward"] * 3 + ["left", 2] + [(0.5, -1.0)] * 2


@pytest.mark.parametrize("text", ["", " , ", "left*", "left*0", "left*x", "left*100001", "0.5:x"])
def test_actions_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_actions(text)


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parsed = parse_actions(text)
    except InvalidRequest:
        return
    assert parsed
