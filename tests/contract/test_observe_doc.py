"""docs/observe.md: the settings, attributes, events, spans and fields that it names are those of the code."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from worldtree_runtime.settings import ServiceSettings

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/observe.md").read_text()
TOLD = ["services/gateway/worldtree_gateway", "services/runtime/worldtree_runtime", "services/video/worldtree_video"]
ROWS = re.findall(r"^\| `(otel_\w+|access_log)` \| (\S+) \| .+ \|$", TEXT, re.MULTILINE)


def strings() -> Iterator[str]:
    """Every string of the code that may tell of a call."""
    for folder in TOLD:
        for file in (ROOT / folder).glob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


SAID = frozenset(strings())
NAMES = re.compile(r"worldtree\.(?:chunk\.|tick\.)?[a-z_]+")
OTHERS = frozenset({"worldtree.yaml", "worldtree.kv_policies"})  # the settings' file, the plug-ins' group


@pytest.mark.parametrize(("name", "default"), ROWS)
def test_a_setting_has_the_default_of_the_table(name: str, default: str) -> None:
    actual = ServiceSettings.model_fields[name].default
    assert default == ("unset" if actual is None else str(actual).lower())


def test_the_settings_are_all_there() -> None:
    assert [name for name, _ in ROWS] == ["otel_endpoint", "otel_sample_share", "access_log"]
    assert set(re.findall(r"WORLDTREE_(OTEL_\w+)", TEXT)) <= {"OTEL_ENDPOINT"}


def test_every_attribute_and_event_is_told_and_every_one_that_is_told_is_named() -> None:
    named = set(re.findall(r"`(worldtree\.[a-z_.]+)`", TEXT))
    assert named == {each for each in SAID if NAMES.fullmatch(each)} - OTHERS


@pytest.mark.parametrize("name", re.findall(r"`((?:rpc|server|error)\.[a-z_.]+)`", TEXT))
def test_an_attribute_of_the_conventions_is_told(name: str) -> None:
    assert name in SAID


@pytest.mark.parametrize("name", ["chunk", "queue", "tick", "hold", "encode", "send", "pass"])
def test_a_span_of_a_chunk_is_in_the_table(name: str) -> None:
    assert name in SAID
    assert f"| `{name}` |" in TEXT
