"""Who calls, as the metadata of a call says it. A gateway sets these keys and lets no client set them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from worldtree_runtime.messages import TENANT_KEY

REHOME_KEY = "worldtree-rehome"
ADMITTED_KEY = "worldtree-admitted"
ANONYMOUS = "anonymous"

# What ends up in metrics and on an operator's screen: short, and of plain characters.
_TENANT = re.compile(r"[A-Za-z0-9._:@/-]{1,64}")


@dataclass(frozen=True, slots=True)
class Caller:
    """`dead`: the replica that the gateway found dead, whose sessions may be adopted for this call. Empty: none.

    `admitted`: the gateway had begun this play at a replica, which promised it its fps, before it broke off.
    """

    tenant: str = ANONYMOUS
    dead: str = ""
    admitted: bool = False


def read_caller(metadata: Iterable[tuple[str, str | bytes]] | None) -> Caller:
    """The caller of a call with this invocation metadata; what cannot be read counts as not said."""
    said = {key: value for key, value in metadata or () if isinstance(value, str)}
    tenant = said.get(TENANT_KEY, ANONYMOUS)
    tenant = tenant if _TENANT.fullmatch(tenant) else ANONYMOUS
    return Caller(tenant, said.get(REHOME_KEY, ""), ADMITTED_KEY in said)
