"""What evaluations found, kept with the recipe: each cell under what it was played with."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from worldtree.episodes import Tally

FOLDER = Path("training/navigator/figures")
CARD = "MODEL_CARD.md"
Cells = dict[str, dict[str, Tally]]  # environment -> planner


def fingerprint(packages: list[Path], how: str = "") -> str:
    """Names packages by all their files but the cards, and how they were asked."""
    found = hashlib.sha256(how.encode())
    for path in sorted(each for package in packages for each in package.rglob("*") if each.is_file()):
        if path.name != CARD:
            found.update(f"{path.name} {path.stat().st_size} ".encode())
            found.update(path.read_bytes())
    return found.hexdigest()[:12]


class Figures:
    """Cells of one file. `played_with`: by planner, what names all that its figures depend on; read once, so that what
    is exported while episodes are played is not taken for what played them. Who is not in it depends on nothing here.
    """

    def __init__(self, path: Path, played_with: Mapping[str, str]) -> None:
        self._path, self._played_with = path, dict(played_with)

    def cells(self) -> Cells:
        """Those that are of now."""
        found: Cells = {}
        for env, planners in self._stored().items():
            for planner, stored in planners.items():
                if stored.pop("played_with") == self._played_with.get(planner, ""):
                    found.setdefault(env, {})[planner] = _to_tally(stored)
        return found

    def keep(self, env: str, planner: str, tally: Tally) -> None:
        """Beside what another run has kept meanwhile."""
        stored = self._stored()
        kept = {
            key: None if isinstance(value, float) and math.isnan(value) else value
            for key, value in asdict(tally).items()
        }
        stored.setdefault(env, {})[planner] = {**kept, "played_with": self._played_with.get(planner, "")}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(stored, indent=1, allow_nan=False) + "\n")
        part.replace(self._path)

    def _stored(self) -> dict[str, dict[str, dict[str, object]]]:
        return json.loads(self._path.read_text()) if self._path.exists() else {}


def _to_tally(stored: Mapping[str, object]) -> Tally:
    numbers = {key: math.nan if value is None else value for key, value in stored.items()}
    return Tally(**{**numbers, "success_interval": tuple(numbers["success_interval"])})  # type: ignore[arg-type]
