"""What an operator may say, and what is refused before anything listens."""

from pathlib import Path
from typing import Any

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


@pytest.mark.parametrize(
    "given",
    [
        {"keys_file": "keys"},
        {"keys_redis": True, "redis_url": "redis://r:6379/0"},
        {"jwks_file": "jwks.json", "jwt_issuer": "i", "jwt_audience": "a"},
        {"tls_cert_file": "c", "tls_key_file": "k", "tls_client_ca_file": "ca"},
    ],
)
def test_any_host_may_be_listened_on_where_callers_are_known(given: dict[str, Any]) -> None:
    settings = GatewaySettings.load(environ={}, host="0.0.0.0", **given)
    assert settings.authenticates == ("tls_client_ca_file" not in given)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"keys_redis": True}, "keys_redis needs redis_url"),
        ({"jwks_file": "j"}, "jwks_file needs jwt_issuer and jwt_audience"),
        ({"jwks_file": "j", "jwt_issuer": "i"}, "jwks_file needs jwt_issuer and jwt_audience"),
        ({"tls_cert_file": "c"}, "go together"),
        ({"tls_key_file": "k"}, "go together"),
        ({"tls_client_ca_file": "ca"}, "tls_client_ca_file needs"),
        ({"host": "0.0.0.0", "tls_cert_file": "c", "tls_key_file": "k"}, "aren't authenticated"),
        ({"openpi_connections": 2000}, r"max_connection_streams \(1000\) at most, .* got 2000"),
        ({"audit": "some"}, "audit"),
    ],
)
def test_what_protects_a_gateway_is_given_whole(given: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        GatewaySettings.load(environ={}, **given)


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


@pytest.mark.parametrize(("port", "openpi_port"), [(None, 7072), (8000, 8002), (0, 0), (65534, 0)])
def test_the_port_of_openpi_is_beside_that_of_grpc_or_free_as_that_is(port: int | None, openpi_port: int) -> None:
    assert GatewaySettings.load(environ={}, port=port).openpi_port == openpi_port
    assert GatewaySettings.load(environ={}, port=port, openpi_port=9000).openpi_port == 9000


def test_the_help_names_every_knob() -> None:
    text = GatewaySettings.flags_parser("gateway").format_help()
    for name in GatewaySettings.model_fields:
        assert "--" + name.replace("_", "-") in text
    assert all(field.description for field in GatewaySettings.model_fields.values())
