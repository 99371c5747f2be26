"""Replicas are where they are said to be, and where they last were while nobody can say."""

from pathlib import Path

import pytest
from worldtree_gateway.discovery import Discovery


async def test_a_file_is_read_again_with_its_remarks_left_out(tmp_path: Path) -> None:
    path = tmp_path / "replicas"
    path.write_text("# the first rack\na:1\n\n[::1]:2  # the second\n")
    discovery = Discovery(["z:9", f"file:{path}"])
    assert discovery.changes
    assert discovery.fixed == ["z:9"]
    assert await discovery.addresses() == ["z:9", "a:1", "[::1]:2"]
    path.write_text("b:3\nz:9\n")
    assert await discovery.addresses() == ["z:9", "b:3"]


@pytest.mark.parametrize("damage", ["a:1\nnonsense\n", "", "# soon\n", None, b"\xff\xfe"])
async def test_while_a_file_cannot_be_read_its_replicas_are_those_of_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str | bytes | None
) -> None:
    path = tmp_path / "replicas"
    path.write_text("a:1\n")
    discovery = Discovery([f"file:{path}"])
    assert await discovery.addresses() == ["a:1"]
    path.unlink()
    if damage is not None:
        path.write_bytes(damage if isinstance(damage, bytes) else damage.encode())
    for _ in range(3):
        assert await discovery.addresses() == ["a:1"]
    assert caplog.text.count("can't be looked up") == 1, "told once, not at each look"
    path.write_text("b:2\n")
    assert await discovery.addresses() == ["b:2"]


async def test_a_name_stands_for_all_its_addresses() -> None:
    found = await Discovery(["dns:localhost:7110"]).addresses()
    assert "127.0.0.1:7110" in found
    assert set(found) <= {"127.0.0.1:7110", "[::1]:7110"}


@pytest.mark.parametrize("name", ["nowhere.invalid", "a..b"])
async def test_a_name_that_is_none_has_no_addresses_yet(name: str) -> None:
    discovery = Discovery([f"dns:{name}:7110", "a:1"])
    assert await discovery.addresses() == ["a:1"]


def test_fixed_addresses_need_no_second_look() -> None:
    discovery = Discovery(["a:1", "b:2"])
    assert not discovery.changes
    assert discovery.fixed == ["a:1", "b:2"]


@pytest.mark.parametrize("text", ["file:", "dns:", "dns:host", "dns:host:0", "host:70000", "a b:1", "[::1:5"])
def test_what_is_no_source_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"HOST:PORT|file:PATH"):
        Discovery([text])
