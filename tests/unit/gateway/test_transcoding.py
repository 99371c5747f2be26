"""Requests as JSON: a message, or a refusal that says what is wrong, whatever is sent."""

import json
from typing import Any

import pytest
from google.protobuf import message_factory
from hypothesis import given
from hypothesis import strategies as some
from worldtree_gateway.domain import SERVICES
from worldtree_gateway.transcoding import _read
from worldtree_runtime.errors import InvalidRequest

KINDS = [message_factory.GetMessageClass(each.input_type) for one in SERVICES for each in one.descriptor.methods]
FIELDS = [field for kind in KINDS for field in kind.DESCRIPTOR.fields]
NAMES = sorted({name for field in FIELDS for name in (field.name, field.json_name)} | {"id", "name", "data", "@type"})
ODD = ["NaN", "-Infinity", "1s", "-3.5s", "1e400", "99999999999999999999s", "AQ==", "%%", "\ud800"]
VALUES = some.recursive(
    some.none() | some.booleans() | some.floats() | some.integers() | some.text(max_size=6) | some.sampled_from(ODD),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.sampled_from(NAMES), inner, max_size=4),
    max_leaves=12,
)


@given(some.sampled_from(KINDS), some.binary(max_size=40) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_whatever_is_sent_is_a_message_or_a_refusal(kind: Any, body: bytes) -> None:
    refusal = None
    try:
        kind.FromString(_read(body, kind))
    except InvalidRequest as error:
        refusal = error.message
    told = f"the body must be a {kind.DESCRIPTOR.full_name} as JSON"
    assert refusal is None or (refusal.startswith(told) and len(refusal) < 400)


@pytest.mark.parametrize("body", [b"", b"  \n", b"{}", b"{ }"])
def test_nothing_is_an_empty_message(body: bytes) -> None:
    assert all(_read(body, kind) == b"" for kind in KINDS)
