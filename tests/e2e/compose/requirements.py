"""Prints what the images install from a registry, a requirement a line: of the SDK and of the server, with extras."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[3]
EXTRAS = {"clients/python/pyproject.toml": ["cli", "media"], "pyproject.toml": ["cpu", "otel"]}


def requirements() -> set[str]:
    # redis wants it of a Python before 3.11.3, which Debian's is and ours need not be
    found = {"async-timeout>=4.0.3"}
    for file, extras in EXTRAS.items():
        document = tomllib.loads((ROOT / file).read_text())
        project = document["project"]
        found |= {*document["build-system"]["requires"], *project["dependencies"]}
        left = list(extras)
        while left:
            for requirement in project["optional-dependencies"][left.pop()]:
                own = re.fullmatch(rf"{project['name']}\[(.+)\]", requirement)
                if own:
                    left += own[1].split(",")
                else:
                    found.add(requirement)
    return found - {"worldtree"}


if __name__ == "__main__":
    print(*sorted(requirements()), sep="\n")
