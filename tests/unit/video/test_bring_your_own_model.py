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


def test_its_code_is_that_of_the_scaffold(begun: Path) -> None:
    source = (begun / "export.py").read_text()
    shown = [block for block in blocks("python") if "def attend" not in block and "worldtree.Client" not in block]
    assert len(shown) == 4
    for block in shown:
        assert block in source


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


def test_its_attention_sees_what_is_in_view_and_nothing_else() -> None:
    torch: Any = pytest.importorskip("torch")
    (attend_block,) = (block for block in blocks("python") if "def attend" in block)
    space: dict[str, Any] = {"torch": torch, "Tensor": torch.Tensor}
    exec(compile(attend_block, DOCUMENT.name, "exec"), space)
    torch.manual_seed(0)
    pool = torch.randn(5, 2, 2, 3, 4, 6)  # [P, L, 2, H, N, D]
    query = torch.randn(2, 3, 7, 6)  # [B, H, Q, D]
    table = torch.tensor([[1, 4, 0], [0, 0, 0]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    seen = space["attend"](query, pool, table, mask, 1)
    keys, values = (pool[[1, 4], 1, part].transpose(0, 1).reshape(3, 8, 6) for part in (0, 1))
    expected = torch.nn.functional.scaled_dot_product_attention(query[0], keys, values)
    assert torch.allclose(seen[0], expected, atol=1e-6)
    assert (seen[1] == 0).all(), "a first chunk sees nothing"
    pool[0] = float("nan")
    assert torch.equal(space["attend"](query, pool, table, mask, 1), seen), "what is masked may be anything"
