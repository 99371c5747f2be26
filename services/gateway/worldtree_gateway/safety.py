"""Which calls may be sent a second time when nobody knows how far the first one came."""

from google.protobuf.message import DecodeError

from worldtree_gateway.domain import Method

# the same answer, or the same effect, however often
_ALWAYS = frozenset(
    {
        *("ListModels", "GetModel", "Get", "List", "KeepAlive", "Delete", "Save", "Generate", "Rollout", "Introspect"),
        *("ListPlanners", "Imagine", "Plan", "PlanOnMap"),
    }
)
# only a request that names itself: a repeat is recognised, or refused, by what this field says, at the replica that has
# the session. CreateSession and Restore have none yet: whose connection broke is asked again where it was (`Journey`).
_BY_FIELD = {
    "CreateSession": "request_id",
    "Step": "request_id",
    "Fork": "request_id",
    "Restore": "request_id",
    "Rewind": "expected_chunk_index",
}


def is_repeatable(method: Method, request: bytes) -> bool:
    """Decodes the request where its method alone does not say it, so ask only when it matters."""
    if method.request_class is None:
        return False
    name = method.path.rpartition("/")[2]
    if name in _ALWAYS or method.cache is not None:  # what may be cached is a function of the request
        return True
    field = _BY_FIELD.get(name)
    if field is None:
        return False
    try:
        message = method.request_class.FromString(request)
    except DecodeError:
        return False
    # an optional field counts when it is there, also as 0; a plain one when it says something
    return any(descriptor.name == field for descriptor, _ in message.ListFields())
