"""What stays in view: the built-in policies by their rules, and real plug-ins by what they may get wrong."""

import importlib
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worldtree_video.branch import Branch
from worldtree_video.domain import (
    Action,
    Chunk,
    KvPolicy,
    Made,
    Origin,
    PolicyKind,
    Priority,
    Storage,
    Summary,
    SummaryKind,
)
from worldtree_video.errors import KvWindowFull, PolicyBroken, UnknownPolicy
from worldtree_video.kv_cache import BlockPool, BlockTable
from worldtree_video.policies import plugin_names, resolve
from worldtree_video.scheduler import Scheduler
from worldtree_video.sequence import Planned, Sequence


class Walked:
    """A history of summaries."""

    def __init__(self, *summaries: Summary | None) -> None:
        self.summaries = summaries

    def __len__(self) -> int:
        return len(self.summaries)

    def action(self, position: int) -> Action | None:
        return Action(position) if position else None

    def summary(self, position: int) -> Summary | None:
        return self.summaries[position]


def poses(*places: tuple[float, float, float]) -> Walked:
    return Walked(*(Summary(SummaryKind.POSE, place) for place in places))


def keys(*vectors: tuple[float, ...]) -> Walked:
    return Walked(*(Summary(SummaryKind.KEY, vector) for vector in vectors))


def retrieve(window: int = 4, sink: int = 1, recent: int = 2, bank: int = 8) -> KvPolicy:
    return KvPolicy(PolicyKind.RETRIEVE, window, sink, recent_chunks=recent, bank_chunks=bank)


def retrieving() -> st.SearchStrategy[KvPolicy]:
    def of(window: int, sink: int) -> st.SearchStrategy[KvPolicy]:
        return st.builds(retrieve, st.just(window), st.just(sink), st.integers(1, window - sink), st.integers(1, 9))

    return st.integers(1, 6).flatmap(lambda window: st.integers(0, window - 1).flatmap(lambda sink: of(window, sink)))


PLACES = st.tuples(st.integers(-2, 2), st.integers(-2, 2), st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]))


@given(retrieving(), st.lists(PLACES, max_size=40))
def test_a_retrieving_policy_shows_sinks_recent_and_a_choice_of_the_bank_and_nothing_that_it_let_go(
    policy: KvPolicy, places: list[tuple[float, float, float]]
) -> None:
    rules, length = resolve(policy), len(places)
    visible = rules.visible(poses(*places))
    assert visible == sorted(set(visible))
    assert len(visible) <= policy.window_chunks
    assert not length or visible[-1] == length - 1
    if length > policy.window_chunks:
        recent_from = length - policy.recent_chunks
        assert visible[: policy.sink_chunks] == list(range(policy.sink_chunks))
        assert visible[len(visible) - policy.recent_chunks :] == list(range(recent_from, length))
        chosen = visible[policy.sink_chunks : len(visible) - policy.recent_chunks]
        assert all(position >= recent_from - policy.bank_chunks for position in chosen)
    for shorter in range(length + 1):
        assert set(rules.kept(length)) & set(range(shorter)) <= set(rules.kept(shorter))
        assert set(visible) & set(range(shorter)) <= set(rules.kept(shorter))
    assert len(rules.kept(length)) <= policy.window_chunks + policy.bank_chunks


def test_of_the_bank_the_places_near_by_that_look_the_same_way_are_shown() -> None:
    rules = resolve(retrieve(window=5, sink=1, recent=2, bank=8))
    walk = poses(
        (9, 9, 0.0),  # 0: the sink
        (5, 5, 0.0),
        (1, 0, 0.25),  # 2: one step away, but looking aside
        (1, 0, 1.0),  # 3: one step away and looking the same way: a whole turn is none
        (0, 0, 0.5),  # 4: here, looking back
        (0, 2, 0.0),  # 5: two steps away
        (7, 7, 0.0),
        (6, 6, 0.0),
        (0, 0, 0.0),  # 8: the newest
    )
    assert rules.visible(walk) == [0, 3, 5, 7, 8]


def test_of_equal_places_one_is_shown_before_any_second_and_it_is_the_latest() -> None:
    rules = resolve(retrieve(window=5, sink=1, recent=2, bank=8))
    walk = poses((9, 9, 0.0), (0, 0, 0.0), (0, 0, 0.0), (0, 0, 0.0), (3, 0, 0.0), (8, 8, 0.0), (0, 0, 0.0))
    assert rules.visible(walk) == [0, 3, 4, 5, 6]


def test_without_poses_the_chunks_whose_keys_point_the_same_way_are_shown() -> None:
    rules = resolve(retrieve(window=4, sink=1, recent=2, bank=8))
    history = keys((1, 0), (0, 1), (5, 5), (0, -1), (1, -1), (0, 2))
    assert rules.visible(history) == [0, 1, 4, 5]
    assert rules.visible(keys((1, 0), (1, 1), (2, 2), (3, 3), (0, 0), (1, 1))) == [0, 3, 4, 5]


def test_where_nothing_is_known_of_the_newest_chunk_the_latest_are_shown() -> None:
    rules = resolve(retrieve(window=4, sink=1, recent=2, bank=8))
    assert rules.visible(Walked(*[None] * 9)) == [0, 6, 7, 8]
    assert rules.visible(Walked(*[None] * 8, Summary(SummaryKind.KEY, (1.0,)))) == [0, 6, 7, 8]


@pytest.mark.parametrize(
    "policy", [KvPolicy(PolicyKind.SLIDING, 3), KvPolicy(PolicyKind.SINK_WINDOW, 4, 2), KvPolicy(PolicyKind.FULL, 5)]
)
def test_what_the_others_show_follows_from_the_length(policy: KvPolicy) -> None:
    rules = resolve(policy)
    for length in range(12):
        assert rules.visible(Walked(*[None] * length)) == list(rules.kept(length)) == policy.visible(length)
        assert rules.can_grow(length) == policy.can_grow(length)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": PolicyKind.RETRIEVE, "bank_chunks": 4}, "recent_chunks must be 1 to 3, got 0"),
        ({"kind": PolicyKind.RETRIEVE, "recent_chunks": 4, "bank_chunks": 4}, "recent_chunks must be 1 to 3, got 4"),
        ({"kind": PolicyKind.RETRIEVE, "recent_chunks": 2}, "bank_chunks must be 1 or more, got 0"),
        ({"kind": PolicyKind.PLUGIN, "bank_chunks": 4}, "plugin must be set"),
        ({"kind": PolicyKind.PLUGIN, "plugin": "echo"}, "bank_chunks must be 1 or more, got 0"),
        ({"kind": PolicyKind.SLIDING, "plugin": "echo"}, "plugin must be set for kind plugin and for no other"),
        ({"kind": PolicyKind.SLIDING, "recent_chunks": 1}, "recent_chunks must be 0 for kind sliding, got 1"),
        ({"kind": PolicyKind.FULL, "bank_chunks": 1}, "bank_chunks must be 0 for kind full, got 1"),
    ],
)
def test_a_policy_with_numbers_that_it_cannot_have_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        KvPolicy(window_chunks=4, sink_chunks=1, **options)  # type: ignore[arg-type]


def test_policies_that_show_something_else_are_other_worlds() -> None:
    policies = [
        KvPolicy(PolicyKind.SINK_WINDOW, 4, 1),
        *(retrieve(recent=recent, bank=bank) for recent, bank in itertools.product((1, 2), (3, 4))),
        *(KvPolicy(PolicyKind.PLUGIN, 4, 1, bank_chunks=3, plugin=name) for name in ("near", "nearer")),
        KvPolicy(PolicyKind.RETRIEVE, 4, 1, Storage.INT8, recent_chunks=1, bank_chunks=3),
    ]
    assert len({policy.encode() for policy in policies}) == len(policies)


@pytest.mark.parametrize(("kind", "values"), [(SummaryKind.POSE, (1.0, 2.0)), (SummaryKind.KEY, ())])
def test_a_summary_of_another_length_is_refused(kind: SummaryKind, values: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=f"a {kind.value} cannot have {len(values)} values"):
        Summary(kind, values)


EVERY_OTHER = """
class EveryOther:
    def __init__(self, policy):
        self.policy = policy

    def visible(self, history):
        length = len(history)
        return [p for p in range(max(0, length - 4), length) if (length - 1 - p) % 2 == 0]

    def kept(self, length):
        return range(max(0, length - 4), length)

    def can_grow(self, length):
        return length < 40
"""

Install = Callable[[str, str], KvPolicy]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a distribution with one plug-in, as pip would leave it, and returns a policy that names it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    modules: list[str] = []

    def write(source: str, target: str) -> KvPolicy:
        module = f"worldtree_test_policy_{len(modules)}"
        modules.append(module)
        (tmp_path / f"{module}.py").write_text(source)
        information = tmp_path / f"{module}-1.0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (information / "entry_points.txt").write_text(
            f"[worldtree.kv_policies]\nevery-other-{len(modules)} = {module}:{target}\n"
        )
        importlib.invalidate_caches()
        return KvPolicy(PolicyKind.PLUGIN, 4, bank_chunks=3, plugin=f"every-other-{len(modules)}")

    resolve.cache_clear()
    yield write
    resolve.cache_clear()
    for module in modules:
        sys.modules.pop(module, None)


class Growing:
    """A run on a branch under some policy, made by a model that only counts."""

    def __init__(self, *policies: KvPolicy) -> None:
        self.pool = BlockPool(64)
        self.scheduler = Scheduler(
            max_batch=4,
            reclaim=lambda pool: False,
            forget=lambda pending: None,
            recall=lambda pool, block_id: b"",
        )
        self.ends: list[Exception | None] = []
        self.branches = []
        for number, policy in enumerate(policies):
            origin = Origin((bytes([number]),), ())
            self.branches.append(Branch(origin, b"root", 7, 1, BlockTable(self.pool, policy, reserve_chunks=2)))

    def put(self, item: Chunk) -> None:
        assert item.frames == b"made"

    def close(self, error: Exception | None = None) -> None:
        self.ends.append(error)

    def run(self, count: int = 12) -> list[Exception | None]:
        for branch in self.branches:
            planned = [Planned(Action(number)) for number in range(count)]
            self.scheduler.add(Sequence(branch, planned, priority=Priority.STEP, sink=self), 0.0)
        while self.scheduler.has_work:
            batch = self.scheduler.next_batch(0.0)
            for member in batch.denoising:
                member.step += 1
            self.scheduler.complete(batch, {member: Made(b"made") for member in batch.committing}, 0.0)
            self.pool.check_integrity()
        return self.ends

    def close_all(self) -> None:
        for branch in self.branches:
            branch.close()
        assert self.pool.free_count == 64


def test_a_plug_in_decides_what_is_in_view_and_its_table_holds_no_more_than_it_keeps(install: Install) -> None:
    growing = Growing(install(EVERY_OTHER, "EveryOther"))
    assert plugin_names() == ["every-other-1"]
    assert growing.run() == [None]
    table = growing.branches[0].table
    assert table.visible() == [10, 12]
    assert table.held_count == 4 + 2
    assert (table.needed(), table.complete) == ([9, 10, 11, 12], True)
    table.truncate(11)
    assert (table.complete, table.visible()) == (True, [8, 10])
    growing.close_all()


def test_a_plug_in_may_end_a_history(install: Install) -> None:
    growing = Growing(install(EVERY_OTHER, "EveryOther"))
    (end,) = growing.run(50)
    assert isinstance(end, KvWindowFull)
    assert len(growing.branches[0].table) == 40


def test_a_name_that_is_not_installed_is_refused_with_those_that_are(install: Install) -> None:
    install(EVERY_OTHER, "EveryOther")
    with pytest.raises(UnknownPolicy, match=r"kv\.plugin 'nearest' is not installed here, known: every-other-1"):
        resolve(KvPolicy(PolicyKind.PLUGIN, 4, bank_chunks=3, plugin="nearest"))


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("return [p for", "return [p for p in range(length)][::-1] or [p for", "not ascending"),
        ("return [p for", "return [0, *range(length - 4, length)] if length > 5 else [p for", "the window has 4"),
        ("return [p for", "return [] if length > 5 else [p for", "the newest, 5, is not the last"),
        ("return [p for", "return [0, length - 1] if length > 5 else [p for", "leaves out"),
        ("return [p for", "return [float(length - 1)] or [p for", "not all integers"),
        ("return [p for", "return (1 // (5 - length),) and [p for", "visible\\(\\) raised: ZeroDivisionError"),
        ("return range(max", "return range(length) or range(max", "window_chunks \\+ bank_chunks is 7"),
        ("return range(max", "return [length] or range(max", "goes from"),
        ("return range(max", "return None or self.nothing or range(max", "kept\\(\\) raised: AttributeError"),
        ("return length < 40", "return self.nothing", "can_grow\\(\\) raised: AttributeError"),
        (
            "return range(max(0, length - 4), length)",
            "return range(max(0, length - 4), length - length % 2)",
            "leaves out",
        ),
    ],
)
def test_a_plug_in_that_answers_nonsense_fails_its_own_run_and_no_other(
    install: Install, before: str, after: str, said: str
) -> None:
    assert before in EVERY_OTHER
    bad = install(EVERY_OTHER.replace(before, after), "EveryOther")
    growing = Growing(bad, KvPolicy(PolicyKind.SINK_WINDOW, 4, 1))
    first, second = growing.run()
    assert isinstance(first, PolicyBroken), first
    assert second is None
    with pytest.raises(PolicyBroken, match=said):
        raise first
    assert len(growing.branches[1].table) == 13
    assert growing.branches[0].table.drop_reserve() >= 0
    growing.close_all()


def test_a_plug_in_that_asks_for_what_it_let_go_fails_its_own_run(install: Install) -> None:
    forgetful = EVERY_OTHER.replace(
        "return range(max(0, length - 4), length)", "return range(0 if length > 6 else max(0, length - 4), length)"
    ).replace("return [p for", "return [0, length - 1] if length == 7 else [p for")
    growing = Growing(install(forgetful, "EveryOther"))
    (end,) = growing.run()
    assert isinstance(end, PolicyBroken)
    assert "in view again, after it had let them go" in str(end)
    growing.close_all()


@pytest.mark.parametrize(
    ("source", "target"),
    [("raise RuntimeError('no')", "EveryOther"), (EVERY_OTHER, "Absent"), (EVERY_OTHER + "\nnone = 7", "none")],
)
def test_a_plug_in_that_cannot_be_loaded_is_said_so(install: Install, source: str, target: str) -> None:
    policy = install(source, target)
    with pytest.raises(PolicyBroken, match="cannot be loaded"):
        BlockTable(BlockPool(4), policy)
