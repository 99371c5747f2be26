"""`python -m worldtree_video` as its supervisor sees it."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnxruntime
import pytest
from worldtree_runtime.testing import TinyWorld

SHIPPED = Path(__file__).parents[3] / "models"


@contextmanager
def process(models: Path, *flags: str) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "worldtree_video", "--models", str(models), "--port", "0", "--metrics-port", "0"]
    with subprocess.Popen(
        [*command, "--log-level", "warning", *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def failed_start(models: Path, *flags: str) -> str:
    """The one line that a start which cannot succeed says."""
    with process(models, *flags) as child:
        out, err = child.communicate(timeout=30)
    lines = err.splitlines()
    assert (child.returncode, out, len(lines)) == (1, "", 1), err
    assert lines[0].startswith("worldtree: ")
    return lines[0]


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("denoise.onnx", "denoise.onnx: graph: ONNX Runtime cannot load it"),
        ("model.yaml", "model.yaml: "),
        ("starts/dusk.png", "dusk.png: starts.dusk: cannot be decoded"),
    ],
)
def test_a_package_that_was_cut_short_stops_the_start_with_one_line_and_code_1(
    tmp_path: Path, file: str, said: str
) -> None:
    half(TinyWorld().write(tmp_path) / file)
    assert said in failed_start(tmp_path)


def test_cut_weights_of_the_shipped_world_stop_the_start(tmp_path: Path) -> None:
    shutil.copytree(SHIPPED / "minigrid", tmp_path / "minigrid")
    half(max(tmp_path.rglob("*"), key=lambda path: path.stat().st_size))
    assert "ONNX Runtime cannot load it" in failed_start(tmp_path)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--pool-mib", "1"), "a window of 4 and headroom_blocks 32 need more"),
        (("--device", "cuda"), "device 'cuda' needs CUDAExecutionProvider"),
    ],
)
def test_what_cannot_be_had_stops_the_start(tmp_path: Path, flags: tuple[str, str], said: str) -> None:
    if "cuda" in flags and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has CUDA")
    TinyWorld(tokens=1024).write(tmp_path)
    assert said in failed_start(tmp_path, *flags)


def test_a_service_says_once_where_it_is_and_ends_well_when_told(tmp_path: Path) -> None:
    TinyWorld().write(tmp_path)
    with process(tmp_path) as child:
        assert child.stdout is not None
        assert child.stdout.readline().startswith("worldtree ready service=video grpc=127.0.0.1:")
        child.send_signal(signal.SIGTERM)
        out, err = child.communicate(timeout=30)
    assert (child.returncode, out, err) == (0, "", "")
