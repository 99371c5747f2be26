"""How much of a model's requests each of its versions gets, as an operator says it."""

import re
from collections.abc import Iterable, Mapping

_SHARE = re.compile(r"(?P<model>[^/=\s]+)/(?P<version>[^/=\s]+)=(?P<share>[0-9]*\.?[0-9]+)")

Shares = Mapping[str, Mapping[str, float]]  # model -> version -> 0 to 1


def to_shares(texts: Iterable[str]) -> Shares:
    """MODEL/VERSION=SHARE each. Raises ValueError for another text, a version named twice, shares above 1 together."""
    found: dict[str, dict[str, float]] = {}
    for text in texts:
        match = _SHARE.fullmatch(text)
        if match is None or not 0 <= float(match["share"]) <= 1:
            raise ValueError(f'each share is MODEL/VERSION=SHARE with a share of 0 to 1, got "{text}"')
        versions = found.setdefault(match["model"], {})
        if match["version"] in versions:
            raise ValueError(f"each version has one share, {match['model']}/{match['version']} has two")
        versions[match["version"]] = float(match["share"])
    for model, versions in found.items():
        if (total := sum(versions.values())) > 1 + 1e-9:
            raise ValueError(f"the shares of {model} must be 1 together at most, got {total:g}")
    return found
