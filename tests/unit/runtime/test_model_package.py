"""The model.yaml: what is wrong is named by file and field."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from worldtree_runtime.model_package import PackageError, read_package
from worldtree_runtime.reward_package import RewardPackage
from worldtree_runtime.testing import TinyWorld
from worldtree_runtime.testing_judges import TinyJudge
from worldtree_runtime.video_package import ContinuousActions, DiscreteActions, VideoPackage

SHIPPED = Path(__file__).parents[3] / "models" / "minigrid" / "1" / "model.yaml"


def read(folder: Path, manifest: Any) -> VideoPackage:
    file = folder / "model.yaml"
    file.write_text(manifest if isinstance(manifest, str) else yaml.safe_dump(manifest))
    return read_package(file, VideoPackage)


def changed(path: str, value: Any) -> dict[str, Any]:
    """A tiny world's manifest with one field changed; a value of `...` takes it away."""
    manifest: Any = TinyWorld().manifest()
    place = manifest
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in parents:
        place = place[part]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return dict(manifest)


def test_a_package_is_read_whole(tmp_path: Path) -> None:
    package = read(tmp_path, TinyWorld(frames_per_chunk=2).manifest())
    assert (package.name, package.version, package.license) == ("tiny", "1", "MIT")
    assert package.chunk_shape == (2, 4, 6, 3)
    assert package.chunk_bytes == 144
    assert package.kv.block_shape == (1, 2, 2, 3, 4)
    assert package.kv.block_bytes == 192
    assert package.sampler.schedules == {1: (1.0,), 2: (1.0, 0.5)}
    assert isinstance(package.action, DiscreteActions)
    assert [start.name for start in package.starts] == ["dawn", "dusk"]


def test_the_shipped_world_is_a_package() -> None:
    package = read_package(SHIPPED, VideoPackage)
    assert package.name == "minigrid"
    assert len(package.starts) >= 12


def test_a_version_that_yaml_reads_as_a_number_is_text(tmp_path: Path) -> None:
    assert read(tmp_path, changed("version", 12)).version == "12"


PROMPT = {"tokens": 4, "words": ["door"], "schedule": [1.0, 0.5]}


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("format", 2, "format"),
        ("format", ..., "format"),
        ("kind", "audio", "kind"),
        ("name", "Tiny World", "name"),
        ("name", "-tiny", "name"),
        ("version", "../1", "version"),
        ("colour", "blue", "colour"),
        ("backend", "tensorrt", "backend"),
        ("frame.height_px", 0, "frame.height_px"),
        ("frame.width_px", "wide", "frame.width_px"),
        ("frame.channels", 1, "frame.channels"),
        ("frame.fps", 0, "frame.fps"),
        ("frame.fps", float("inf"), "frame.fps"),
        ("frame.depth", 3, "frame.depth"),
        ("frames_per_chunk", 0, "frames_per_chunk"),
        ("kv.window", 0, "kv.window"),
        ("kv.heads", ..., "kv.heads"),
        ("kv.tokens", 2.5, "kv.tokens"),
        ("kv.dtype", "float16", "kv.dtype"),
        ("kv.state_tokens", -1, "kv.state_tokens"),
        ("kv.state_tokens", 4, "kv"),
        ("kv.pose", {"layer": 0, "part": "keys", "head": 0, "token": 2}, "kv.pose.part"),
        ("kv.pose", {"layer": 0, "part": "key", "head": 0, "token": 2, "turn": 0}, "kv.pose.turn"),
        ("kv.pose", {"layer": 0, "part": "key", "head": 0, "token": 2, "step": 0}, "kv.pose.step"),
        ("kv.pose", {"layer": 0, "part": "key", "head": 0, "token": 2}, "kv"),
        ("action", {"kind": "telepathy"}, "action"),
        ("action", {"kind": "discrete", "names": []}, "action.discrete.names"),
        ("action", {"kind": "continuous", "size": 0}, "action.continuous.size"),
        ("action", {"kind": "continuous", "size": 1, "low": 1, "high": 1}, "action.continuous"),
        ("action", {"kind": "continuous", "size": 1, "high": float("nan")}, "action.continuous.high"),
        ("action", {"kind": "continuous", "size": 1, "high": 1e300}, "action.continuous.high"),
        ("sampler.kind", "magic", "sampler.kind"),
        ("sampler.default_nfe", 3, "sampler"),
        ("sampler.schedules", {}, "sampler.schedules"),
        ("sampler.schedules", {2: [1.0]}, "sampler"),
        ("sampler.schedules", {2: [1.0, 1.0]}, "sampler"),
        ("sampler.schedules", {2: [0.9, 0.5]}, "sampler"),
        ("sampler.schedules", {2: [1.0, 0.0]}, "sampler.schedules.2.1"),
        ("files.denoise", ..., "files.denoise"),
        ("files.decode", "decode.onnx", "files"),
        ("files.scene", "scene.onnx", "files"),
        ("files.upscale", "upscale.onnx", "files.upscale"),
        ("starts.0.name", "Dawn!", "starts.0.name"),
        ("backend", "torch", "backend"),
        ("latent", {"channels": 4}, "latent.shape"),
        ("latent", {"shape": []}, "latent.shape"),
        ("latent", {"shape": [4, 0]}, "latent.shape.1"),
        ("latent", {"shape": [4, 4]}, "files"),
        ("cache_quality", "often", "cache_quality"),
        ("prompt", PROMPT, "files"),
        ("prompt", {**PROMPT, "words": ["door", "Door"]}, "prompt.words.1"),
        ("prompt", {**PROMPT, "words": ["door", "door"]}, "prompt"),
        ("prompt", {**PROMPT, "words": []}, "prompt.words"),
        ("prompt", {**PROMPT, "tokens": 0}, "prompt.tokens"),
        ("prompt", {**PROMPT, "aliases": {"gate": "window"}}, "prompt"),
        ("prompt", {**PROMPT, "aliases": {"door": "door"}}, "prompt"),
        ("prompt", {**PROMPT, "schedule": [0.9]}, "prompt"),
        ("prompt", {**PROMPT, "schedule": [1.0, 1.0]}, "prompt"),
    ],
)
def test_a_wrong_field_is_named_with_its_file(tmp_path: Path, path: str, value: Any, field: str) -> None:
    with pytest.raises(PackageError) as caught:
        read(tmp_path, changed(path, value))
    assert caught.value.file == tmp_path / "model.yaml"
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{tmp_path / 'model.yaml'}: {field}: ")


@pytest.mark.parametrize(
    ("pose", "said"),
    [
        ({"layer": 1}, "pose.layer must be 0 to 0 in a block of 1 layers, 2 heads"),
        ({"head": 2}, "pose.head must be 0 to 1"),
        ({"token": 1}, "pose.token must be 2 to 2"),
        ({"token": 3}, "pose.token must be 2 to 2"),
        ({"offset": 2}, "pose.offset must be 0 to 1"),
    ],
)
def test_a_pose_that_stands_in_no_state_token_is_refused_with_the_limits(
    tmp_path: Path, pose: dict[str, int], said: str
) -> None:
    manifest = changed("kv.state_tokens", 1)
    manifest["kv"]["pose"] = {"layer": 0, "part": "key", "head": 0, "token": 2, **pose}
    with pytest.raises(PackageError, match=said):
        read(tmp_path, manifest)


@pytest.mark.parametrize("path", ["/etc/passwd", "../other/denoise.onnx", "a/../../denoise.onnx"])
@pytest.mark.parametrize("field", ["files.denoise", "files.commit", "starts.0.file"])
def test_a_path_that_leaves_the_package_is_refused(tmp_path: Path, field: str, path: str) -> None:
    with pytest.raises(PackageError, match="files must lie inside the package, got"):
        read(tmp_path, changed(field, path))


def test_two_starts_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="starts must have distinct names"):
        read(tmp_path, changed("starts.1.name", "dawn"))


@pytest.mark.parametrize("text", ["", "7", "- a\n- b", "a: [1", "\tformat: 1", "!!python/object:os.system {}", "\x00"])
def test_what_is_no_mapping_or_no_yaml_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(PackageError, match=r"model\.yaml: model\.yaml: "):
        read(tmp_path, text)


def test_bytes_that_are_no_text_and_a_file_that_is_not_there_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PackageError, match="must be readable YAML"):
        read_package(tmp_path / "model.yaml", VideoPackage)
    with pytest.raises(PackageError, match="must be readable YAML"):
        read_package(tmp_path / "nowhere" / "model.yaml", VideoPackage)


def test_the_box_of_a_continuous_space_is_that_of_the_wire() -> None:
    space = ContinuousActions(kind="continuous", size=2, low=-0.1, high=0.3)
    assert space.low == pytest.approx(-0.1)
    assert space.low != -0.1
    assert space.accepts((space.low, space.high))
    assert not space.accepts((0.0, 0.31))
    assert not space.accepts((0.0,))
    assert not space.accepts((float("nan"), 0.0))
    assert not space.accepts(1)


def test_a_discrete_space_accepts_its_ids() -> None:
    space = DiscreteActions(kind="discrete", names=("left", "right"))
    assert [space.accepts(value) for value in (-1, 0, 1, 2, (0.0,))] == [False, True, True, False, False]


def test_a_world_s_graphs_stay_where_its_pool_is(tmp_path: Path) -> None:
    assert read(tmp_path, changed("backend", "onnxruntime")).backend is None
    with pytest.raises(PackageError, match=r"backend: .*must be onnxruntime for kind video: .*block pool"):
        read(tmp_path, changed("backend", "triton://localhost:8001/denoise"))


@pytest.mark.parametrize(
    ("url", "address", "is_local"),
    [
        ("triton://localhost:8001/trunk", "localhost:8001", True),
        ("triton://127.1.2.3:8001/trunk/2", "127.1.2.3:8001", True),
        ("triton://[::1]:8001/trunk", "[::1]:8001", True),
        ("triton://10.0.0.7:8001/trunk", "10.0.0.7:8001", False),
        ("triton://triton.models.svc:8001/trunk", "triton.models.svc:8001", False),
    ],
)
def test_a_judge_s_trunk_may_be_run_elsewhere(tmp_path: Path, url: str, address: str, is_local: bool) -> None:
    backend = judge(tmp_path, url).backend
    assert backend is not None
    assert (backend.address, backend.is_local, backend.model) == (address, is_local, "trunk")
    assert backend.version == url.partition("trunk")[2].strip("/")


@pytest.mark.parametrize(
    "url",
    [
        "triton://localhost/trunk",
        "triton://localhost:0/trunk",
        "triton://localhost:8001",
        "triton://localhost:8001/trunk/newest",
        "triton://user@localhost:8001/trunk",
        "http://localhost:8000/trunk",
        8001,
    ],
)
def test_what_names_no_model_of_a_server_is_refused(tmp_path: Path, url: Any) -> None:
    with pytest.raises(PackageError, match=r"model.yaml: backend: .*must be triton://HOST:PORT/MODEL"):
        judge(tmp_path, url)


def judge(folder: Path, backend: Any) -> RewardPackage:
    file = folder / "model.yaml"
    file.write_text(yaml.safe_dump({**TinyJudge().manifest(), "backend": backend}))
    return read_package(file, RewardPackage)
