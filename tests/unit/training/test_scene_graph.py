"""The shipped scene graph: what it draws, from what, and what the manifest says of it."""

from __future__ import annotations

from pathlib import Path
from string import Formatter
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import yaml

from training.minigrid import tiles
from training.minigrid.captions import Mention
from training.minigrid.scene_card import TEXT, kept_section, scene_section
from training.minigrid.scene_evaluate import measure
from training.minigrid.scene_manifest import FILE, add_scene, prompt_section
from training.minigrid.scene_sampler import SceneSampler
from training.minigrid.vocabulary import EXAMPLES, tokenize

PACKAGE = Path(__file__).parents[3] / "models/minigrid/1"
LEVELS = prompt_section()["schedule"]


@pytest.fixture(scope="module")
def sampler() -> SceneSampler:
    return SceneSampler.load(PACKAGE)


def test_the_manifest_says_what_the_vocabulary_says() -> None:
    document = yaml.safe_load((PACKAGE / "model.yaml").read_text())
    assert document["prompt"] == prompt_section()
    assert document["files"]["scene"] == FILE


def test_a_manifest_told_of_its_scene_again_stays_as_it_is(tmp_path: Path) -> None:
    document: dict[str, Any] = {"name": "minigrid", "files": {"denoise": "denoise.onnx"}, "starts": []}
    assert add_scene(document, tmp_path) == document
    (tmp_path / FILE).touch()
    told = add_scene(document, tmp_path)
    assert list(told) == ["name", "prompt", "files", "starts"]
    assert add_scene(told, tmp_path) == told
    (tmp_path / FILE).unlink()
    assert add_scene(told, tmp_path) == document


def test_a_view_does_not_depend_on_the_batch_it_is_drawn_in() -> None:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(PACKAGE / FILE), options, providers=["CPUExecutionProvider"])
    prompts = [*EXAMPLES, "", "a box"]
    inputs = {
        "x": np.random.default_rng(0).standard_normal((len(prompts), 1, 56, 56, 3), dtype=np.float32),
        "t": np.linspace(1, 0.5, len(prompts), dtype=np.float32),
        "tokens": np.stack([tokenize(prompt)[0] for prompt in prompts]),
    }
    whole = session.run(None, inputs)[0]
    for size in (1, 2, 3):
        for first in range(0, len(prompts) - size + 1, size):
            rows = slice(first, first + size)
            alone = session.run(None, {name: value[rows] for name, value in inputs.items()})[0]
            assert np.array_equal(alone, whole[rows]), size


def test_views_are_made_of_the_simulators_tiles_with_the_agent_in_its_cell(sampler: SceneSampler) -> None:
    frames = sampler.draw(list(EXAMPLES), levels=LEVELS, seed=0)
    ids, errors = tiles.nearest_tile(frames)
    assert errors.max() == 0
    assert (ids[:, tiles.AGENT_CELL] >= tiles.AGENT).all()
    assert (ids[:, tiles.AGENT_CELL] < tiles.DARK).all()


def test_what_a_prompt_names_is_in_most_of_its_views(sampler: SceneSampler) -> None:
    for prompt, mentions in {
        "a lava crossing with a green goal": (Mention("lava"), Mention("goal")),
        "a room with a red door": (Mention("door", "red"),),
        "a purple box": (Mention("box", "purple"),),
    }.items():
        ids = tiles.nearest_tile(sampler.draw([prompt] * 8, levels=LEVELS, seed=1))[0]
        for mention in mentions:
            assert mention.holds(ids).mean() > 0.5, (prompt, mention)


def test_a_seed_is_a_view_and_other_seeds_are_other_views(sampler: SceneSampler) -> None:
    prompt = ["a room with a yellow key"]
    views = [sampler.draw(prompt, levels=LEVELS, seed=seed)[0] for seed in (1, 1, 2, 3, 4)]
    assert np.array_equal(views[0], views[1])
    assert len({view.tobytes() for view in views}) == 4


def test_the_card_has_a_section_for_what_is_measured(sampler: SceneSampler) -> None:
    section = scene_section(measure(sampler, [1.0, 0.9], split="validation", count=4))
    assert "composed, by chance" in section
    assert "{" not in section


def test_the_shipped_card_has_every_sentence_of_its_section() -> None:
    card = (PACKAGE / "MODEL_CARD.md").read_text()
    at = 0
    for literal, *_ in Formatter().parse(TEXT):
        found = card.find(literal, at)
        assert found >= 0, f"the card lacks {literal!r}"
        at = found + len(literal)


def test_a_section_is_put_where_it_was(tmp_path: Path) -> None:
    card = tmp_path / "MODEL_CARD.md"
    card.write_text((PACKAGE / "MODEL_CARD.md").read_text())
    kept = kept_section(card)
    assert kept.startswith("## Scene prompts\n")
    card.write_text(card.read_text().replace(kept, "", 1))
    assert kept_section(card) == ""
    assert "\n\n## Limits\n" in card.read_text()
