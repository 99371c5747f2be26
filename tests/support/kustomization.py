"""`kustomize build`, as far as deploy/ uses it, for machines without kustomize; a test compares the two.

Anything else in a kustomization.yaml is refused rather than passed over.
"""

import copy
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import yaml

Resource = dict[str, Any]

# libyaml's, where PyYAML was built with it: ten times faster
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_CLUSTER_KINDS = frozenset({"Namespace", "PriorityClass"})
_HEAD = frozenset({"apiVersion", "kind"})


def build(folder: Path) -> list[Resource]:
    """All resources of a folder. Raises ValueError for what kustomize would refuse, and for what this does not know."""
    resources = _accumulate(folder, [])
    _check_unique(resources)
    _hash_names(resources)
    for resource in resources:
        resource.pop("_hashed", None)
    return resources


def _accumulate(folder: Path, resources: list[Resource]) -> list[Resource]:
    """A component is laid over `resources`, so its patches reach them; any other folder begins with none."""
    file = folder / "kustomization.yaml"
    given: dict[str, Any] = yaml.load(file.read_text(), _Loader)
    for path in given.pop("resources", []):
        found = folder / path
        resources += _accumulate(found, []) if found.is_dir() else list(yaml.load_all(found.read_text(), _Loader))
    for path in given.pop("components", []):
        resources = _accumulate(folder / path, resources)
    for generator in given.pop("configMapGenerator", []):
        resources.append(_config_map(folder, generator))
    for patch in given.pop("patches", []):
        _patch(folder, patch, resources)
    namespace = given.pop("namespace", None)
    for resource in resources:
        if namespace is not None and resource["kind"] not in _CLUSTER_KINDS:
            resource["metadata"]["namespace"] = namespace
    for labels in given.pop("labels", []):
        _label(resources, **labels)
    for image in given.pop("images", []):
        _rename_image(resources, **image)
    if unknown := given.keys() - _HEAD:
        raise ValueError(f"{file}: not known here: {', '.join(sorted(unknown))}")
    return resources


def _config_map(folder: Path, generator: dict[str, Any]) -> Resource:
    given = dict(generator)
    options = given.pop("options", {})
    metadata = {"name": given.pop("name"), **{key: options[key] for key in ("labels", "annotations") if key in options}}
    data = {}
    for entry in given.pop("files"):
        key, _, path = entry.rpartition("=")
        data[key or Path(path).name] = (folder / path).read_text()
    if given:
        raise ValueError(f"configMapGenerator: not known here: {', '.join(given)}")
    hashed = not options.get("disableNameSuffixHash", False)
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data, "_hashed": hashed}


def _hash_names(resources: list[Resource]) -> None:
    """A generated ConfigMap is named for its content, here and where pods name it."""
    for config in resources:
        if not config.get("_hashed"):
            continue
        name = config["metadata"]["name"]
        # without the name: kustomize looks for it under a key that no object has
        hashed = {"data": config["data"], "kind": "ConfigMap", "name": ""}
        text = json.dumps(hashed, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
        for character in "<>&":  # as Go writes JSON
            text = text.replace(character, f"\\u{ord(character):04x}")
        digest = hashlib.sha256(text.encode()).hexdigest()[:10].translate(str.maketrans("013ae", "ghkmt"))
        config["metadata"]["name"] = f"{name}-{digest}"
        for pod in filter(None, map(_pod, resources)):
            for volume in pod.get("volumes", []):
                if volume.get("configMap", {}).get("name") == name:
                    volume["configMap"]["name"] = f"{name}-{digest}"


def _patch(folder: Path, patch: dict[str, Any], resources: list[Resource]) -> None:
    """JSON 6902 patches only, as strategic merge needs the keys by which each list is merged."""
    operations = yaml.load(patch["patch"] if "patch" in patch else (folder / patch["path"]).read_text(), _Loader)
    target = patch["target"]
    if not isinstance(operations, list) or target.keys() - {"kind", "name"}:
        raise ValueError(f"patches: only lists of operations on a kind and a name are known here, got {patch}")
    kind, name = (re.compile(target.get(key, ".*")) for key in ("kind", "name"))
    chosen = [each for each in resources if kind.fullmatch(each["kind"]) and name.fullmatch(each["metadata"]["name"])]
    for resource in chosen:
        for operation in operations:
            _apply(resource, **copy.deepcopy(operation))


def _apply(resource: Resource, op: str, path: str, value: Any = None) -> None:
    *parents, last = (part.replace("~1", "/").replace("~0", "~") for part in path.split("/")[1:])
    place: Any = resource
    for part in parents:
        place = place[int(part)] if isinstance(place, list) else place[part]
    key: Any = int(last) if isinstance(place, list) and last != "-" else last
    if op == "add" and isinstance(place, list):
        place.insert(len(place) if last == "-" else key, value)
    elif op == "add" or (op == "replace" and place[key] is not None):
        place[key] = value
    elif op == "remove":
        del place[key]
    else:
        raise ValueError(f"{op} {path}: not known here")


def _label(resources: list[Resource], pairs: dict[str, str], includeTemplates: bool = False) -> None:  # noqa: N803
    for resource in resources:
        places = [resource]
        if includeTemplates and "spec" in resource:
            spec = resource["spec"]
            places += [*filter(None, [spec.get("template")]), *spec.get("volumeClaimTemplates", [])]
        for place in places:
            metadata = place.setdefault("metadata", {})
            metadata["labels"] = {**metadata.get("labels", {}), **pairs}


def _rename_image(resources: list[Resource], name: str, newName: str = "", newTag: str = "") -> None:  # noqa: N803
    for pod in filter(None, map(_pod, resources)):
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            old, _, tag = container["image"].partition(":")
            if old == name:
                container["image"] = ":".join(filter(None, [newName or old, newTag or tag]))


def _pod(resource: Resource) -> dict[str, Any] | None:
    if resource["kind"] not in ("Deployment", "StatefulSet", "Job", "DaemonSet"):
        return None
    pod: dict[str, Any] = resource["spec"]["template"]["spec"]
    return pod


def _check_unique(resources: list[Resource]) -> None:
    seen = set()
    for resource in resources:
        key = (resource["apiVersion"], resource["kind"], resource["metadata"]["name"])
        if key in seen:
            raise ValueError(f"twice: {key}")
        seen.add(key)
