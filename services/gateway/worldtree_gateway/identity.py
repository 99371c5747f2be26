"""Who calls: established once at the edge of the gateway, known to all that is done for the call."""

from contextvars import ContextVar
from dataclasses import dataclass
from enum import IntEnum

from worldtree_runtime.call_notes import note_tenant
from worldtree_runtime.messages import ANONYMOUS_TENANT


class Role(IntEnum):
    """What a caller may do; a higher one may all that a lower one may."""

    USER = 1
    OPERATOR = 2


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever a call is for.

    `tenant` owns what the call opens, and is what answers are cached for. `key_id` names the credential, an API key's
    public id or a token's tenant and subject: what limits count by, and what the audit log says. It is no secret.
    """

    tenant: str
    key_id: str
    role: Role

    @property
    def is_operator(self) -> bool:
        return self.role >= Role.OPERATOR


# Every caller of a gateway that asks for no credentials: one tenant, who may do everything.
ANONYMOUS = Caller(tenant=ANONYMOUS_TENANT, key_id=ANONYMOUS_TENANT, role=Role.OPERATOR)

# A call is a task of its own, and each task that its handler starts inherits this.
_caller: ContextVar[Caller] = ContextVar("worldtree_caller", default=ANONYMOUS)


def current_caller() -> Caller:
    """For whom this task works. Outside of any call, and where no credentials are asked for: ANONYMOUS."""
    return _caller.get()


def set_caller(caller: Caller) -> None:
    """From here on this task works for `caller`. For who lets calls in, and for nobody else."""
    _caller.set(caller)
    note_tenant(caller.tenant)
