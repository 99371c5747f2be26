"""docs/security.md: the settings, defaults and roles that it names are those of the gateway."""

import re
from pathlib import Path

import pytest
from typer.main import get_command
from worldtree.cli.app import app
from worldtree.options.v1 import options_pb2
from worldtree_gateway.config import GatewaySettings
from worldtree_gateway.domain import GATEWAY, SERVICES

TEXT = (Path(__file__).parents[2] / "docs/security.md").read_text()
FLAGS = sorted(set(re.findall(r"--[a-z][a-z-]+[a-z]", TEXT)))
ROWS = re.findall(r"^\| (`--.+?`) \| (.+?) \| .+ \|$", TEXT, re.MULTILINE)


def flags_of_the_command_line() -> set[str]:
    """Those of `worldtree` itself and of `worldtree keys create`."""
    command = get_command(app)
    create = command.commands["keys"].commands["create"]  # type: ignore[attr-defined]
    return {flag for each in (command, create) for parameter in each.params for flag in parameter.opts} | {"--help"}


@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_is_one_of_the_gateway_or_of_the_command_line(flag: str) -> None:
    name = flag.removeprefix("--").replace("-", "_")
    assert name in GatewaySettings.model_fields or flag in flags_of_the_command_line()


@pytest.mark.parametrize(("flags", "defaults"), ROWS)
def test_a_default_of_the_table_is_the_default(flags: str, defaults: str) -> None:
    names = [name.replace("-", "_") for name in re.findall(r"`--(.+?)`", flags)]
    figures = re.findall(r"([\d,]*\d)(?: (MiB))?(?:, |$)", defaults)
    told = [int(figure.replace(",", "")) << (20 if unit else 0) for figure, unit in figures]
    assert told == [GatewaySettings.model_fields[name].default for name in names]


def test_what_only_operators_may_is_listed() -> None:
    listed = {
        name for row in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| ", TEXT, re.MULTILINE) for name in row.split(", ")
    }
    methods = {
        f"`{method.name}`"
        for service in (*SERVICES, GATEWAY)
        for method in service.descriptor.methods
        if method.GetOptions().Extensions[options_pb2.access] == options_pb2.ACCESS_OPERATOR
    }
    assert listed == methods
