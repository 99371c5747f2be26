"""How a world is made, and what a journal says of it."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from worldtree_video.branch import Branch
from worldtree_video.domain import Action, KvPolicy, Origin, PolicyKind, Record, Storage
from worldtree_video.journal import Head, Step


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a world is made: all that its frames depend on, but for the actions."""

    origin: Origin
    seed: int
    nfe: int
    policy: KvPolicy


def steps_of(branch: Branch) -> Iterator[tuple[Action, int, int]]:
    """(action, seed, nfe) of each generated chunk."""
    for record in branch.records:
        if not record.given:
            assert record.action is not None, f"chunk {record.chunk_index} was generated without an action"
            yield record.action, record.seed, record.nfe


def write_history(branch: Branch, steps: Iterable[tuple[Action, int, int]]) -> None:
    """Gives an empty branch the records of a history; their blocks are made or found later."""
    for _ in branch.origin.chunks:
        branch.records.append(branch.given_record())
    for action, seed, nfe in steps:
        branch.records.append(branch.next_record(action, seed=seed, nfe=nfe))


def to_step(record: Record) -> Step:
    """A generated chunk as the journal has it."""
    assert record.action is not None, f"chunk {record.chunk_index} was generated without an action"
    return Step(record.action.value, record.seed, record.nfe)


def to_policy_fields(policy: KvPolicy) -> dict[str, int | str]:
    """A policy as plain values."""
    return {**asdict(policy), "kind": policy.kind.value, "storage": policy.storage.value}


def from_head(head: Head) -> Recipe:
    """The recipe of a journaled session. Raises ValueError or TypeError for one that no version of ours wrote."""
    fields: dict[str, Any] = dict(head.policy)
    policy = KvPolicy(**{**fields, "kind": PolicyKind(fields["kind"]), "storage": Storage(fields["storage"])})
    actions = tuple(Action(value) for value in head.start_actions)
    return Recipe(Origin(head.start_chunks, actions, head.start_name), head.seed, head.nfe, policy)
