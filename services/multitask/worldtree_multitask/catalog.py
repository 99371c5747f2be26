"""The models of this process."""

from functools import partial
from typing import TypeAlias

from worldtree_runtime import catalog
from worldtree_runtime.multitask_package import MultitaskPackage

from worldtree_multitask.config import MultitaskSettings
from worldtree_multitask.metrics import MultitaskMetrics
from worldtree_multitask.served import Served

Catalog: TypeAlias = catalog.Catalog[Served]


def load_catalog(settings: MultitaskSettings, metrics: MultitaskMetrics) -> Catalog:
    """Loads every multi-task package of the repository. Raises PackageError, as `worldtree_runtime.catalog` does."""
    load = partial(Served, settings=settings, metrics=metrics)
    return catalog.load_catalog(settings.models, MultitaskPackage, load, kind="multitask")
