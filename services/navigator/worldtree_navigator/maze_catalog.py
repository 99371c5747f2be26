"""The maze models of this process. There may be none: paths are then found by A*."""

from functools import partial
from typing import TypeAlias

from worldtree_runtime import catalog
from worldtree_runtime.maze_package import MazePackage, StoredMaze

from worldtree_navigator.config import NavigatorSettings
from worldtree_navigator.maze_engine import MazeEngine
from worldtree_navigator.maze_model import MazeModel
from worldtree_navigator.metrics import NavigatorMetrics

_KIND = "maze"


class ServedMaze:
    """One version of a maze model, loaded."""

    def __init__(self, stored: StoredMaze, settings: NavigatorSettings, metrics: NavigatorMetrics) -> None:
        """Raises PackageError."""
        self.stored = stored
        self.engine = MazeEngine(
            MazeModel(stored),
            name=stored.name,
            max_batch=settings.max_map_batch,
            max_waiting=settings.max_waiting_maps,
            observe=metrics.map_batch_size.labels(stored.name).observe,
        )


MazeCatalog: TypeAlias = catalog.Catalog[ServedMaze]


def load_mazes(settings: NavigatorSettings, metrics: NavigatorMetrics) -> MazeCatalog:
    """Raises PackageError when there are only broken ones."""
    load = partial(ServedMaze, settings=settings, metrics=metrics)
    return catalog.load_catalog(settings.models, MazePackage, load, kind=_KIND, required=False)
