"""Packages checked, timed, packed and installed: what is wrong is named by file and field, and nothing wrong passes."""

import errno
import hashlib
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper
from worldtree_runtime.model_package import PackageError, read_package
from worldtree_runtime.model_repository import ModelRepository, package_digest
from worldtree_runtime.settings import SettingsError
from worldtree_runtime.testing import TinyWorld
from worldtree_runtime.testing_experts import TinyExperts
from worldtree_runtime.video_package import VideoPackage
from worldtree_video.codec import Codec
from worldtree_video.model import BATCH_CANDIDATES
from worldtree_video.tools import validate as validation
from worldtree_video.tools.archive_file import install, pack
from worldtree_video.tools.bench import bench
from worldtree_video.tools.dry_run import BATCHES, DryRun
from worldtree_video.tools.findings import Verdict
from worldtree_video.tools.scaffold import Plan, new
from worldtree_video.tools.validate import validate

ROOT = Path(__file__).parents[3]


def finite(world: TinyWorld, repository: Path) -> Path:
    """A package of it whose actions leave out those that make it answer NaN."""
    folder = world.write(repository)
    described = yaml.safe_load((folder / "model.yaml").read_text())
    described["action"] |= {"low": -0.75, "high": 0.75}
    (folder / "model.yaml").write_text(yaml.safe_dump(described, sort_keys=False))
    return folder


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return finite(TinyWorld(action_size=2), tmp_path)


def bad(folder: Path) -> list[tuple[str, str, str]]:
    """(file, field, what was expected) of each bad finding."""
    report = validate(folder)
    assert report.valid is not any(finding.verdict is Verdict.BAD for finding in report.findings)
    return [(each.file, each.field, each.found) for each in report.findings if each.verdict is Verdict.BAD]


def notes(folder: Path) -> set[str]:
    return {each.field for each in validate(folder).findings if each.verdict is Verdict.NOTE}


def rewired(path: Path, edit: Callable[[onnx.GraphProto], None]) -> None:
    model = onnx.load(str(path))
    edit(model.graph)
    onnx.save(model, str(path))


def ahead_of(graph: onnx.GraphProto, name: str, *nodes: onnx.NodeProto, constants: dict[str, np.ndarray]) -> None:
    """Puts nodes in front of a graph's output `name`: the last of them writes it, from `inner`."""
    for node in graph.node:
        for place, output in enumerate(node.output):
            if output == name:
                node.output[place] = "inner"
    graph.node.extend(nodes)
    graph.initializer.extend(numpy_helper.from_array(array, key) for key, array in constants.items())


def test_a_sound_package_has_nothing_bad_and_no_note(package: Path) -> None:
    report = validate(package)
    assert report.valid
    assert not [finding for finding in report.findings if finding.verdict is not Verdict.OK]
    assert (report.package, report.digest) == ("tiny/1", package_digest(package))


def test_a_package_of_another_service_is_said_to_be_one_and_no_more(tmp_path: Path) -> None:
    (finding,) = validate(TinyExperts().write(tmp_path)).findings
    assert (finding.verdict, finding.field) == (Verdict.BAD, "kind")
    assert "must be 'video' for this service, got 'multitask'" in finding.found


def test_every_wrong_field_of_a_manifest_is_named_at_once(package: Path) -> None:
    described = yaml.safe_load((package / "model.yaml").read_text())
    described["frames_per_chunk"] = 0
    described["frame"]["fps"] = -1
    described["colour"] = "blue"
    (package / "model.yaml").write_text(yaml.safe_dump(described))
    assert {field for _, field, _ in bad(package)} == {"frames_per_chunk", "frame.fps", "colour"}


def test_a_missing_graph_and_a_wrong_shape_are_named_by_file_and_field(package: Path) -> None:
    described = yaml.safe_load((package / "model.yaml").read_text())
    described["kv"]["window"] = 5
    (package / "model.yaml").write_text(yaml.safe_dump(described))
    assert bad(package) == [("denoise.onnx", "input table", "must have shape (None, 5), got (None, 4)")]
    (package / "commit.onnx").unlink()
    assert bad(package) == [("model.yaml", "files.commit", "names commit.onnx, which is missing")]


def test_a_file_that_is_no_graph_is_named(package: Path) -> None:
    (package / "commit.onnx").write_bytes(b"\x08\x07" * 40)
    ((file, field, _),) = bad(package)
    assert (file, field) == ("commit.onnx", "graph")


def test_a_start_of_another_size_is_named(package: Path) -> None:
    shutil.copy(package / "starts/dusk.png", package / "starts/dawn.png")
    assert bad(package) == [("dawn.png", "starts.dawn", "must hold at most 24 pixels, got 18 x 4")]


def test_a_graph_whose_bits_depend_on_the_batch_is_refused(package: Path) -> None:
    def blur(graph: onnx.GraphProto) -> None:
        # The whole batch's mean leaks into each member, far below what an eye sees.
        ahead_of(
            graph,
            "x0",
            helper.make_node("ReduceMean", ["inner"], ["mean"], keepdims=0),
            helper.make_node("Mul", ["mean", "little"], ["leak"]),
            helper.make_node("Add", ["inner", "leak"], ["x0"]),
            constants={"little": np.array(1e-5, np.float32)},
        )

    rewired(package / "denoise.onnx", blur)
    found = bad(package)
    assert [(file, field) for file, field, _ in found] == [("denoise.onnx", "x0")] * 2
    assert "bit for bit" in found[0][2]
    assert "one of NaN is seen in another" in found[1][2]


def test_a_graph_whose_bits_are_others_in_a_batch_of_more_than_eight_is_refused(package: Path) -> None:
    def crowded(graph: onnx.GraphProto) -> None:
        ahead_of(
            graph,
            "x0",
            helper.make_node("Shape", ["t"], ["extents"]),
            helper.make_node("Greater", ["extents", "eight"], ["is_crowd"]),
            helper.make_node("Cast", ["is_crowd"], ["crowd"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["crowd", "little"], ["leak"]),
            helper.make_node("Add", ["inner", "leak"], ["x0"]),
            constants={"eight": np.array([8]), "little": np.array(1e-5, np.float32)},
        )

    rewired(package / "denoise.onnx", crowded)
    ((file, field, found),) = bad(package)
    assert (file, field) == ("denoise.onnx", "x0")
    assert "bit for bit" in found


def test_every_batch_that_is_served_is_compared() -> None:
    assert set(BATCH_CANDIDATES) < set(BATCHES)


def cosine_depends_on_the_batch(size: int) -> bool:
    """Whether this machine's ONNX Runtime does the last elements of a tensor with another code than the others."""
    graph = helper.make_graph(
        [helper.make_node("Cos", ["x"], ["y"])],
        "cosine",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", size])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).normal(size=(8, size)).astype(np.float32)
    (whole,) = session.run(None, {"x": x})
    return any((session.run(None, {"x": x[row : row + 1]})[0] != whole[row]).any() for row in range(8))


def test_a_cosine_over_a_tensor_of_odd_size_is_found_by_its_last_bits(tmp_path: Path) -> None:
    folder = finite(TinyWorld(action_size=2, height_px=1, width_px=5), tmp_path)
    assert bad(folder) == []
    rewired(
        folder / "denoise.onnx",
        lambda graph: ahead_of(graph, "x0", helper.make_node("Cos", ["inner"], ["x0"]), constants={}),
    )
    if not cosine_depends_on_the_batch(15):
        pytest.skip("cosines of all elements are alike here")
    ((file, field, found),) = bad(folder)
    assert (file, field) == ("denoise.onnx", "x0")
    assert "must be the same, bit for bit, in any batch" in found


def instead_of(graph: onnx.GraphProto, name: str, kind: str, constant: np.ndarray) -> None:
    """Whatever reads the input `name` reads kind(name, constant) from now on."""
    for node in graph.node:
        for place, read in enumerate(node.input):
            if read == name:
                node.input[place] = "changed"
    graph.node.insert(0, helper.make_node(kind, [name, "by"], ["changed"]))
    graph.initializer.append(numpy_helper.from_array(constant, "by"))


def test_a_commit_that_writes_another_block_than_its_own_is_refused(package: Path) -> None:
    rewired(package / "commit.onnx", lambda graph: instead_of(graph, "slot", "Sub", np.array(1)))
    file, field, found = bad(package)[0]
    assert (file, field) == ("commit.onnx", "pool_out")
    assert found == "must be written only at `slot`; 1 other blocks changed"


def test_a_commit_that_does_not_end_in_its_writing_is_refused(package: Path) -> None:
    def decay(graph: onnx.GraphProto) -> None:
        ahead_of(
            graph,
            "pool_out",
            helper.make_node("Mul", ["inner", "less"], ["pool_out"]),
            constants={"less": np.array(0.5, np.float32)},
        )

    rewired(package / "commit.onnx", decay)
    ((file, field, _),) = bad(package)
    assert (file, field) == ("commit.onnx", "output pool_out")


def test_a_world_that_is_not_finite_is_refused(package: Path) -> None:
    def overflow(graph: onnx.GraphProto) -> None:
        ahead_of(
            graph,
            "x0",
            helper.make_node("Mul", ["inner", "much"], ["larger"]),
            helper.make_node("Exp", ["larger"], ["x0"]),
            constants={"much": np.array(1e4, np.float32)},
        )

    rewired(package / "denoise.onnx", overflow)
    assert ("denoise.onnx", "x0", "must be finite") in bad(package)


def test_weights_outside_the_package_are_refused(package: Path) -> None:
    def elsewhere(graph: onnx.GraphProto) -> None:
        tensor = TensorProto(name="stray", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value="../../weights.bin")
        graph.initializer.append(tensor)

    rewired(package / "denoise.onnx", elsewhere)
    ((file, field, found),) = bad(package)
    assert (file, field) == ("denoise.onnx", "stray")
    assert "../../weights.bin" in found


def test_what_is_only_a_pity_is_a_note(package: Path) -> None:
    described = yaml.safe_load((package / "model.yaml").read_text())
    described |= {"license": "", "starts": []}
    (package / "model.yaml").write_text(yaml.safe_dump(described))
    (package / "MODEL_CARD.md").unlink()

    rewired(package / "denoise.onnx", lambda graph: graph.node[0].metadata_props.add(key="x.stack_trace", value="/me"))
    for graph in ("denoise.onnx", "commit.onnx"):
        rewired(package / graph, lambda model: instead_of(model, "action", "Mul", np.array(0, np.float32)))
    assert validate(package).valid
    assert notes(package) == {"license", "starts", "MODEL_CARD.md", "action", "metadata_props"}


@pytest.mark.parametrize("world", ["models/doom/1", "models/minigrid/1"])
def test_a_shipped_world_is_valid(world: str) -> None:
    assert bad(ROOT / world) == []


@pytest.mark.parametrize(
    "world",
    [
        TinyWorld(action_size=1, latent=True),
        TinyWorld(action_size=1, cache_quality=True),
        TinyWorld(action_size=1, latent=True, prompt=True),
    ],
)
def test_latents_cache_quality_and_prompts_are_run_as_the_engine_runs_them(tmp_path: Path, world: TinyWorld) -> None:
    folder = finite(world, tmp_path)
    assert bad(folder) == []


def embedding(rows: int, last: float = 0.0) -> Callable[[onnx.GraphProto], None]:
    """Adds up a number for each of a prompt's tokens, from a table of so many rows, and draws that too."""
    table = np.zeros((rows, 1), np.float32)
    table[-1] = last

    def edit(graph: onnx.GraphProto) -> None:
        ahead_of(
            graph,
            "x0",
            helper.make_node("Gather", ["by_word", "tokens"], ["each"]),
            helper.make_node("ReduceSum", ["each"], ["sum"], keepdims=0),
            helper.make_node("Add", ["inner", "sum"], ["x0"]),
            constants={"by_word": table},
        )

    return edit


@pytest.mark.parametrize("more", [[], ["cat", "dog"], [f"thing{number}" for number in range(20)]])
def test_each_word_of_a_scene_graph_is_tried(tmp_path: Path, more: list[str]) -> None:
    folder = finite(TinyWorld(action_size=1, prompt=True), tmp_path)
    described = yaml.safe_load((folder / "model.yaml").read_text())
    described["prompt"]["words"] += more
    (folder / "model.yaml").write_text(yaml.safe_dump(described, sort_keys=False))
    words = len(described["prompt"]["words"])
    sound = (folder / "scene.onnx").read_bytes()

    rewired(folder / "scene.onnx", embedding(words + 1))
    assert bad(folder) == []

    (folder / "scene.onnx").write_bytes(sound)
    rewired(folder / "scene.onnx", embedding(words))  # ids begin at 1: the last has no row
    ((file, field, found),) = bad(folder)
    assert (file, field) == ("scene.onnx", "run")
    assert found.startswith("must run for each of its words: ")
    assert f"idx={words}" in found

    (folder / "scene.onnx").write_bytes(sound)
    rewired(folder / "scene.onnx", embedding(words + 1, last=float("nan")))
    assert bad(folder) == [("scene.onnx", "x0", "must be finite for each word and for none")]


def test_a_graph_that_does_not_run_is_a_finding_of_its_own_and_not_one_of_storage(package: Path) -> None:
    def short(graph: onnx.GraphProto) -> None:
        """Knows of no world with a history."""
        ahead_of(
            graph,
            "x0",
            helper.make_node("Gather", ["one_row", "position"], ["by_age"]),
            helper.make_node("ReduceSum", ["by_age"], ["sum"], keepdims=0),
            helper.make_node("Add", ["inner", "sum"], ["x0"]),
            constants={"one_row": np.zeros(1, np.float32)},
        )

    rewired(package / "denoise.onnx", short)
    found = bad(package)
    assert [(file, field) for file, field, _ in found] == [
        ("denoise.onnx", "run"),
        ("denoise.onnx", "run"),  # of a world that goes on
        ("model.yaml", "kv"),  # a block is looked at with a history of one
    ]
    assert all("Gather" in said for _, _, said in found)


@pytest.mark.parametrize("step", ["VideoModel", "BlockStore", "DryRun"])
@pytest.mark.parametrize("lack", [MemoryError("no memory for a pool"), SettingsError("no such device")])
def test_what_the_machine_lacks_is_not_blamed_on_the_package(
    package: Path, monkeypatch: pytest.MonkeyPatch, step: str, lack: Exception
) -> None:
    def lacks(*_: object, **__: object) -> None:
        raise lack

    monkeypatch.setattr(validation, step, lacks)
    with pytest.raises(type(lack)):
        validate(package)


@pytest.mark.parametrize(("low", "high"), [(2.0, 3.0), (-3.0, -2.0), (-0.75, 0.75), (0.0, 1.0)])
def test_the_other_action_that_is_tried_lies_in_the_box(tmp_path: Path, low: float, high: float) -> None:
    folder = TinyWorld(action_size=2).write(tmp_path)
    described = yaml.safe_load((folder / "model.yaml").read_text())
    described["action"] |= {"low": low, "high": high}
    (folder / "model.yaml").write_text(yaml.safe_dump(described))
    stored = ModelRepository(tmp_path, VideoPackage).read(folder)
    run = DryRun(stored, Codec(stored), None)
    (other,) = run._other_action().values()
    assert other.dtype == np.float32
    assert low <= other.min() <= other.max() <= high
    assert (other != run._inputs["action"]).any()


def test_bench_times_what_a_chunk_is_made_of(package: Path) -> None:
    timed = bench(package, repeats=2)
    assert [tick.batch for tick in timed.ticks] == [1, 2, 4, 8, 16]
    one = timed.ticks[0].tick_ms
    for chunk in timed.chunks:
        assert chunk.chunk_ms == pytest.approx(chunk.nfe * one + timed.commit_ms)
        assert chunk.fps == pytest.approx(1e3 / chunk.chunk_ms)
    fp32, fp16, _ = timed.blocks
    window = read_package(package / "model.yaml", VideoPackage).kv.window
    assert (fp32.block_bytes, fp32.frames_bytes) == (192, 4 * 6 * 3)
    assert fp32.session_bytes == (192 + 72) * (window + 1)
    assert fp16.sessions_per_gib == (1 << 30) // ((96 + 72) * (window + 1))
    assert (timed.encode_ms, timed.scene_ms) == (None, None)


def test_bench_times_a_codec_and_a_scene_where_there_are_any(tmp_path: Path) -> None:
    timed = bench(finite(TinyWorld(action_size=1, latent=True, prompt=True), tmp_path), repeats=1)
    assert timed.encode_ms
    assert timed.decode_ms
    assert timed.scene_ms


def test_a_package_packs_to_the_same_bytes_and_installs_whole(package: Path, tmp_path: Path) -> None:
    one, two = (
        pack(package, tmp_path / "one.zip"),
        pack(shutil.copytree(package, tmp_path / "copy/tiny/1"), tmp_path / "two.zip"),
    )
    assert one.path
    assert two.path
    hashes = [hashlib.sha256(Path(packed.path or "").read_bytes()).hexdigest() for packed in (one, two)]
    assert hashes[0] == hashes[1]

    installed = install(Path(one.path), tmp_path / "repository")
    assert installed.path == str(tmp_path / "repository/tiny/1")
    assert package_digest(tmp_path / "repository/tiny/1") == package_digest(package)
    assert [path.name for path in (tmp_path / "repository").iterdir()] == ["tiny"], "no scratch is left"
    assert install(Path(one.path), tmp_path / "repository").path == installed.path, "it is there already"
    with zipfile.ZipFile(one.path) as archive:
        archive.extractall(tmp_path / "by-hand")
    assert package_digest(tmp_path / "by-hand/tiny/1") == package_digest(package)


def test_an_invalid_package_is_neither_packed_nor_installed(package: Path, tmp_path: Path) -> None:
    (package / "denoise.onnx").unlink()
    packed = pack(package, tmp_path / "broken.zip")
    assert packed.path is None
    assert not packed.report.valid
    assert not (tmp_path / "broken.zip").exists()
    assert install(package, tmp_path / "repository").path is None
    assert list((tmp_path / "repository").iterdir()) == []


def test_a_package_is_never_packed_or_installed_into_itself(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = package_digest(package)
    monkeypatch.chdir(package)
    for out in (None, package / "starts/all.zip", Path("../1/all.zip")):
        with pytest.raises(PackageError, match="out: must not lie in the package"):
            pack(Path(), out)
    with pytest.raises(PackageError, match="models: must not lie in the package"):
        install(Path(), package / "models")
    assert package_digest(package) == digest
    assert sorted(path.name for path in package.parent.iterdir()) == ["1"]


def test_a_package_that_cannot_be_written_whole_leaves_the_file_that_was_there(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out/tiny.zip"
    out.parent.mkdir()
    out.write_text("the one before")

    def fails(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfileobj", fails)
        with pytest.raises(OSError, match="No space"):
            pack(package, out)
    assert out.read_text() == "the one before"
    assert pack(package, out).size_bytes == out.stat().st_size
    assert list(out.parent.iterdir()) == [out]


def test_a_version_that_is_installed_is_not_replaced(package: Path, tmp_path: Path) -> None:
    install(package, tmp_path / "repository")
    digest = package_digest(tmp_path / "repository/tiny/1")
    (package / "model.yaml").write_text((package / "model.yaml").read_text().replace("A world for tests", "Another"))
    with pytest.raises(PackageError, match="another version"):
        install(package, tmp_path / "repository")
    assert package_digest(tmp_path / "repository/tiny/1") == digest


@pytest.mark.parametrize("name", ["../escape/1/model.yaml", "/tiny/1/model.yaml", "tiny/1/../../../model.yaml"])
def test_a_zip_that_reaches_out_of_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr(name, "format: 1")
    with pytest.raises(PackageError, match="must lie in NAME/VERSION/"):
        install(tmp_path / "evil.zip", tmp_path / "repository")
    assert list((tmp_path / "repository").iterdir()) == []


def test_what_is_no_zip_of_one_package_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.zip").write_text("not a zip")
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("a/1/model.yaml", "")
        archive.writestr("b/1/model.yaml", "")
    for file, said in (("text.zip", "must be a package"), ("two.zip", "must hold one folder")):
        with pytest.raises(PackageError, match=said):
            install(tmp_path / file, tmp_path / "repository")


def encrypted(raw: bytearray) -> None:
    raw[6] |= 1
    raw[raw.find(b"PK\x01\x02") + 8] |= 1


def damaged(raw: bytearray) -> None:
    begin = 30 + len("tiny/1/model.yaml")
    raw[begin : begin + 8] = b"\xff" * 8


def of_method_98(raw: bytearray) -> None:
    raw[8] = raw[raw.find(b"PK\x01\x02") + 10] = 98


def huge(raw: bytearray) -> None:
    place = raw.find(b"PK\x01\x02") + 24
    raw[place : place + 4] = ((4 << 30) - 1).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (encrypted, "e.zip: zip: must be a package .* is encrypted"),
        (damaged, "e.zip: zip: must be a package .* decompressing"),
        (of_method_98, "e.zip: tiny/1/model.yaml: must be stored or deflated"),
        (huge, "e.zip: zip: must unpack to at most 4294967296 bytes"),
    ],
)
def test_a_zip_that_cannot_be_unpacked_is_refused_by_name(
    tmp_path: Path, damage: Callable[[bytearray], None], said: str
) -> None:
    with zipfile.ZipFile(tmp_path / "e.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in ("model.yaml", "more.yaml"):
            archive.writestr(f"tiny/1/{file}", "format: 1\n" * 100)
    raw = bytearray((tmp_path / "e.zip").read_bytes())
    damage(raw)
    (tmp_path / "e.zip").write_bytes(raw)
    with pytest.raises(PackageError, match=said):
        install(tmp_path / "e.zip", tmp_path / "repository")
    assert list((tmp_path / "repository").iterdir()) == []


@pytest.mark.parametrize(
    "plan",
    [
        Plan("dunes"),
        Plan("dunes", latent=True, vector=3, frames_per_chunk=3),
        Plan("dunes", latent=True, attention=True),
        Plan("dunes", actions=("up", "down"), height_px=48, width_px=64, version="0.1"),
    ],
)
def test_a_new_package_lacks_nothing_but_its_graphs(tmp_path: Path, plan: Plan) -> None:
    folder = new(plan, tmp_path)
    package = folder / plan.version
    read_package(package / "model.yaml", VideoPackage)
    assert bad(package) == [("model.yaml", "files.denoise", "names denoise.onnx, which is missing")]
    assert {path.name for path in folder.iterdir()} == {"README.md", "export.py", plan.version}
    source = (folder / "export.py").read_text()
    compile(source, "export.py", "exec")
    assert not re.search(r"@[A-Z]+@", source)
    said = (folder / "README.md").read_text()
    assert "@" not in said
    assert ("0.5:0.5:0.5*8" if plan.vector else "left*8" if not plan.actions else "up*8") in said


@pytest.mark.parametrize(
    ("plan", "field"),
    [
        (Plan("dunes", height_px=30), "frame.height_px"),
        (Plan("dunes", actions=("up",), vector=2), "action"),
        (Plan("Dunes"), "name"),
        (Plan("dunes", version="1/2"), "version"),
        (Plan("dunes", fps=0), "frame.fps"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_and_nothing_is_written(tmp_path: Path, plan: Plan, field: str) -> None:
    with pytest.raises(PackageError) as caught:
        new(plan, tmp_path)
    assert caught.value.field == field
    assert "pydantic" not in caught.value.expected
    assert list(tmp_path.iterdir()) == []
