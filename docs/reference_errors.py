"""The page of the errors: every reason that a service may give, read from the code that raises it."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from google.rpc import code_pb2  # type: ignore[import-untyped]
from worldtree_runtime import errors
from worldtree_runtime.errors import Kind, WorldtreeError
from worldtree_runtime.status import to_status

SERVICES = Path(__file__).parents[1] / "services"
REASON = re.compile(r"[A-Z…][A-Z0-9_…]*_[A-Z0-9_…]+|UNREAD")
# what each class of the family becomes, and the reason that it has by itself
KINDS = {
    "InvalidRequest": Kind.INVALID,
    "NotFound": Kind.NOT_FOUND,
    "Exhausted": Kind.EXHAUSTED,
    "Aborted": Kind.ABORTED,
    "FailedPrecondition": Kind.PRECONDITION,
    "Unavailable": Kind.UNAVAILABLE,
    "DataLoss": Kind.DATA_LOSS,
    "Unimplemented": Kind.UNIMPLEMENTED,
    "DeadlineExceeded": Kind.DEADLINE,
    "Unauthenticated": Kind.UNAUTHENTICATED,
    "PermissionDenied": Kind.PERMISSION,
}
HEAD = """\
# Errors

Every error is a `google.rpc.Status` whose ErrorInfo (domain `worldtree`) has one of these reasons, and each number of
the message in its metadata. In the SDK it is an exception of its kind with the same `reason`. A failed request changes
nothing.

INTERNAL with the reason `BUG` is ours: what happened is in the log of the service, under the request's id.
"""


@dataclass(frozen=True, order=True)
class Told:
    reason: str
    code: str
    service: str
    meaning: str


def errors_page() -> str:
    return "\n".join(_page()).rstrip() + "\n"


def _page() -> Iterator[str]:
    yield HEAD
    yield "## What the codes mean"
    yield ""
    yield "| code | what it says |"
    yield "| --- | --- |"
    for name, kind in KINDS.items():
        yield f"| {_code(kind)} | {_first_sentence(getattr(errors, name).__doc__)} |"
    yield ""
    yield "## Reasons"
    yield ""
    yield "| reason | code | from | what happened |"
    yield "| --- | --- | --- | --- |"
    for told in sorted(set(_all())):
        yield f"| `{told.reason}` | {told.code} | {told.service} | {told.meaning} |"


def _all() -> Iterator[Told]:
    yield Told("INVALID_FIELD", _code(Kind.INVALID), "all", "A field can't be accepted; the message says what is.")
    for file in sorted(SERVICES.glob("*/worldtree_*/**/*.py")):
        service = file.relative_to(SERVICES).parts[0]
        tree = ast.parse(file.read_text())
        own = list(_classes(tree))
        for node, base in own:
            for reason in _reasons(node, base):
                yield Told(reason, _code(KINDS[base]), _from(service), _first_sentence(ast.get_docstring(node)))
        inside = {id(part) for node, _ in own for part in ast.walk(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and id(node) not in inside and (base := _name(node.func)) in KINDS:
                for reason in _reasons_of_call(node):
                    yield Told(reason, _code(KINDS[base]), _from(service), _message(node))


def _classes(tree: ast.Module) -> Iterator[tuple[ast.ClassDef, str]]:
    """Those that stand on one of the family, and on which."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            base = next((name for name in map(_name, node.bases) if name in KINDS), None)
            if base is not None and node.name not in KINDS:
                yield node, base


def _reasons(node: ast.ClassDef, base: str) -> list[str]:
    """What the class gives to the family; a NotFound is named for what was not found."""
    calls = [part for part in ast.walk(node) if isinstance(part, ast.Call)]
    found = [reason for call in calls if _name(call.func) == "__init__" for reason in _reasons_of_call(call)]
    if found or base != "NotFound":
        return found
    (call, *_) = [call for call in calls if _name(call.func) == "__init__"]
    kind = call.args[0]
    return [f"{kind.value.upper()}_NOT_FOUND"] if isinstance(kind, ast.Constant) else []


def _reasons_of_call(call: ast.Call) -> list[str]:
    given = [*call.args[:1], *(keyword.value for keyword in call.keywords if keyword.arg == "reason")]
    return [text for value in given for text in _texts(value) if REASON.fullmatch(text)]


def _message(call: ast.Call) -> str:
    """The text of the message; of what was not found there is no better one than that."""
    if _name(call.func) == "NotFound":
        return _sentence(f"no {_texts(call.args[0])[0]} has this name")
    said = next((text for value in call.args[1:] for text in _texts(value)), "…")
    return _first_sentence(getattr(errors, _name(call.func)).__doc__) if said == "…" else _sentence(said)


def _texts(value: ast.expr) -> list[str]:
    """What a text in the code says, with an ellipsis for what differs; of two, where it is one or the other."""
    if isinstance(value, ast.IfExp):
        return [*_texts(value.body), *_texts(value.orelse)]
    if isinstance(value, ast.BinOp):
        return [left + right for left in _texts(value.left) for right in _texts(value.right)]
    if isinstance(value, ast.JoinedStr):
        return ["".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in value.values)]
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        return [value.value]
    return ["…"]


def _sentence(text: str) -> str:
    text = " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "…")) else ".")


def _first_sentence(text: str | None) -> str:
    return re.split(r"(?<=\.)\s", " ".join((text or "").split()), maxsplit=1)[0].replace("|", "\\|")


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")


def _code(kind: Kind) -> str:
    status = to_status(WorldtreeError(kind, "ANY", ""), request_id="")
    return str(code_pb2.Code.Name(status.code))


def _from(service: str) -> str:
    return "all" if service == "runtime" else service
