"""Clients that walk through worlds while something happens to the stack, by the SDK with its defaults."""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import worldtree

MODEL, START = "minigrid", "four-rooms"
WALK_LENGTH = 4096
PLAY_CHUNKS = 30
THINKING_S = 0.2  # before each action
FAILURES_MAX = 10
BATCH = 64  # chunks that are compared at a time


def walk_of(seed: int, count: int) -> list[str]:
    dice = random.Random(seed)
    return [dice.choice(["forward", "forward", "left", "right"]) for _ in range(count)]


@dataclass
class Visitor:
    """Walks its own world until it is told to stop, by steps or by plays, and keeps what it saw."""

    address: str
    seed: int
    plays: bool
    frames: dict[int, "np.ndarray"] = field(default_factory=dict)  # by chunk
    failures: list[str] = field(default_factory=list)
    rehomed_count: int = 0
    longest_wait_s: float = 0.0
    walked_count: int = 0
    session: str = ""

    def __post_init__(self) -> None:
        self._walk = walk_of(self.seed, WALK_LENGTH)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"visitor-{self.seed}", daemon=True)

    def start(self) -> "Visitor":
        self._thread.start()
        return self

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(120.0)
        assert not self._thread.is_alive(), f"visitor {self.seed} hangs"

    def _run(self) -> None:
        with worldtree.Client(self.address) as client:
            world = client.world(MODEL, start=START, seed=self.seed)
            self.session = world.id
            while not self._stop.is_set() and len(self.failures) < FAILURES_MAX:
                try:
                    self._play(world) if self.plays else self._step(world)
                except Exception as error:  # nobody else sees what ends a thread
                    self.failures.append(f"{type(error).__name__} at chunk {self.walked_count}: {error}")
                    self._stop.wait(1.0)
                    # what was made and not seen is not walked twice
                    with suppress(worldtree.WorldtreeError):
                        self.walked_count = world.refresh().chunk_index

    def _step(self, world: worldtree.World) -> None:
        self._stop.wait(THINKING_S)
        begun_s = time.monotonic()
        seen = world.step(self._walk[self.walked_count])
        self._saw(self.walked_count, seen, begun_s)

    def _play(self, world: worldtree.World) -> None:
        begun_s = time.monotonic()
        # at no fps, which a machine that is busy would refuse
        with world.play(self._thinking(self.walked_count), fps=0) as play:
            for chunk in play:
                self._saw(chunk.index, chunk.frames, begun_s)
                begun_s = time.monotonic()
            self.rehomed_count += play.rehomed_count

    def _thinking(self, first: int) -> Iterator[str]:
        for action in self._walk[first : first + PLAY_CHUNKS]:
            self._stop.wait(THINKING_S)
            yield action

    def _saw(self, index: int, frames: "np.ndarray", begun_s: float) -> None:
        assert index not in self.frames, f"chunk {index} came twice"
        self.frames[index] = frames
        self.walked_count = index + 1
        self.longest_wait_s = max(self.longest_wait_s, time.monotonic() - begun_s)


def wrong_frames(visitor: Visitor, right: str) -> int:
    """How many of the frames that it saw are not those that an undisturbed service makes."""
    with worldtree.Client(right) as client:
        world = client.world(MODEL, start=START, seed=visitor.seed)
        walk = walk_of(visitor.seed, WALK_LENGTH)
        wrong_count = 0
        for first in range(0, visitor.walked_count, BATCH):
            count = min(BATCH, visitor.walked_count - first)
            chunks = np.split(world.step(walk[first : first + count]), count)
            for index, expected in enumerate(chunks, first):
                seen = visitor.frames.get(index, expected)
                wrong_count += int((seen != expected).any(axis=(1, 2, 3)).sum())
        world.close()
        return wrong_count
