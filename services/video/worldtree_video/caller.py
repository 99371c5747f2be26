"""Who calls, as the metadata of a call says it. A gateway sets these keys and lets no client set them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

TENANT_KEY = "worldtree-tenant"
REHOME_KEY = "worldtree-rehome"
ANONYMOUS = "anonymous"

# What ends up in metrics and on an operator's screen: short, and of plain characters.
_TENANT = re.compile(r"[A-Za-z0-9._:@/-]{1,64}")


@dataclass(frozen=True, slots=True)
class Caller:
    """`dead`: the replica that the gateway found dead, whose sessions may be adopted for this call. Empty: none."""

    tenant: str = ANONYMOUS
    dead: str = ""


def read_caller(metadata: Iterable[tuple[str, str | bytes]] | None) -> Caller:
    """The caller of a call with this invocation metadata; what cannot be read counts as not said."""
    said = {key: value for key, value in metadata or () if isinstance(value, str)}
    tenant = said.get(TENANT_KEY, ANONYMOUS)
    return Caller(tenant if _TENANT.fullmatch(tenant) else ANONYMOUS, said.get(REHOME_KEY, ""))
