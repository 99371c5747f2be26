"""A model repository as `worldtree doctor` looks at it: is every file there that a package names?"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from worldtree.cli.finding import Finding, Verdict


def model_repository(folder: Path) -> Iterator[Finding]:
    subject = f"models {folder}"
    packages_found = sorted(folder.glob("*/*/model.yaml"))
    if not packages_found:
        found = "no such folder" if not folder.is_dir() else "no NAME/VERSION/model.yaml in it"
        yield Finding(subject, Verdict.NOTE, found, "to serve, name a repository with --models or WORLDTREE_MODELS")
    for path in packages_found:
        yield _model_package(path)


def _model_package(path: Path) -> Finding:
    subject = f"model {path.parent.parent.name}/{path.parent.name}"
    try:
        described = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        return Finding(subject, Verdict.BAD, f"{path}: {' '.join(str(error).split())}", "fix or remove the package")
    missing = [name for name in _named_files(described) if not (path.parent / name).is_file()]
    if missing:
        return Finding(
            subject, Verdict.BAD, f"{', '.join(missing)} missing beside model.yaml", "copy the whole package"
        )
    return Finding(subject, Verdict.OK, "complete")


def _named_files(described: Any) -> Iterator[str]:
    """Every file that a model.yaml names: of its graphs and, with experts, of those, of its images and of its map."""
    if not isinstance(described, dict):
        return
    files = described.get("files")
    yield from map(str, files.values() if isinstance(files, dict) else ())
    for key, field in (("tasks", "expert"), ("image_sets", "file")):
        listed = described.get(key)
        for each in listed if isinstance(listed, list) else ():
            if isinstance(each, dict) and field in each:
                yield str(each[field])
    if described.get("kind") == "multitask" and described.get("preference"):
        yield str(described["preference"])
