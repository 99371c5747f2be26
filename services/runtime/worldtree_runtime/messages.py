"""What several services say on the wire alike."""

import re
from datetime import timedelta
from typing import Any

from google.protobuf.duration_pb2 import Duration
from worldtree.common.v1 import common_pb2 as common

from worldtree_runtime.model_repository import StoredPackage

REPLICA_KEY = "worldtree-replica"  # initial metadata by which a gateway learns who answers
SCRATCH_KEY = "worldtree-scratch"  # of a session that lives no longer than the call that it is opened for
TENANT_KEY = "worldtree-tenant"  # for whom a call is; only a gateway may say it, and who passes a call on
# In the trailers of a call that made frames: how many, each counted once for each of its function evaluations.
COST_KEY = "worldtree-cost"
# Beside it, where a gateway has charged the caller: who asked on the caller's behalf doesn't once more.
CHARGED_KEY = "worldtree-charged"
# In the trailers of every call to what stands behind a gateway: how many calls are under way there, that one too.
LOAD_KEY = "worldtree-load"
# Beside it, of a service with sessions: how many it has.
HELD_KEY = "worldtree-held"
ANONYMOUS_TENANT = "anonymous"  # every caller of a gateway that asks for no credentials, and of a service without one
# A tenant's name ends up in metadata, in metrics and on an operator's screen: short, and of plain characters.
TENANT = re.compile(r"[A-Za-z0-9._:@/-]{1,64}")


def from_stored(stored: StoredPackage[Any]) -> common.ModelRef:
    """A model by name, version and digest."""
    return common.ModelRef(name=stored.name, version=stored.version, digest=stored.digest)


def from_seconds(seconds: float) -> Duration:
    message = Duration()
    message.FromTimedelta(timedelta(seconds=seconds))
    return message
