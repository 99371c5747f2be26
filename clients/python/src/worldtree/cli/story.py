"""What `worldtree demo` does with a world: each chapter acts, checks what was promised, and leaves pictures behind."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from worldtree.cli.pictures.film import Film, Panel
from worldtree.cli.pictures.ink import INK
from worldtree.cli.pictures.tree import Kind, Node, branch_colour
from worldtree.client import Client
from worldtree.errors import FpsUnavailable, NotFound, Unimplemented
from worldtree.live import LiveActions
from worldtree.types import Frames, ModelInfo, PlayedChunk
from worldtree.world import World

SEED = 7
# For a world with MiniGrid's actions; another discrete world gets its own names in turn. In the start `four-rooms` the
# trunk ends before a doorway: the first future walks through it to the green goal, the others look further.
TRUNK = ("right", "forward", "forward", "left")
FUTURES = (
    ("forward", "forward", "left", "forward", "forward"),
    ("forward", "forward", "forward", "forward", "right"),
    ("right", "forward", "forward", "right", "forward"),
)
SECOND_THOUGHT = ("right", "forward", "forward", "left")
EPILOGUE = ("forward", "left")
IMAGINED = (("forward", "forward", "right"), ("forward", "right", "forward"), ("right", "forward", "forward"))
PLAYED = ("left", "forward", "forward", "right", "forward", "left", "left", "forward")
REWIND_CHUNKS = 3
PROMPT_COUNT, PROMPT_SEEDS = 3, (1, 2, 3)
LOOK_AROUND = ("right", "right", "right", "right")


@dataclass(slots=True)
class Report:
    """What was done, how long it took, and whether each promise held."""

    steps: list[dict[str, Any]] = field(default_factory=list)
    checks: dict[str, bool] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    chunk_count: int = 0

    @contextmanager
    def step(self, what: str, chunk_count: int = 0) -> Iterator[dict[str, Any]]:
        """Times what happens inside, and counts its chunks."""
        entry: dict[str, Any] = {"what": what, "chunk_count": chunk_count}
        begin_s = time.perf_counter()
        yield entry
        entry["elapsed_ms"] = round((time.perf_counter() - begin_s) * 1e3, 2)
        self.chunk_count += entry["chunk_count"]
        self.steps.append(entry)


class Story:
    """Runs the chapters in order over one client. Worlds that it opened are closed at the end, also on failure."""

    def __init__(
        self, client: Client, model: ModelInfo, *, start: str | None, nfe: int, progress: Callable[[str], None]
    ):
        self._client = client
        self._model = model
        self._start = start
        self._nfe = nfe
        self._progress = progress
        self._worlds: list[World] = []
        self.report = Report()
        self.film: Film
        self.root: Node

    def tell(self) -> None:
        try:
            self._trunk()
            self._futures()
            self._rewind()
            self._save_and_restore()
            self._imagine()
            self._play()
            self._generate()
            self._ask_experts()
            if self._model.prompt_space and self._model.prompt_space.examples:
                self._prompt(self._model.prompt_space.examples)
        finally:
            for world in self._worlds:
                world.close()
        ours = {world.id for world in self._worlds}
        self.report.checks["no_session_left_behind"] = not ours & {session.id for session in self._client.sessions()}

    def _trunk(self) -> None:
        """Opens the world and steers it."""
        self._progress("opening a world and steering it")
        with self.report.step("open a world") as entry:
            self._world = self._keep(self._client.world(self._model, start=self._start, seed=SEED, nfe=self._nfe))
            entry.update(session=self._world.id, start=self._start, seed=SEED, nfe=self._world.nfe)
        self._trunk_actions = self._names(TRUNK)
        self.film = Film(self._world.last_frame)
        self.root = Node(self._world.last_frame, label=f"{self._start or 'start'}")
        self.film.add(
            f"{self._model.name}: {self._start}, a generated world",
            Panel(self._world.last_frame, "the start", "given by the model's package"),
            hold=8,
        )
        with self.report.step("steer it", len(self._trunk_actions)):
            self._trunk_chunks = [self._world.step(action) for action in self._trunk_actions]
        self._tip = self.root.grow(self._trunk_actions, _lasts(self._trunk_chunks))
        for action, chunk in zip(self._trunk_actions, self._trunk_chunks, strict=True):
            self.film.add("Steer it: every frame is generated", Panel(chunk, "the trunk", action), hold=4)
        per_chunk_ms = self.report.steps[-1]["elapsed_ms"] / len(self._trunk_chunks)
        self.report.figures["step_ms_per_chunk"] = round(per_chunk_ms, 2)

    def _futures(self) -> None:
        """Forks three futures and walks them side by side."""
        self._progress("forking three futures")
        with self.report.step("fork three futures") as entry:
            self._branches = [self._keep(branch) for branch in self._world.fork(len(FUTURES))]
            entry["sessions"] = [branch.id for branch in self._branches]
        self.report.figures["fork_ms"] = self.report.steps[-1]["elapsed_ms"]
        self.report.checks["forks_stand_where_the_trunk_stands"] = all(
            branch.state_hash == self._world.state_hash for branch in self._branches
        )
        self._plans = [self._names(plan) for plan in FUTURES]
        walks: list[list[Frames]] = [[] for _ in self._branches]
        with self.report.step("walk the futures", sum(map(len, self._plans))):
            for depth in range(len(self._plans[0])):
                for branch, plan, walk in zip(self._branches, self._plans, walks, strict=True):
                    walk.append(branch.step(plan[depth]))
                self.film.add(
                    "Fork it: three futures share one past, nothing is copied",
                    *(
                        Panel(walk[-1], self._name(index), plan[depth], branch_colour(index))
                        for index, (plan, walk) in enumerate(zip(self._plans, walks, strict=True))
                    ),
                    hold=4,
                )
        self._walks = walks
        self.report.checks["different_actions_give_different_worlds"] = len(
            {branch.state_hash for branch in self._branches}
        ) == len(self._branches)
        self._ends = []
        for index, (plan, walk) in enumerate(zip(self._plans, walks, strict=True)):
            if index == 1:
                continue  # the one that has second thoughts, below
            end = self._tip.grow(plan, _lasts(walk), colour=branch_colour(index))
            self._tip.children[-1].label = self._name(index)
            self._ends.append(end)

    def _rewind(self) -> None:
        """Takes the second future back, then another way; and replays what was forgotten, on a fork."""
        self._progress("rewinding one future")
        branch, plan, walk = self._branches[1], self._plans[1], self._walks[1]
        kept = len(plan) - REWIND_CHUNKS
        with self.report.step(f"rewind {REWIND_CHUNKS} chunks"):
            frame = branch.rewind(REWIND_CHUNKS)
        self.report.figures["rewind_ms"] = self.report.steps[-1]["elapsed_ms"]
        self.report.checks["rewind_shows_the_frame_of_then"] = np.array_equal(frame, walk[kept - 1][-1])
        name, colour = self._name(1), branch_colour(1)
        for depth in reversed(range(kept - 1, len(plan))):
            back = Panel(walk[depth][::-1], name, "rewind", colour, faded=True)
            self.film.add("Rewind one: back in time", back, hold=2)
        replay = self._keep(branch.fork())
        with self.report.step("replay what was rewound", REWIND_CHUNKS):
            again = replay.step(plan[kept:])
        self.report.checks["replay_is_bit_identical"] = np.array_equal(again, np.concatenate(walk[kept:]))
        thoughts = self._names(SECOND_THOUGHT)
        with self.report.step("take another way", len(thoughts)):
            chunks = [branch.step(action) for action in thoughts]
        for action, chunk in zip(thoughts, chunks, strict=True):
            self.film.add("Rewind one: and take another way", Panel(chunk, name, action, colour), hold=4)
        fork_point = self._tip.grow(plan[:kept], _lasts(walk[:kept]), colour=colour)
        # Between the other two, where its lane belongs.
        self._tip.children.insert(1, self._tip.children.pop())
        self._tip.children[1].label = name
        fork_point.grow(thoughts, _lasts(chunks), colour=colour)
        fork_point.grow(plan[kept:], _lasts(walk[kept:]), colour=colour, kind=Kind.REWOUND)
        fork_point.children[-1].label = "rewound"

    def _save_and_restore(self) -> None:
        """Saves the third future, restores it, and walks both."""
        self._progress("saving, restoring, comparing")
        branch, colour = self._branches[2], branch_colour(2)
        with self.report.step("save it") as entry:
            snapshot = branch.save(include_data=True)
            entry["size_bytes"] = snapshot.size_bytes
        with self.report.step("restore it from its bytes"):
            twin = self._keep(self._client.restore(snapshot))
        epilogue = self._names(EPILOGUE)
        with self.report.step("walk both", 2 * len(epilogue)):
            ours, theirs = self._chunks(branch.step(epilogue)), self._chunks(twin.step(epilogue))
        identical = np.array_equal(ours, theirs) and branch.state_hash == twin.state_hash
        self.report.checks["restored_world_is_bit_identical"] = identical
        end = self._ends[1]
        end.grow(epilogue, _lasts(ours), colour=colour)
        end.grow(epilogue, _lasts(theirs), colour=colour, kind=Kind.RESTORED)
        end.children[-1].label = "restored: identical" if identical else "restored: DIFFERENT"
        for action, mine, its in zip(epilogue, ours, theirs, strict=True):
            self.film.add(
                "Save and restore: " + ("the same frames, bit for bit" if identical else "frames differ"),
                Panel(mine, self._name(2), action, colour),
                Panel(its, "restored from a snapshot", action, colour),
                hold=6,
            )

    def _imagine(self) -> None:
        """Imagines from the first future's end, which does not move; steps a fork to see that it comes true."""
        self._progress("imagining")
        world, colour = self._branches[0], branch_colour(0)
        sequences = [self._names(sequence) for sequence in IMAGINED]
        before = (world.refresh().state_hash, world.chunk_index)
        nodes = 0

        def count(done: int, total: int) -> None:
            nonlocal nodes
            nodes = max(done, total)

        with self.report.step("imagine a rollout") as entry:
            rollouts = world.rollout(sequences, progress=count)
            entry.update(sequence_count=len(sequences), asked_chunk_count=sum(map(len, sequences)), chunk_count=nodes)
        self.report.checks["rollout_moves_nothing"] = (world.refresh().state_hash, world.chunk_index) == before
        lived = self._keep(world.fork())
        with self.report.step("live the first imagined future", len(sequences[0])):
            frames = lived.step(sequences[0])
        assert rollouts[0].frames is not None
        self.report.checks["imagined_future_comes_true"] = np.array_equal(frames, rollouts[0].frames)
        shown: list[list[Frames]] = []
        for sequence, rollout in zip(sequences, rollouts, strict=True):
            assert rollout.frames is not None
            shown.append(self._chunks(rollout.frames))
            self._imagined(self._ends[0], sequence, _lasts(shown[-1]))
        for depth in range(len(sequences[0])):
            self.film.add(
                "Rollout: imagine futures before acting",
                *(
                    Panel(frames[depth], f"imagined {index + 1}", sequence[depth], colour, faded=False)
                    for index, (sequence, frames) in enumerate(zip(sequences, shown, strict=True))
                ),
                hold=5,
            )

    def _imagined(self, node: Node, sequence: Sequence[str], frames: Sequence[Frames]) -> None:
        """Adds a sequence below `node`; what two sequences share is one node, as it was one computation."""
        for action, frame in zip(sequence, frames, strict=True):
            known = [child for child in node.children if child.action == action and child.kind is Kind.IMAGINED]
            node = known[0] if known else node.grow([action], [frame], kind=Kind.IMAGINED)

    def _play(self) -> None:
        """Plays the trunk's end in real time, with controls that come one by one."""
        self._progress("playing live")
        world = self._keep(self._world.fork())
        actions = self._names(PLAYED)
        with self.report.step("play live", len(actions)):
            begin_s = time.perf_counter()
            try:
                played = _play_one_by_one(world, actions, fps=self._model.fps)
            except FpsUnavailable as refused:
                if refused.fps_possible is None:
                    raise
                # A tour goes at the pace of the machine it is on; what was refused has moved nothing.
                begin_s = time.perf_counter()
                played = _play_one_by_one(world, actions, fps=refused.fps_possible)
        elapsed_s = time.perf_counter() - begin_s
        latencies_ms = [chunk.control_latency_s * 1e3 for chunk in played if chunk.control_latency_s is not None]
        self.report.checks["play_is_in_order"] = [str(chunk.actions[0]) for chunk in played] == actions
        self.report.figures["play_fps"] = round(len(played) * self._model.frames_per_chunk / elapsed_s, 2)
        if latencies_ms:
            self.report.figures["control_latency_ms"] = round(statistics.median(latencies_ms), 2)
        self.report.figures["play_late_ms_max"] = round(max(chunk.late_s for chunk in played) * 1e3, 2)
        for chunk, action in zip(played, actions, strict=False):
            self.film.add("Play: live, a key press at a time", Panel(chunk.frames, "live", action, INK), hold=3)

    def _generate(self) -> None:
        """The trunk again, in one call without a session: the same frames."""
        self._progress("generating a clip")
        with self.report.step("generate the trunk as a clip", len(self._trunk_actions)):
            clip = self._client.generate(
                self._model, start=self._start, actions=self._trunk_actions, seed=SEED, nfe=self._nfe
            )
        self.report.checks["clip_equals_the_session"] = np.array_equal(clip.frames, np.concatenate(self._trunk_chunks))

    def _ask_experts(self) -> None:
        """What merged experts see in the trunk's frames; nothing where none are served, or for other pictures."""
        try:
            asked = self._client.multitask.tasks()
        except (NotFound, Unimplemented):
            return
        frames = np.concatenate(self._trunk_chunks)
        if frames.shape[1:3] != (asked.height_px, asked.width_px):
            return
        self._progress("asking merged experts")
        first, *_ = names = [task.name for task in asked.tasks]
        with self.report.step("answer tasks for the trunk's frames, a preference at a time"):
            answers = [self._client.multitask.predict(frames, merge={name: 1.0, first: 0.5}) for name in names]
        run_s = [answer.timing.merge_s + answer.timing.run_s for answer in answers if not answer.cached]
        if run_s:
            self.report.figures["new_preference_ms"] = 1e3 * statistics.median(run_s)
        self.report.checks["each_preference_is_a_merge"] = len({answer.merge_digest for answer in answers}) == len(
            names
        )
        labels = answers[0][first].labels
        self.film.add(
            "Ask merged experts",
            *(
                Panel(chunk[-1:], first.replace("_", " "), label)
                for chunk, label in zip(self._trunk_chunks, labels, strict=False)
            ),
            hold=8,
        )

    def _prompt(self, examples: Sequence[str]) -> None:
        """Opens worlds with words, three of each prompt, and looks around in them."""
        self._progress("opening worlds with words")
        first: list[Frames] = []
        for prompt in examples[:PROMPT_COUNT]:
            with self.report.step(f"open worlds with words: {prompt}", len(PROMPT_SEEDS) * len(LOOK_AROUND)):
                worlds = [
                    self._keep(self._client.world(self._model, prompt=prompt, seed=seed, nfe=self._nfe))
                    for seed in PROMPT_SEEDS
                ]
                scenes = [world.last_frame for world in worlds]
                looks = [self._chunks(world.step(self._names(LOOK_AROUND))) for world in worlds]
            first += scenes
            title = f'Say it: "{prompt}"'
            named = [f"seed {seed}" for seed in PROMPT_SEEDS]
            self.film.add(title, *map(Panel, scenes, named, ["drawn from noise and words"] * len(named)), hold=8)
            for depth, action in enumerate(self._names(LOOK_AROUND)):
                panels = [Panel(look[depth], name, action) for look, name in zip(looks, named, strict=True)]
                self.film.add(title, *panels, hold=3)
        again = self._keep(self._client.world(self._model, prompt=examples[0], seed=PROMPT_SEEDS[0], nfe=self._nfe))
        self.report.checks["equal_words_and_seed_open_equal_worlds"] = np.array_equal(again.last_frame, first[0])
        self.report.checks["seeds_vary_a_scene"] = len({scene.tobytes() for scene in first[: len(PROMPT_SEEDS)]}) > 1

    def _keep(self, world: World) -> World:
        self._worlds.append(world)
        return world

    def _names(self, wanted: Sequence[str]) -> list[str]:
        known = self._model.actions
        return [name if name in known else known[index % len(known)] for index, name in enumerate(wanted)]

    def _name(self, index: int) -> str:
        return f"future {'ABCDEF'[index]}"

    def _chunks(self, frames: Frames) -> list[Frames]:
        """Frames of whole chunks as [frames_per_chunk, height, width, 3] each."""
        return np.split(frames, len(frames) // self._model.frames_per_chunk)


def _lasts(chunks: Sequence[Frames]) -> list[Frames]:
    """What each chunk ends with: [height, width, 3]."""
    return [chunk[-1] for chunk in chunks]


def _play_one_by_one(world: World, actions: list[str], *, fps: float) -> list[PlayedChunk]:
    """Each action is said when the chunk of the one before has come, as a player would."""
    live = LiveActions()
    live.put(actions[:1])
    played: list[PlayedChunk] = []
    with world.play(live, fps=fps) as play:
        for chunk in play:
            played.append(chunk)
            if len(played) < len(actions):
                live.put(actions[len(played)])
            else:
                live.close()
    return played
