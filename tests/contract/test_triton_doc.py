"""docs/triton.md: its configuration is that of the shipped judge's trunk, its settings are there, its limits true."""

import re
from pathlib import Path

import onnxruntime as ort
import triton_server
from worldtree_reward.config import RewardSettings
from worldtree_runtime.maze_package import MazePackage
from worldtree_runtime.multitask_package import MultitaskPackage
from worldtree_runtime.policy_package import PolicyPackage
from worldtree_runtime.reward_package import RewardPackage
from worldtree_runtime.triton_graph import BackendAway
from worldtree_runtime.video_package import VideoPackage

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/triton.md").read_text()


def test_the_configuration_is_that_of_the_trunk() -> None:
    told = re.findall(r"^((?:in|out)put) \{ name: \"(\w+)\" data_type: (\w+) dims: (\[.+\]) \}$", TEXT, re.MULTILINE)
    session = ort.InferenceSession(str(ROOT / "models/judge/1/trunk.onnx"))
    found = [
        (
            kind,
            node.name,
            triton_server.TYPES[node.type[7:-1]],
            str([s if isinstance(s, int) else -1 for s in node.shape]),
        )
        for kind, nodes in (("input", session.get_inputs()), ("output", session.get_outputs()))
        for node in nodes
    ]
    assert told == found


def test_the_settings_have_the_defaults_that_are_told() -> None:
    told = dict(re.findall(r"`reward\.(\w+)`\s+\((\d+) s\)", TEXT))
    assert "`reward.backend_hosts`" in TEXT
    settings = {name for name in RewardSettings.model_fields if name.startswith("backend_")}
    assert set(told) == settings - {"backend_hosts"}
    assert {name: float(value) for name, value in told.items()} == {
        name: RewardSettings.model_fields[name].default for name in told
    }


def test_the_reason_is_the_error_s(tmp_path: Path) -> None:
    backend = RewardPackage._read_backend("triton://[::1]:8001/judge-trunk/3")
    assert backend is not None
    assert BackendAway(backend, "gone").reason in TEXT
    assert (backend.address, backend.model, backend.version, backend.is_local) == (
        "[::1]:8001",
        "judge-trunk",
        "3",
        True,
    )


def test_only_a_judge_has_a_graph_that_is_run_elsewhere() -> None:
    assert RewardPackage.stays is None
    assert all(kind.stays for kind in (VideoPackage, MultitaskPackage, PolicyPackage, MazePackage))
