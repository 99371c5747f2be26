import pytest
from hypothesis import given
from hypothesis import strategies as st
from worldtree.cli.gauges import bar, size_text, sparkline, time_text

COUNTS = st.integers(0, 500)


@given(st.tuples(COUNTS, COUNTS, COUNTS), COUNTS, st.integers(3, 60))
def test_a_bar_is_as_long_as_it_may_be_whatever_is_in_it(
    amounts: tuple[int, int, int], free: int, columns: int
) -> None:
    parts = tuple(zip(amounts, "abc", ("", "", ""), strict=True))
    text = bar(parts, total=sum(amounts) + free, columns=columns).plain
    assert len(text) == columns
    assert text == "".join(sorted(text, key="abc·".index)), "the parts stand side by side, in order"
    # What is there is seen, unless larger parts before it leave no cell.
    for position, (amount, glyph, _) in enumerate(parts):
        if amount and sum(amounts[:position]) * columns < (columns - 3) * (sum(amounts) + free):
            assert glyph in text


def test_a_bar_shows_shares() -> None:
    assert bar([(2, "x", ""), (1, "y", "")], total=4, columns=8).plain == "xxxxyy··"
    assert bar([(9, "x", "")], total=4, columns=8).plain == "xxxxxxxx"
    assert bar([], total=0, columns=3).plain == "···"


def test_a_sparkline_shows_what_is_there_and_only_that() -> None:
    assert sparkline([0, 1, 50, 100, 200], highest=100) == " ▁▄██"
    assert sparkline([0, 0], highest=0) == "  "


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (210 * 2**20, "210 MiB"), (2**50, "1024 TiB")],
)
def test_sizes(size_bytes: int, text: str) -> None:
    assert size_text(size_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0 s"), (42.9, "42 s"), (185, "3 min 05 s"), (7620, "2 h 07 min"), (356_400, "4 d 03 h")],
)
def test_times(seconds: float, text: str) -> None:
    assert time_text(seconds) == text
