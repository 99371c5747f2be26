"""The policies of this process, and who plans with them."""

from collections.abc import Iterator
from functools import partial
from typing import TypeAlias

from worldtree_runtime import catalog
from worldtree_runtime.errors import NotFound
from worldtree_runtime.policy_package import PlannerSpec, PolicyPackage, StoredPolicy

from worldtree_navigator.config import NavigatorSettings
from worldtree_navigator.metrics import NavigatorMetrics
from worldtree_navigator.policy import Policy
from worldtree_navigator.policy_engine import PolicyEngine

_KIND = "navigator"
_FIRST = "joint"  # who plans where nobody is named


class ServedPolicy:
    """One version of a policy, loaded."""

    def __init__(self, stored: StoredPolicy, settings: NavigatorSettings, metrics: NavigatorMetrics) -> None:
        """Raises PackageError."""
        self.stored = stored
        self.policy = Policy(stored, device=settings.device, threads=settings.threads)
        self.engine = PolicyEngine(self.policy, metrics, name=stored.name, max_batch=settings.max_policy_batch)

    @property
    def package(self) -> PolicyPackage:
        return self.stored.package


PolicyCatalog: TypeAlias = catalog.Catalog[ServedPolicy]


def load_policies(settings: NavigatorSettings, metrics: NavigatorMetrics) -> PolicyCatalog:
    """There may be none. Raises PackageError when there are only broken ones."""
    load = partial(ServedPolicy, settings=settings, metrics=metrics)
    return catalog.load_catalog(settings.models, PolicyPackage, load, kind=_KIND, required=False)


class Policies:
    """Policies by the planners that ask them."""

    def __init__(self, served: PolicyCatalog) -> None:
        self._catalog = served

    def planners(self) -> Iterator[tuple[PlannerSpec, ServedPolicy]]:
        """Each once, with its newest policy; the one that plans where nobody is named comes first."""
        newest = [self._catalog.get(name) for name in self._catalog.names()]
        found = [(planner, each) for each in newest for planner in each.package.planners]
        return iter(sorted(found, key=lambda pair: (pair[0].name != _FIRST, pair[0].name)))

    def names(self) -> list[str]:
        return [planner.name for planner, _ in self.planners()]

    def find(
        self, planner: str, model: str = "", version: str = "", digest: str = ""
    ) -> tuple[PlannerSpec, ServedPolicy]:
        """An empty planner: the first of that policy, or of all. Raises NotFound."""
        if model or version or digest:
            served = self._catalog.get(model, version, digest)
            pairs = [(spec, served) for spec in served.package.planners]
        else:
            pairs = list(self.planners())
        found = next((pair for pair in pairs if planner in ("", pair[0].name)), None)
        if found is None:
            raise NotFound("planner", planner, known=[spec.name for spec, _ in pairs])
        return found
