"""Actions as text: "forward*4,left,2" is four times forward, left, and the action with id 2."""

from worldtree.actions import ActionValue
from worldtree.errors import InvalidRequest

ACTIONS_HELP = "Actions, comma separated: names, ids, or vectors like 0.5:-1.0; NAME*N repeats."
MAX_REPEAT = 100_000


def parse_actions(text: str, *, field: str = "actions") -> list[ActionValue]:
    """The list that `text` names. Raises InvalidRequest for what can't be read."""
    actions: list[ActionValue] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, star, count_text = part.partition("*")
        count = int(count_text) if count_text.strip().isdecimal() else 0
        if star and not 1 <= count <= MAX_REPEAT:
            raise InvalidRequest(f"{field}: the number after * must be 1 to {MAX_REPEAT}, got {part!r}", field=field)
        actions += [_parse_action(name.strip(), field)] * (count if star else 1)
    if not actions:
        raise InvalidRequest(f"{field} must name at least one action, got {text!r}", field=field)
    return actions


def _parse_action(name: str, field: str) -> ActionValue:
    if name.lstrip("-").isdecimal():
        return int(name)
    if ":" in name or _is_float(name):
        try:
            return tuple(float(value) for value in name.split(":"))
        except ValueError:
            raise InvalidRequest(
                f"{field}: a vector is numbers with : between them, got {name!r}", field=field
            ) from None
    return name


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "." in text
