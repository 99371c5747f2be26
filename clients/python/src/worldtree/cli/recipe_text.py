"""Recipes and preferences as text: "density=0.2", "front_object=0.7,door_state=0.3"."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from worldtree.errors import InvalidRequest
from worldtree.multitask_types import MethodInfo, TaskModel


def parse_parameters(settings: Sequence[str], method: MethodInfo | None) -> dict[str, Any]:
    """Parameters by name from texts "key=value". What a value is its method's schema says, else the text itself."""
    parameters: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise InvalidRequest(f"--set takes key=value, got {setting!r}", field="set")
        parameters[key.strip()] = _parse_value(text.strip(), _kinds(method, key.strip()))
    return parameters


def parse_preference(text: str) -> dict[str, float] | list[float]:
    """Weights by task, "task=weight,task=weight", or one weight a task in their order, "0.7,0.3"."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    named = [part.partition("=") for part in parts]
    try:
        if parts and all(equals for _, equals, _ in named):
            return {task.strip(): float(weight) for task, _, weight in named}
        if parts and not any(equals for _, equals, _ in named):
            return [float(part) for part in parts]
    except ValueError:
        pass  # told below, with what is accepted
    raise InvalidRequest(
        f"--preference takes task=weight,task=weight or one weight a task, got {text!r}", field="preference"
    )


def method_of(model: TaskModel, name: str) -> MethodInfo | None:
    """None: the model's server has no such method, and says so better."""
    return next((method for method in model.methods if method.name == name), None)


def _kinds(method: MethodInfo | None, key: str) -> set[str]:
    """The JSON types that the schema allows; empty: it does not say."""
    properties: Mapping[str, Any] = method.parameters.get("properties", {}) if method else {}
    schema = properties.get(key, {})
    kinds = {each.get("type") for each in (schema, *schema.get("anyOf", ()))}
    return {kind for kind in kinds if isinstance(kind, str)}


def _parse_value(text: str, kinds: set[str]) -> Any:
    if "array" in kinds and not text.startswith(("[", "{")):
        return [_plain(part.strip()) for part in text.split(",") if part.strip()]
    return text if kinds == {"string"} else _plain(text)


def _plain(text: str) -> Any:
    """A number, true, false, null, a list or a mapping as JSON has them; anything else is text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
