import pytest
from hypothesis import given
from hypothesis import strategies as st
from worldtree.cli.terminal import parse_keys


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        (b"\x1b[A\x1b[B\x1b[C\x1b[D", ["up", "down", "right", "left"]),
        (b"\x1bOA", ["up"]),
        (b"\x1b[1;5C", ["right"]),
        (b"wad", ["w", "a", "d"]),
        (b" \t\r", ["space", "tab", "enter"]),
        (b"\x1b", ["escape"]),
        (b"\x1b[15~q", ["q"]),
        (b"\x1b[", []),
        (b"", []),
    ],
)
def test_keys_as_terminals_send_them(data: bytes, keys: list[str]) -> None:
    assert parse_keys(data) == keys


@given(st.binary(max_size=64))
def test_any_bytes_end_in_keys(data: bytes) -> None:
    assert all(parse_keys(data))
