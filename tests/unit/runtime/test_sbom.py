"""What an environment is made of, as it is listed."""

import json
from importlib.metadata import version
from pathlib import Path

from worldtree_runtime.sbom import sbom

STATUS = """\
Package: libc6
Status: install ok installed
Version: 2.36-9

Package: gone
Status: deinstall ok config-files
Version: 1.0
"""


def test_packages_of_python_and_of_debian_are_listed_with_their_versions(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text(STATUS)
    listed = sbom(status)
    assert listed["bomFormat"] == "CycloneDX"
    components = {component["purl"]: component for component in listed["components"]}
    assert "pkg:deb/debian/libc6@2.36-9" in components
    assert f"pkg:pypi/grpcio@{version('grpcio')}" in components
    assert not [purl for purl in components if "gone" in purl], "it was removed"


def test_a_licence_is_a_name_and_no_text(tmp_path: Path) -> None:
    components = sbom(tmp_path / "no Debian")["components"]
    (own,) = [component for component in components if component["name"] == "worldtree-server"]
    assert own["licenses"] == [{"license": {"name": "Apache-2.0"}}]
    for component in components:
        for licence in component.get("licenses", []):
            assert "\n" not in licence["license"]["name"], component["name"]


def test_the_same_environment_is_the_same_document(tmp_path: Path) -> None:
    assert json.dumps(sbom(tmp_path / "none")) == json.dumps(sbom(tmp_path / "none"))
