"""Recipes and preferences as a command line has them."""

from typing import Any

import pytest
from worldtree.cli.recipe_text import method_of, parse_parameters, parse_preference
from worldtree.errors import InvalidRequest
from worldtree.multitask_types import MethodInfo, TaskModel

SCHEMA = {
    "properties": {
        "density": {"type": "number"},
        "steps": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "experts": {"type": "array", "items": {"type": "string"}},
        "expert": {"type": "string"},
        "weights": {"anyOf": [{"type": "array"}, {"type": "object"}]},
    }
}
METHOD = MethodInfo("ties", "", immediate=True, needs="nothing", parameters=SCHEMA)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("density=0.2", 0.2),
        ("density = 1", 1),
        ("steps=null", None),
        ("experts=hue,side", ["hue", "side"]),
        ("experts=hue", ["hue"]),
        ('experts=["hue"]', ["hue"]),
        ("experts=", []),
        ("expert=12", "12"),
        ("weights=0.5,0.5", [0.5, 0.5]),
        ('weights={"hue": 1}', [{"hue": 1}]),
        ("stranger=true", True),
        ("stranger=a=b", "a=b"),
    ],
)
def test_a_value_is_what_the_schema_of_the_method_says(setting: str, value: Any) -> None:
    if setting.startswith("weights={"):
        value = value[0]
    assert list(parse_parameters([setting], METHOD).values()) == [value]


def test_without_a_schema_a_value_is_what_it_looks_like() -> None:
    assert parse_parameters(["a=1", "b=x", "c=1,2"], None) == {"a": 1, "b": "x", "c": "1,2"}


@pytest.mark.parametrize("setting", ["density", "=1", ""])
def test_a_setting_without_a_key_is_refused(setting: str) -> None:
    with pytest.raises(InvalidRequest, match="--set takes key=value"):
        parse_parameters([setting], METHOD)


def test_a_preference_is_by_task_or_in_order() -> None:
    assert parse_preference("front_object=0.7, door_state=3") == {"front_object": 0.7, "door_state": 3.0}
    assert parse_preference("0.7,0.3") == [0.7, 0.3]


@pytest.mark.parametrize("text", ["", ",", "hue", "hue=much", "hue=1,2"])
def test_a_preference_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="--preference takes"):
        parse_preference(text)


def test_a_method_is_found_by_its_name() -> None:
    model = TaskModel("m", "1", "d", "", 1, 1, (), (), 0, (METHOD,), (), ())
    assert method_of(model, "ties") is METHOD
    assert method_of(model, "dare") is None
