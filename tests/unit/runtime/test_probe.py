"""The images' health check asks the port that the service's own settings say."""

from pathlib import Path

import pytest
from worldtree_reward.config import RewardSettings
from worldtree_runtime.probe import metrics_port

CASES: dict[str, tuple[dict[str, str], str]] = {
    "nothing": ({}, ""),
    "its port": ({"PORT": "9000"}, ""),
    "its metrics port": ({"PORT": "9000", "METRICS_PORT": "9100"}, ""),
    "empty variables": ({"PORT": "", "METRICS_PORT": ""}, ""),
    "what kubernetes says": ({"PORT": "tcp://10.0.0.1:7130"}, ""),
    "the file's port": ({}, "reward: {port: 9200}"),
    "the file's metrics port": ({}, "reward: {port: 9200, metrics_port: 9300}\nvideo: {port: 1}"),
    "a variable over the file": ({"PORT": "9000"}, "reward: {port: 9200}"),
    "a metrics port in the file, a port in a variable": ({"PORT": "9000"}, "reward: {metrics_port: 9300}"),
    "an empty file": ({}, "# nothing"),
    "a free port": ({"PORT": "0"}, ""),
    "no room for the next": ({"PORT": "65535"}, ""),
}


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_it_is_the_port_of_the_settings(
    case: str, named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables, text = CASES[case]
    environ = {f"WORLDTREE_REWARD_{name}": value for name, value in variables.items()}
    monkeypatch.chdir(tmp_path)
    if text:
        file = tmp_path / ("other.yaml" if named else "worldtree.yaml")
        file.write_text(text)
        if named:
            environ["WORLDTREE_CONFIG"] = str(file)
    assert metrics_port("reward", environ) == RewardSettings.load(environ=environ).metrics_port
