"""The shipped card says what its generator writes."""

from pathlib import Path
from string import Formatter

from training.doom.card import _TEXT, table

PACKAGE = Path(__file__).parents[3] / "models/doom/1"


def test_the_shipped_card_has_every_sentence_of_the_generator_in_its_order() -> None:
    card = (PACKAGE / "MODEL_CARD.md").read_text()
    at = 0
    for literal, *_ in Formatter().parse(_TEXT):
        found = card.find(literal, at)
        assert found >= 0, f"the card lacks {literal!r}"
        at = found + len(literal)
    assert (PACKAGE / "contact.png").exists()


def test_the_tables_have_a_row_for_each_thing_that_was_measured() -> None:
    row = {"nfe": 2, "depth": 1, "picture": "model", "psnr": 20.0, "distance": 0.5}
    document = {
        "default_nfe": 2,
        "rows": [row, {**row, "picture": "copy"}],
        "frechet": {"2": {"model": 1.0, "copy": 2.0, "blur": 3.0, "real": 0.5}},
        "right_round": [{"picture": "model", "psnr": 21.0, "distance": 0.25}],
        "speed": [{"nfe": 2, "chunk_ms": 80.0, "fps": 50.0}],
    }
    told = table(document)
    for wanted in ("| model, 2 evaluations | 20.0 dB, 0.500 |", "| copy | 2.000 |", "| 2 | 80 | 50 |", "21.0 dB"):
        assert wanted in told
