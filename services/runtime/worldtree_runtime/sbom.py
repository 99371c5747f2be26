"""`python -m worldtree_runtime.sbom`: what this environment is made of, as CycloneDX: Python's packages and Debian's.

Each image holds its own at /opt/worldtree/sbom.json.
"""

import json
import platform
import re
from collections.abc import Iterator
from importlib.metadata import PackageMetadata, distributions
from pathlib import Path
from typing import Any

DPKG_STATUS = Path("/var/lib/dpkg/status")

Component = dict[str, Any]


def sbom(dpkg_status: Path = DPKG_STATUS) -> dict[str, Any]:
    """Nothing in it changes from one run to the next: the same environment, the same document."""
    components = [_interpreter(), *python_packages(), *debian_packages(dpkg_status)]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "components": sorted(components, key=lambda component: str(component["purl"])),
    }


def python_packages() -> Iterator[Component]:
    for distribution in distributions():
        name = re.sub(r"[-_.]+", "-", distribution.name).lower()
        yield _component(name, distribution.version, f"pkg:pypi/{name}", _licence(distribution.metadata))


def debian_packages(status: Path) -> Iterator[Component]:
    """None where the system is not a Debian."""
    if not status.is_file():
        return
    for paragraph in status.read_text(encoding="utf-8").split("\n\n"):
        field = dict(re.findall(r"^(Package|Version|Status): (.*)$", paragraph, re.MULTILINE))
        if field.get("Status", "").endswith(" installed"):
            yield _component(field["Package"], field["Version"], f"pkg:deb/debian/{field['Package']}", None)


def _interpreter() -> Component:
    return _component("python", platform.python_version(), "pkg:generic/python", "PSF-2.0")


def _component(name: str, version: str, purl: str, licence: str | None) -> Component:
    component: Component = {"type": "library", "name": name, "version": version, "purl": f"{purl}@{version}"}
    if licence:
        component["licenses"] = [{"license": {"name": licence}}]
    return component


def _licence(metadata: PackageMetadata) -> str | None:
    """The expression where there is one, else what the classifiers say; the field of old may hold a whole text."""
    if "License-Expression" in metadata:
        return metadata["License-Expression"]
    classifiers = metadata.get_all("Classifier") or []
    named = [text.rpartition(" :: ")[2] for text in classifiers if text.startswith("License :: ")]
    if named:
        return " AND ".join(named)
    (text, *_) = metadata.get_all("License") or [""]
    return text if 0 < len(text) <= 80 and "\n" not in text else None


if __name__ == "__main__":
    print(json.dumps(sbom(), indent=1))
