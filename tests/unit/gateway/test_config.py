"""What an operator may say, and what is refused before anything listens."""

from pathlib import Path

import pytest
from worldtree_gateway.config import GatewaySettings
from worldtree_runtime.settings import SettingsError


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_needs_no_leave(host: str) -> None:
    assert GatewaySettings.load(environ={}, host=host).host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org"])
def test_any_other_host_needs_insecure(host: str) -> None:
    with pytest.raises(SettingsError, match=r"aren't authenticated.*--insecure"):
        GatewaySettings.load(environ={}, host=host)
    assert GatewaySettings.load(environ={}, host=host, insecure=True).host == host


@pytest.mark.parametrize("address", ["host", "host:", ":1", "host:0", "host:65536", "host:x", "host:²", ""])
def test_a_backend_that_is_no_address_is_refused_by_name(address: str) -> None:
    with pytest.raises(SettingsError, match="HOST:PORT"):
        GatewaySettings.load(environ={}, video=[address])


def test_a_backend_listed_twice_is_refused() -> None:
    with pytest.raises(SettingsError, match="once"):
        GatewaySettings.load(environ={}, video="a:1,a:1")


def test_backends_come_from_yaml_variables_and_flags(tmp_path: Path) -> None:
    config = tmp_path / "worldtree.yaml"
    config.write_text("gateway: {video: ['a:1', 'b:2'], reward: ['r:1']}\n")
    environ = {"WORLDTREE_GATEWAY_REWARD": "r:2, r:3"}
    settings = GatewaySettings.load(config, environ=environ, navigator='["[::1]:5"]')
    assert settings.backends("video") == ["a:1", "b:2"]
    assert settings.backends("reward") == ["r:2", "r:3"]
    assert settings.backends("navigator") == ["[::1]:5"]
    assert settings.backends("multitask") == []


def test_the_help_names_every_knob() -> None:
    text = GatewaySettings.flags_parser("gateway").format_help()
    for name in GatewaySettings.model_fields:
        assert "--" + name.replace("_", "-") in text
    assert all(field.description for field in GatewaySettings.model_fields.values())
