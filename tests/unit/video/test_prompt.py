"""A prompt's words as ids, and what is said of those that the model does not know."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worldtree_runtime.video_package import PromptSpec
from worldtree_video.prompt import read_prompt

SPEC = PromptSpec(
    tokens=4, words=("red", "blue", "door", "key", "a"), aliases={"doors": "door", "azure": "blue"}, schedule=(1.0,)
)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("a red door", (5, 1, 3, 0)),
        ("  A RED,\tdoor!!\n", (5, 1, 3, 0)),
        ("key door red", (4, 3, 1, 0)),  # order is kept: colours belong to what follows
        ("azure doors", (2, 3, 0, 0)),
        ("red-door", (1, 3, 0, 0)),
        ("red_door", (1, 3, 0, 0)),
        ("\uff52\uff45\uff44 key", (1, 4, 0, 0)),  # the same letters, wide
        ("red red red red", (1, 1, 1, 1)),
    ],
)
def test_words_are_known_whatever_their_case_and_what_stands_between(text: str, tokens: tuple[int, ...]) -> None:
    prompt = read_prompt(text, SPEC)
    assert (prompt.tokens, prompt.warnings) == (tokens, ())


def test_unknown_words_are_left_out_and_named_once() -> None:
    prompt = read_prompt("a purple Dragon and a red purple door", SPEC)
    assert prompt.tokens == (5, 5, 1, 3)
    assert prompt.warnings == (
        "the model does not know 3 of the prompt's words, and ignores them: purple, dragon, and",
    )


def test_a_prompt_of_unknown_words_only_asks_for_any_scene() -> None:
    prompt = read_prompt("Ein Drache?", SPEC)
    assert prompt.tokens == (0, 0, 0, 0)
    assert prompt.warnings[1] == "the model knows no word of the prompt: the scene is any that it can make"


def test_more_words_than_are_heeded_are_told() -> None:
    prompt = read_prompt("red door blue key red", SPEC)
    assert prompt.tokens == (1, 3, 2, 4)
    assert prompt.warnings == ("the model heeds the first 4 words that it knows, of 5",)


def test_a_crowd_of_unknown_words_makes_a_short_warning() -> None:
    (warning, _) = read_prompt(" ".join(f"word{number}" + "x" * 60 for number in range(100)), SPEC).warnings
    assert "100 of the prompt's words" in warning
    assert len(warning) < 500


@given(st.text(max_size=200))
def test_any_text_gives_ids_of_the_vocabulary(text: str) -> None:
    prompt = read_prompt(text, SPEC)
    assert len(prompt.tokens) == SPEC.tokens
    assert all(0 <= token <= len(SPEC.words) for token in prompt.tokens)
    assert list(prompt.tokens) == [*(t for t in prompt.tokens if t), *(t for t in prompt.tokens if not t)]
