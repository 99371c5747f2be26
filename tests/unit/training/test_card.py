"""The shipped card says what its generator writes, and what it says of KV policies is so."""

from pathlib import Path
from string import Formatter

import yaml
from worldtree_video.domain import KvPolicy, PolicyKind
from worldtree_video.policies import resolve

from training.minigrid.card import _TEXT
from training.minigrid.served import START_COUNT

PACKAGE = Path(__file__).parents[3] / "models/minigrid/1"


class Length:
    """A history of which nothing but its length is asked."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    def action(self, position: int) -> None:
        raise AssertionError(position)

    def summary(self, position: int) -> None:
        raise AssertionError(position)


def test_the_shipped_card_has_every_sentence_of_the_generator_in_its_order() -> None:
    card = (PACKAGE / "MODEL_CARD.md").read_text()
    at = 0
    for literal, *_ in Formatter().parse(_TEXT):
        found = card.find(literal, at)
        assert found >= 0, f"the card lacks {literal!r}"
        at = found + len(literal)


def test_the_card_names_every_policy_that_a_model_is_served_with() -> None:
    card = (PACKAGE / "MODEL_CARD.md").read_text()
    for kind in PolicyKind:
        if kind is not PolicyKind.PLUGIN:  # what a stranger's costs is the stranger's to say
            assert f"| {kind.value} |" in card or f"`{kind.value}` is not in the table" in card, kind


def test_full_shows_what_sliding_shows_until_its_window_is_full_and_no_chunk_after_that() -> None:
    window = yaml.safe_load((PACKAGE / "model.yaml").read_text())["kv"]["window"]
    full, sliding = KvPolicy(PolicyKind.FULL, window), KvPolicy(PolicyKind.SLIDING, window)
    assert full.encode() == sliding.encode()  # so they even share blocks
    for length in range(window + 1):
        history = Length(length)
        assert resolve(full).visible(history) == resolve(sliding).visible(history) == list(range(length))
        assert list(resolve(full).kept(length)) == list(resolve(sliding).kept(length))  # for the same bytes
        assert resolve(full).can_grow(length) == (length < window)
    assert not resolve(full).can_grow(START_COUNT), "the loop of 30 could be walked: measure it"
