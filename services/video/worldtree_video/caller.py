"""Who calls, as the metadata of a call says it. A gateway sets these keys, and lets no client set
them but the one that only asks for care: that a play is gone on with when it breaks off.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from worldtree.play_log import RESUMES_KEY
from worldtree_runtime.messages import ANONYMOUS_TENANT, TENANT, TENANT_KEY

REHOME_KEY = "worldtree-rehome"
ADMITTED_KEY = "worldtree-admitted"
ANONYMOUS = ANONYMOUS_TENANT


@dataclass(frozen=True, slots=True)
class Caller:
    """`dead`: the replica that the gateway found dead, whose sessions may be adopted for this call. Empty: none.

    `admitted`: the gateway had begun this play at a replica, which promised it its fps, before it broke off. `resumes`:
    the client says that it goes on with a play that breaks off.
    """

    tenant: str = ANONYMOUS
    dead: str = ""
    admitted: bool = False
    resumes: bool = False


def read_caller(metadata: Iterable[tuple[str, str | bytes]] | None) -> Caller:
    """The caller of a call with this invocation metadata; what cannot be read counts as not said."""
    said = {key: value for key, value in metadata or () if isinstance(value, str)}
    tenant = said.get(TENANT_KEY, ANONYMOUS)
    tenant = tenant if TENANT.fullmatch(tenant) else ANONYMOUS
    return Caller(tenant, said.get(REHOME_KEY, ""), ADMITTED_KEY in said, RESUMES_KEY in said)
