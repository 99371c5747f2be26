"""Pool, tables, prefix index and scheduler against a plain model: what a block holds follows from its history.

A committed block holds the hash of its record's key and of what the blocks that it saw held. So a block that was shared
wrongly, given back too early, or made from a stranger's block shows itself in all that is made from it.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)
from worldtree_runtime.errors import WorldtreeError
from worldtree_video.branch import Branch
from worldtree_video.domain import (
    Action,
    Chunk,
    KvPolicy,
    Made,
    Origin,
    PolicyKind,
    Priority,
    Record,
    Summary,
    SummaryKind,
    root_key,
)
from worldtree_video.errors import KvCacheFull, KvWindowFull, NotFinite
from worldtree_video.kv_cache import BlockPool, BlockTable
from worldtree_video.policies import resolve
from worldtree_video.scheduler import Batch, PendingChunk, Scheduler
from worldtree_video.sequence import Planned
from worldtree_video.sequence import Sequence as Run

BLOCK_COUNT = 14
POISON = Action(9)
ORIGINS = (Origin((b"dawn",), ()), Origin((b"dusk", b"night"), (Action(0),)))
POLICIES = (
    KvPolicy(PolicyKind.SINK_WINDOW, 3, 1),
    KvPolicy(PolicyKind.SLIDING, 2),
    KvPolicy(PolicyKind.FULL, 6),
    KvPolicy(PolicyKind.RETRIEVE, 4, 1, recent_chunks=1, bank_chunks=4),
)
PLANS = st.lists(st.sampled_from([Action(0), Action(0), Action(1), Action(1), POISON]), min_size=1, max_size=6)


def pose(key: bytes) -> Summary:
    return Summary(SummaryKind.POSE, (float(key[0] % 3), float(key[1] % 3), (key[2] % 4) / 4))


def held_by(key: bytes, seen: Sequence[bytes]) -> bytes:
    return hashlib.sha256(b"".join((key, *seen))).digest()


@dataclass
class History:
    """The plain model of a world: every chunk for ever, in lists."""

    policy: KvPolicy
    records: Sequence[Record]
    contents: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        whole = self.records
        for length in range(len(whole)):
            self.records = whole[:length]
            seen = [self.contents[position] for position in resolve(self.policy).visible(self)]
            self.contents.append(held_by(whole[length].key, seen))
        self.records = whole

    def __len__(self) -> int:
        return len(self.records)

    def action(self, position: int) -> Action | None:
        return self.records[position].action

    def summary(self, position: int) -> Summary | None:
        return pose(self.records[position].key)


@dataclass(eq=False)
class World:
    """A branch, the run on it if there is one, and what has come of that."""

    branch: Branch
    run: Run | None = None
    planned: list[Action] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    error: Exception | None = None

    def put(self, item: Chunk) -> None:
        self.chunks.append(item)

    def close(self, error: Exception | None = None) -> None:
        self.error = error
        self.run = None


class Worlds(RuleBasedStateMachine):
    worlds = Bundle("worlds")

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(BLOCK_COUNT)
        self.memory: dict[int, bytes] = {}
        self.stored: dict[bytes, bytes] = {}  # a lower tier: contents by key
        self.truth: dict[bytes, bytes] = {}  # what every key that was ever seen stands for
        self.live: list[World] = []
        self.during: list[Callable[[], None]] = []
        self.scheduler = Scheduler(
            max_batch=3,
            reclaim=lambda pool: any(world.branch.table.drop_reserve() for world in self.live),
            forget=lambda pending: None,
            recall=lambda pool, block_id: self.memory[block_id],
        )

    @initialize(target=worlds, policy=st.sampled_from(POLICIES), actions=PLANS, ticks=st.integers(4, 20))
    def begin(self, policy: KvPolicy, actions: list[Action], ticks: int) -> object:
        """One policy for all, and two worlds that coincide: worlds that have nothing in common share nothing."""
        self.policy = policy
        pair = [self.open(ORIGINS[0], 0), self.open(ORIGINS[0], 2)]
        for world in pair:
            self.submit(world, actions, 0)
        self.ticks(ticks)
        return multiple(*pair)

    @rule(target=worlds, origin=st.sampled_from(ORIGINS), reserve=st.integers(0, 2))
    @precondition(lambda self: len(self.live) < 6)
    def open(self, origin: Origin, reserve: int) -> World:
        table = BlockTable(self.pool, self.policy, reserve_chunks=reserve)
        return self.keep(World(Branch(origin, root_key("model", "here", self.policy), 7, 2, table)))

    @rule(world=worlds, actions=PLANS, ticks=st.sampled_from([0, 2, 15, 30]))
    def submit(self, world: World, actions: list[Action], ticks: int) -> None:
        self.ticks(ticks)  # long enough, most of the time, for what was begun to end
        if world not in self.live or world.run or not world.branch.table.complete:
            return
        world.chunks.clear()
        run = Run(world.branch, [Planned(action) for action in actions], priority=Priority.STEP, sink=world)
        if not run.over:
            world.run = run
            self.scheduler.add(run, 0.0)

    @rule(count=st.sampled_from([1, 3, 30]))
    def ticks(self, count: int) -> None:
        for _ in range(count):
            if not self.scheduler.has_work:
                return
            self.tick()

    @rule(world=worlds)
    def cancel(self, world: World) -> None:
        self.stop(world)

    @rule(world=worlds)
    def cancel_inside_a_tick(self, world: World) -> None:
        self.during.append(lambda: self.stop(world))
        self.tick()

    @rule(target=worlds, world=worlds)
    def fork(self, world: World) -> object:
        if world not in self.live or len(self.live) >= 6:
            return multiple()
        free = self.pool.free_count
        child = self.keep(World(world.branch.fork()))
        assert self.pool.free_count == free
        return child

    @rule(world=worlds, data=st.data())
    def rewind(self, world: World, data: st.DataObject) -> None:
        branch = world.branch
        if world not in self.live or world.run or branch.chunk_index < 1:
            return
        count = data.draw(st.integers(0, branch.chunk_index))
        whole = branch.table.held_count == len(branch.table)
        branch.rewind(count)
        assert branch.table.complete or not whole

    @rule(world=worlds)
    def drop_reserve(self, world: World) -> None:
        free, was_complete = self.pool.free_count, world.branch.table.complete
        freed = world.branch.table.drop_reserve()
        assert self.pool.free_count == free + freed
        assert world.branch.table.complete == was_complete

    @rule(world=worlds)
    def spill(self, world: World) -> None:
        table = world.branch.table
        if world not in self.live or world.run or not table.complete:
            return
        for position, key in world.branch.keys(table.needed()).items():
            if table.trusted:
                self.stored[key] = self.memory[table.blocks[position]]
        free = self.pool.free_count
        freed = table.spill()
        assert self.pool.free_count == free + freed
        assert table.held_count == 0

    @rule(leaves=st.sampled_from([0, 0, 1, 3]))
    def crowd(self, leaves: int) -> None:
        """A stranger takes nearly all that can be had, writes to it, and goes: what was cached there is lost."""
        self.uncrowd(self.crowded(leaves))

    def crowded(self, leaves: int) -> list[int]:
        taken = []
        while self.pool.free_count > leaves:
            block_id = self.pool.allocate()
            assert block_id is not None
            self.memory[block_id] = b"a stranger's"
            taken.append(block_id)
        self.what_is_known_is_there()
        return taken

    def uncrowd(self, taken: list[int]) -> None:
        for block_id in taken:
            self.pool.abandon(block_id)

    @rule(world=worlds, reads=st.sampled_from([True, True, False]), leaves=st.sampled_from([BLOCK_COUNT, 6, 1, 0]))
    def refill(self, world: World, reads: bool, leaves: int) -> None:
        if leaves:
            self.spill(world)  # else it mostly has its blocks still, or finds them where it left them
            self.crowd(0)
        taken = self.crowded(leaves)
        self.refilled(world, reads)
        self.uncrowd(taken)

    def refilled(self, world: World, reads: bool) -> None:
        table = world.branch.table
        if world not in self.live or world.run or not table.trusted:
            return
        keys = world.branch.keys(table.needed())
        before, free = dict(table.blocks), self.pool.free_count
        known = {position: self.pool.find(key) for position, key in keys.items() if position not in before}
        fresh = table.refill(keys)
        if fresh is None:
            assert (table.blocks, self.pool.free_count) == (before, free)
            assert sum(position not in before for position in keys) > 0
            return
        assert table.complete
        assert fresh.keys() == {position for position, block_id in known.items() if block_id is None}
        # What was in them belongs to somebody else's past; until they are written nobody may find them.
        for position, block_id in fresh.items():
            self.memory[block_id] = b"not written yet"
            assert self.pool.find(keys[position]) is None
        self.what_is_known_is_there()
        if not reads or any(keys[position] not in self.stored for position in fresh):
            table.spill()  # its contents could not be had
            return
        for position, block_id in fresh.items():
            self.memory[block_id] = self.stored[keys[position]]
        table.publish({position: keys[position] for position in fresh})
        assert all(self.pool.find(keys[position]) is not None for position in fresh)

    @rule(target=worlds, world=worlds, shares=st.booleans())
    def restore_from_a_stranger(self, world: World, shares: bool) -> object:
        source = world.branch
        if world not in self.live or len(self.live) >= 6 or not source.records:
            return multiple()
        table = BlockTable(self.pool, source.table.policy)
        poses = {position: pose(record.key) for position, record in enumerate(source.records)}
        twin = Branch(source.origin, source.root, source.seed, source.nfe, table, list(source.records))
        table.stand_at(len(source.records), summaries=poses)
        table.trusted = False
        keys = twin.keys(table.needed())
        # By their keys it finds what is here already; by others it has nothing but what the stranger sent.
        fresh = table.refill(keys if shares else {position: b"sent " + key for position, key in keys.items()})
        if fresh is None:
            table.close()
            return multiple()
        for block_id in fresh.values():
            self.memory[block_id] = b"forged"
        table.publish(keys)
        return self.keep(World(twin))

    @rule(world=consumes(worlds))
    def close(self, world: World) -> None:
        if world in self.live:
            self.stop(world)
            self.live.remove(world)
            world.branch.close()

    @invariant()
    def every_block_holds_what_its_history_says(self) -> None:
        self.pool.check_integrity()
        assert len(self.scheduler.in_flight(self.pool)) == self.pool.in_flight_count
        held: set[int] = set()
        for world in self.live:
            table = world.branch.table
            history = History(table.policy, world.branch.records)
            held |= set(table.blocks.values())
            assert len(table) == len(history)
            if table.trusted:
                for position, block_id in table.blocks.items():
                    assert self.memory[block_id] == history.contents[position]
            # Whoever holds it: what a key stands for follows from the history alone.
            keys = (record.key for record in history.records)
            self.truth |= dict(zip(keys, history.contents, strict=True))
            if table.complete:
                assert table.visible() == resolve(table.policy).visible(history)
            kept = set(table.needed()) | set(resolve(table.policy).kept(max(0, len(table) - table.reserve_chunks)))
            assert set(table.blocks) <= kept | set(range(len(table) - table.reserve_chunks, len(table)))
        assert self.pool.free_count == BLOCK_COUNT - len(held) - self.pool.in_flight_count
        self.what_is_known_is_there()

    def what_is_known_is_there(self) -> None:
        making = self.scheduler.in_flight(self.pool)
        for key, content in self.truth.items():
            block_id = self.pool.find(key)
            assert block_id is None or (block_id not in making and self.memory[block_id] == content)

    def keep(self, world: World) -> World:
        self.live.append(world)
        return world

    def stop(self, world: World) -> None:
        if world.run:
            self.scheduler.remove(world.run)
            world.run = None

    def tick(self) -> None:
        batch = self.scheduler.next_batch(0.0)
        # As in a real pool, a block that is taken over for a new chunk holds another's until it is written.
        self.what_is_known_is_there()
        assert len({(member.pool, member.record.key) for member in batch.members if self.shares(member)}) == sum(
            map(self.shares, batch.members)
        ), "a chunk is made twice at once"
        for member in batch.denoising:
            if member.record.action == POISON:
                member.error = NotFinite(member.record.chunk_index)
            else:
                member.step += 1
        chunks = {member: self.commit(member) for member in batch.committing}
        for cancel in self.during:
            cancel()
        self.during.clear()
        self.scheduler.complete(batch, chunks, 0.0)
        self.look_at_ends(batch)

    @staticmethod
    def shares(member: PendingChunk) -> bool:
        return member.run.branch.trusted

    def commit(self, member: PendingChunk) -> Made:
        if member.wants_summary and len(member.run.branch.records):
            assert member.parent_summary == pose(member.run.branch.key)
        seen = [self.memory[block_id] for block_id, _ in member.context]
        self.memory[member.block_id] = held_by(member.record.key, seen)
        return Made(self.memory[member.block_id], pose(member.record.key) if member.wants_summary else None)

    def look_at_ends(self, batch: Batch) -> None:
        for world in self.live:
            if world.error:
                expected = (NotFinite, KvCacheFull, KvWindowFull)
                assert isinstance(world.error, WorldtreeError), repr(world.error)
                assert isinstance(world.error, expected), repr(world.error)
                world.error = None
            if world.branch.trusted and world.chunks:
                contents = History(world.branch.table.policy, world.branch.records).contents
                shown = [chunk.frames for chunk in world.chunks if not chunk.record.given]
                assert shown == contents[len(contents) - len(shown) :] or not shown
                world.chunks.clear()

    def teardown(self) -> None:
        for world in self.live:
            self.stop(world)
            world.branch.close()
        self.pool.check_integrity()
        assert self.pool.free_count == BLOCK_COUNT


TestWorlds = Worlds.TestCase
TestWorlds.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
