"""Whose cached answers are whose: each tenant's own, but for what is declared."""

from collections.abc import Mapping, Sequence

from worldtree_gateway.keys import CacheableRequest

ALL = ""


class Sharing:
    """`models` are NAME or NAME/VERSION: their answers are for all, as those of a method are whose proto says so.
    `groups`: tenants whose answers are for one another, by a name for each group; a tenant is in one.
    """

    def __init__(self, models: Sequence[str], groups: Mapping[str, Sequence[str]]) -> None:
        self._models = frozenset(models)
        self._groups = {tenant: group for group, tenants in groups.items() for tenant in tenants}

    def owner(self, tenant: str) -> str:
        """Whose the answers are that a tenant doesn't share with all."""
        group = self._groups.get(tenant)
        return f"tenant:{tenant}" if group is None else f"group:{group}"

    def owner_of(self, request: CacheableRequest, tenant: str) -> str:
        """Whose the answer to this request is, when this tenant asks."""
        if request.rule.shared:
            return ALL
        model = request.model
        if model is not None and (model.name in self._models or f"{model.name}/{model.version}" in self._models):
            return ALL
        return self.owner(tenant)
