"""docs/bring-your-own-model.md says what is so: its code is the scaffold's, its manifest too, its tables are whole."""

import re
from pathlib import Path
from typing import Any

import pytest
from worldtree_runtime.model_package import FilesSpec, VideoPackage
from worldtree_video.tools.scaffold import Plan, new

DOCUMENT = Path(__file__).parents[3] / "docs/bring-your-own-model.md"
TEXT = DOCUMENT.read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """What its first command writes."""
    (command,) = re.findall(r"^\$ worldtree models new (.*)$", TEXT, re.MULTILINE)
    assert command == "dunes --latent --vector 3 --frames-per-chunk 3"
    return new(Plan("dunes", latent=True, vector=3, frames_per_chunk=3), tmp_path)


def test_its_code_is_that_of_the_scaffolds(begun: Path, tmp_path: Path) -> None:
    woods = new(Plan("woods", attention=True), tmp_path)
    sources = [(folder / "export.py").read_text() for folder in (begun, woods)]
    shown = [block for block in blocks("python") if "worldtree.Client" not in block]
    assert len(shown) == 5
    for block in shown:
        assert any(block in source for source in sources), block


def test_its_manifest_is_that_of_the_scaffold(begun: Path) -> None:
    assert blocks("yaml") == [(begun / "1/model.yaml").read_text()]


def test_its_tables_name_every_field_and_every_input() -> None:
    rows = "\n".join(line.split("|")[1] for line in TEXT.splitlines() if line.startswith("| `"))
    named = set(re.findall(r"`([\w.]+)`", rows))
    told_elsewhere = {"format", "kind", "description", "license", "backend"}
    assert set(VideoPackage.model_fields) - told_elsewhere <= named
    assert {"kv.state_tokens", "kv.pose"} <= named
    inputs = {"x", "t", "x0", "slot", "action", "position", "pool", "table", "key_mask", "cache_quality", "pool_out"}
    assert inputs | {"frames", "latents", "tokens"} <= named
    for graph in FilesSpec.model_fields:
        assert re.search(rf"\b{graph}\b", rows), graph


def test_attention_of_the_scaffold_sees_what_is_in_view_and_nothing_else(tmp_path: Path) -> None:
    torch: Any = pytest.importorskip("torch")
    folder = new(Plan("woods", attention=True, height_px=8, width_px=8), tmp_path)
    space: dict[str, Any] = {"__name__": "export", "__file__": str(folder / "export.py")}
    exec(compile((folder / "export.py").read_text(), "export.py", "exec"), space)
    torch.manual_seed(0)
    world = space["World"]()
    for layer in world.layers:
        torch.nn.init.normal_(layer.by_age)
    pool = torch.randn(6, *space["BLOCK"])
    table, mask = torch.tensor([[1, 4, 2, 0]]), torch.tensor([[True, True, True, False]])
    cells, t = torch.randn(1, space["CHANNELS"], 2, 2), torch.ones(1)
    action = space["action_planes"](torch.zeros(1, dtype=torch.int64))

    def drawn(table: Any, pool: Any = pool) -> Any:
        past = world.recall(torch.tensor([3]), pool, table, mask)
        return world.denoise(cells, t, action, past)

    seen = drawn(table)
    spoiled = pool.clone()
    spoiled[[0, 3, 5]] = float("nan")
    assert torch.equal(drawn(table, spoiled), seen), "what is masked, or not in the table, may be anything"
    assert not torch.equal(drawn(table[:, [1, 0, 2, 3]]), seen), "a chunk's age counts"
    nothing = world.recall(torch.tensor([0]), spoiled, table * 0, mask & False)
    assert torch.isfinite(world.denoise(cells, t, action, nothing)).all(), "a first chunk sees nothing"
