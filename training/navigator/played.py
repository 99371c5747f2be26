"""Episodes that were played, one line each: an evaluation that is cut short goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from worldtree.episodes import Episode
from worldtree.simulator import Outcome


class Played:
    """Of one cell. `path`: names all that its episodes depend on."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def known(self, seeds: Iterable[int]) -> dict[int, Episode]:
        """By seed."""
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        wanted = set(seeds)
        found = []
        for line in filter(None, lines):
            with suppress(json.JSONDecodeError):  # one that was cut off is played again
                found.append(_to_episode(line))
        return {episode.seed: episode for episode in found if episode.seed in wanted}

    def keep(self, episode: Episode) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write("\n" + json.dumps(asdict(episode)))  # the line before may have been cut off


def _to_episode(line: str) -> Episode:
    stored = json.loads(line)
    lists = {name: tuple(stored.pop(name)) for name in ("latencies_s", "world_model_s", "imagined")}
    return Episode(**{**stored, "outcome": Outcome(**stored["outcome"])}, **lists)
