"""Sessions on the device that was asked for, or none."""

from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from worldtree_runtime.inference import open_session
from worldtree_runtime.model_package import PackageError
from worldtree_runtime.settings import SettingsError


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    node = helper.make_node("Identity", ["x"], ["y"])
    model = helper.make_model(
        helper.make_graph([node], "same", values[:1], values[1:]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    onnx.save(model, tmp_path / "same.onnx")
    return tmp_path / "same.onnx"


def test_a_device_that_is_not_there_is_refused_with_what_it_needs(graph: Path) -> None:
    with pytest.raises(SettingsError, match="device must be one of"):
        open_session(graph, device="tpu")
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        with pytest.raises(SettingsError, match="needs CUDAExecutionProvider"):
            open_session(graph, device="cuda")


@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="it would start")
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_device_that_does_not_start_is_not_replaced_by_the_processor(
    graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with onnxruntime-gpu beside a CUDA that it cannot load: it lists the provider, and goes on without."""
    monkeypatch.setattr("worldtree_runtime.inference.ort.get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises(SettingsError, match="CUDAExecutionProvider could not be started"):
        open_session(graph, device="cuda")


def test_what_is_no_graph_is_refused_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    with pytest.raises(PackageError, match=r"bad\.onnx: graph: ONNX Runtime cannot load it"):
        open_session(tmp_path / "bad.onnx")
