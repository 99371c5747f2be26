"""docs/bring-your-own-model.md says what is so: its code is the scaffold's, its manifest too, its tables are whole."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel
from worldtree_runtime.video_package import FilesSpec, VideoPackage
from worldtree_video.tools.dry_run import BATCHES
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


def table(heading: str) -> list[tuple[str, str]]:
    """The first cell of each row of a table, and all of the row."""
    _, _, rest = TEXT.partition(f"| {heading} |")
    rows = [line for line in rest.partition("\n\n")[0].splitlines() if line.startswith("| `")]
    assert rows
    return [(row.split("|")[1], row) for row in rows]


def parts_of(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models in a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for each in get_args(annotation):
        yield from parts_of(each)


def fields(model: type[BaseModel], *above: str) -> Iterator[tuple[str, ...]]:
    """The path to every field that a package's author has a choice in."""
    for name, field in model.model_fields.items():
        if get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1:
            continue
        yield *above, name
        for part in parts_of(field.annotation):
            yield from fields(part, *above, name)


def test_its_table_tells_of_every_field_in_the_row_of_its_part() -> None:
    rows = table("field of `model.yaml`")
    paths = set(fields(VideoPackage)) - {("description",), ("license",)}
    assert {("prompt", "schedule"), ("kv", "pose", "ahead"), ("action", "low"), ("starts", "file")} <= paths
    for *above, name in paths:
        own = {f"`{'.'.join([*above, name])}`"}
        part = {f"`{'.'.join(above)}`"} if above else set()
        named = any(own & set(re.findall(r"`[\w.]+`", first)) for first, _ in rows)
        told = any(part & set(re.findall(r"`[\w.]+`", first)) and re.search(rf"`{name}\b", row) for first, row in rows)
        assert named or told, (*above, name)


def test_its_table_tells_of_every_input_and_output_by_its_graph() -> None:
    told: dict[str, set[str]] = {}
    for first, _ in table("input or output"):
        names, _, graphs = first.partition(" of ")
        for graph in re.findall(r"\w+", graphs.replace(" and ", ", ")):
            told.setdefault(graph, set()).update(re.findall(r"`(\w+)`", names))
    context = {"action", "position", "pool", "table", "key_mask", "cache_quality"}
    assert told == {
        "denoise": {"x", "t", "x0", *context},
        "commit": {"x0", "slot", "pool_out", *context},
        "encode": {"frames", "latents"},
        "decode": {"frames", "latents"},
        "scene": {"x", "t", "tokens", "x0"},
    }
    assert told.keys() == set(FilesSpec.model_fields)


def test_it_names_the_batches_that_are_compared() -> None:
    *most, last = map(str, BATCHES)
    assert f"`validate` compares batches of {', '.join(most)} and {last}." in TEXT


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
