"""What several services say on the wire alike."""

from datetime import timedelta
from typing import Any

from google.protobuf.duration_pb2 import Duration
from worldtree.common.v1 import common_pb2 as common

from worldtree_runtime.model_repository import StoredPackage

REPLICA_KEY = "worldtree-replica"  # initial metadata by which a gateway learns who answers
TENANT_KEY = "worldtree-tenant"  # for whom a call is; only a gateway may say it, and who passes a call on


def from_stored(stored: StoredPackage[Any]) -> common.ModelRef:
    """A model by name, version and digest."""
    return common.ModelRef(name=stored.name, version=stored.version, digest=stored.digest)


def from_seconds(seconds: float) -> Duration:
    message = Duration()
    message.FromTimedelta(timedelta(seconds=seconds))
    return message
