"""Fair shares of the engine's time among tenants, each of weight 1: start-time fair queuing by measured seconds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")
_REMEMBERED_TENANTS = 256


@dataclass(slots=True)
class TenantShare:
    """What a tenant has had. `virtual_s`: seconds of service, on from where the clock of all stood when it came."""

    tenant: str
    virtual_s: float
    chunk_count: int = 0
    waiting_count: int = 0


class FairShare:
    """Whose turn it is: the tenant that has had least since it came.

    One who comes, or comes back, begins where the others stand: time not asked for cannot be saved up. Costs are
    charged as measured, after the fact, so a tenant with dear chunks gets fewer of them.
    """

    def __init__(self) -> None:
        self._tenants: dict[str, TenantShare] = {}
        self._now_s = 0.0  # the virtual clock: where the one served last stood when it was chosen

    def pick(self, waiting: Mapping[str, Sequence[Item]], limit: int, item_s: float) -> list[Item]:
        """At most `limit` of the waiting items, each tenant's in their order; `item_s`: what one will cost, about."""
        self._meet(waiting)
        after_s = {tenant: self._tenants[tenant].virtual_s for tenant in waiting}
        taken = dict.fromkeys(waiting, 0)
        chosen: list[Item] = []
        while len(chosen) < limit:
            left = [tenant for tenant in waiting if taken[tenant] < len(waiting[tenant])]
            if not left:
                break
            tenant = min(left, key=after_s.__getitem__)
            self._now_s = max(self._now_s, self._tenants[tenant].virtual_s)
            chosen.append(waiting[tenant][taken[tenant]])
            taken[tenant] += 1
            # Else all places of this tick went to one tenant. What it really cost is charged later.
            after_s[tenant] += item_s
        return chosen

    def charge(self, tenant: str, seconds: float) -> None:
        """A tenant has had so many seconds of service."""
        self._share(tenant).virtual_s += seconds

    def made(self, tenant: str) -> None:
        """A chunk of a tenant's is there."""
        self._share(tenant).chunk_count += 1

    def shares(self) -> list[TenantShare]:
        """Every tenant that is remembered, by name."""
        return sorted(self._tenants.values(), key=lambda share: share.tenant)

    def _meet(self, waiting: Mapping[str, Sequence[Item]]) -> None:
        for share in self._tenants.values():
            if share.waiting_count and share.tenant not in waiting:
                share.waiting_count = 0
        for tenant, items in waiting.items():
            share = self._share(tenant)
            if not share.waiting_count:
                share.virtual_s = max(share.virtual_s, self._now_s)
            share.waiting_count = len(items)

    def _share(self, tenant: str) -> TenantShare:
        share = self._tenants.pop(tenant, None) or TenantShare(tenant, self._now_s)
        self._tenants[tenant] = share  # the latest last
        if len(self._tenants) > _REMEMBERED_TENANTS:
            # Names come with requests: whoever makes them up must not fill the memory.
            idle = next((name for name, other in self._tenants.items() if not other.waiting_count), tenant)
            if idle != tenant:
                del self._tenants[idle]
        return share
