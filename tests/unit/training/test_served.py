"""Figures that are measured in pieces, and what the card says of them."""

from pathlib import Path

import pytest

from training.minigrid.card import _gains
from training.minigrid.served import FIRST_LOOP, Pieces, record_loops


async def test_a_run_that_was_cut_short_goes_on_where_it_was(tmp_path: Path) -> None:
    file, made = tmp_path / "pieces.json", []

    async def measure() -> list[float]:
        made.append(1)
        return [0.5, 0.25]

    assert await Pieces(file, {"nfe": 4}).get("one", measure) == [0.5, 0.25]
    again = Pieces(file, {"nfe": 4})
    assert await again.get("one", measure) == [0.5, 0.25]
    assert len(made) == 1
    await again.get("two", measure)
    assert len(made) == 2
    with pytest.raises(ValueError, match="holds figures of"):
        Pieces(file, {"nfe": 2})


def test_loops_that_policies_were_chosen_by_are_not_measured() -> None:
    assert [loop.number for loop in record_loops("test", 2)] == [FIRST_LOOP, FIRST_LOOP + 1]
    assert FIRST_LOOP >= 40


def test_policies_are_compared_loop_by_loop() -> None:
    shares = {"sliding": [0.0, 0.5, 1.0], "retrieve": [0.5, 1.0, 1.5]}
    assert _gains(shares) == "- `retrieve` less `sliding`: +0.500 ± 0.000"
