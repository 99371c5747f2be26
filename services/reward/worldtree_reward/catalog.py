"""The models of this process."""

from functools import partial
from typing import TypeAlias

from worldtree_runtime import catalog
from worldtree_runtime.reward_package import RewardPackage

from worldtree_reward.config import RewardSettings
from worldtree_reward.metrics import RewardMetrics
from worldtree_reward.served import Served

Catalog: TypeAlias = catalog.Catalog[Served]


def load_catalog(settings: RewardSettings, metrics: RewardMetrics) -> Catalog:
    """Loads every judge of the repository. Raises PackageError, as `worldtree_runtime.catalog` does."""
    load = partial(Served, settings=settings, metrics=metrics)
    return catalog.load_catalog(settings.models, RewardPackage, load, kind="reward")
