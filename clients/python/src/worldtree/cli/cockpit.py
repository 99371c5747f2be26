"""The live game behind `worldtree play`: keys in, worlds out, a picture of where we are."""

import statistics
import time
from collections import deque
from collections.abc import Callable
from threading import Lock
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from worldtree.cli.half_blocks import HalfBlocks
from worldtree.errors import FailedPrecondition, FpsUnavailable
from worldtree.live import LiveActions
from worldtree.types import Degrade, Forked, Frames, Idle, ModelInfo, Paused, PlayedChunk, Resumed, Rewound
from worldtree.world import World

LEAST_FPS = 1.0  # slower is no walk
STATUS_ROWS = 6
RECENT = 24  # chunks that the shown latency and rate are taken over
QUEUE_LIMIT = 2  # beyond it a new key replaces what waits, so that a held key does not steer the far future
# The actions behind each key: the first of them that the world has.
KEYS = {
    "up": ("forward",),
    "w": ("forward",),
    "down": ("back", "wait"),
    "s": ("back", "wait"),
    "left": ("left",),
    "a": ("left",),
    "right": ("right",),
    "d": ("right",),
    "space": ("toggle", "shoot", "wait"),
    "p": ("pickup",),
    "D": ("drop",),
    "x": ("drop",),
}
MOVES = (("arrows, w a s d", "up"), ("space", "space"), ("p", "p"), ("x", "x"))  # what the help shows, by a key of it
HELP = (
    ("u", "rewind"),
    ("f", "fork"),
    ("tab", "next branch"),
    ("o", "pause"),
    ("q", "quit"),
)


class Cockpit:
    """Plays one branch at a time; forks add branches, tab goes to the next. Keys may come from any thread."""

    def __init__(
        self,
        world: World,
        model: ModelInfo,
        *,
        fps: float,
        insists: bool,
        idle: Idle,
        degrade: Degrade | None,
        size: Callable[[], tuple[int, int]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.branches = [world]
        self.played_count = 0
        self.latencies_s: list[float] = []
        self.rehomings: list[Resumed] = []
        self._model = model
        self._fps = fps
        self._insists = insists
        self._idle = idle
        self._degrade = degrade
        self._size = size
        self._clock = clock
        self._lock = Lock()
        self._current = 0
        self._next: int | None = 0
        self._live = LiveActions()
        self._message = "press a key to move"
        self._paused = False
        self._queued_count = 0
        self._rewinding_count = 0
        self._late_s = 0.0
        self._chunk_nfe = world.nfe
        self._action = ""
        self._pressed_at: deque[float] = deque()
        self._arrivals: deque[float] = deque(maxlen=RECENT)
        self._newest: tuple[Frames, float] | None = None  # the frames of the newest chunk, and when it came

    def run(self) -> None:
        """Plays until the quit key. What the server refuses is raised."""
        while (branch := self._begin_branch()) is not None:
            world, live = branch
            try:
                with world.play(
                    live, fps=self._fps, lookahead=1, idle=self._idle, degrade=self._degrade, on_event=self._saw_event
                ) as play:
                    for chunk in play:
                        self._saw_chunk(chunk)
            except FpsUnavailable as refused:
                self._slow_down(refused)

    def _slow_down(self, refused: FpsUnavailable) -> None:
        """Plays the branch at the fps that can be held, unless the player insists on another."""
        fps = refused.fps_possible
        if self._insists or fps is None or not LEAST_FPS <= fps < self._fps:
            raise refused
        with self._lock:
            self._message = f"{self._fps:g} fps cannot be held here now: playing at {fps:g}"
            self._fps = fps
            self._next = self._current

    def press(self, key: str) -> None:
        """A key: moves, or one of the commands."""
        try:
            with self._lock:
                self._press(key)
        except FailedPrecondition:
            pass  # the branch is just ending; the key came too late for it

    def render(self) -> RenderableType:
        """The frame with what is known about it, for the terminal's size of this moment."""
        columns, rows = self._size()
        with self._lock:
            world = self.branches[self._current]
            frame = HalfBlocks(self._shown(world), columns=columns, rows=max(rows - STATUS_ROWS, 2))
            return Group(frame, *self._status(world))

    def _begin_branch(self) -> tuple[World, LiveActions] | None:
        with self._lock:
            if self._next is None:
                return None
            # Without another choice, the end of a play is the end of the game.
            self._current, self._next = self._next, None
            self._live = LiveActions()
            self._paused = False
            self._queued_count = self._rewinding_count = 0
            self._pressed_at.clear()
            self._arrivals.clear()
            self._newest = None
            return self.branches[self._current], self._live

    def _press(self, key: str) -> None:
        match key:
            case "q" | "escape":
                self._live.stop()
            case "u":
                self._rewind()
            case "f":
                self._live.fork()
            case "o":
                self._live.resume() if self._paused else self._live.pause()
            case "tab":
                if len(self.branches) == 1:
                    self._message = "one branch so far: f forks"
                else:
                    self._next = (self._current + 1) % len(self.branches)
                    self._message = f"branch {self._next + 1}"
                    self._live.stop()
            case _:
                self._move(key)

    def _move(self, key: str) -> None:
        action: str | int | None = self._action_of(key)
        if action is None and key.isdecimal() and int(key) < len(self._model.actions):
            action = int(key)
        if action is None:
            self._message = f"no action on {key!r}"
            return
        if self._queued_count >= QUEUE_LIMIT:
            self._live.replace(action)
            self._pressed_at.clear()
            self._queued_count = 0
        else:
            self._live.put(action)
        self._queued_count += 1
        self._pressed_at.append(self._clock())
        self._message = ""

    def _action_of(self, key: str) -> str | None:
        return next((name for name in KEYS.get(key, ()) if name in self._model.actions), None)

    def _help(self) -> list[tuple[str, str]]:
        moves = [(shown, "move" if key == "up" else self._action_of(key)) for shown, key in MOVES]
        known = [(shown, what) for shown, what in moves if what is not None]
        others = len(self._model.actions) and (f"0 - {len(self._model.actions) - 1}", "any action")
        return [*known, *([others] if others else []), *HELP]

    def _shown(self, world: World) -> Frames:
        """The image of this moment: the frames of the newest chunk one after another, at the pace that is played."""
        if self._newest is None:
            return world.last_frame
        frames, since_s = self._newest[0], self._clock() - self._newest[1]
        shown: Frames = frames[min(int(since_s * self._fps), len(frames) - 1)]
        return shown

    def _rewind(self) -> None:
        # A rewind past the start would end the play with an error; those on their way count.
        if self.branches[self._current].chunk_index - self._rewinding_count < 1:
            self._message = "at the start"
            return
        self._rewinding_count += 1
        self._queued_count = 0
        self._pressed_at.clear()
        self._live.rewind(1)

    def _saw_chunk(self, chunk: PlayedChunk) -> None:
        with self._lock:
            now = self._clock()
            self.played_count += 1
            self._queued_count = chunk.queued_count
            self._late_s = chunk.late_s
            self._chunk_nfe = chunk.timing.nfe
            self._action = str(chunk.actions[0]) + ("" if chunk.control_latency_s is not None else " (repeated)")
            self._arrivals.append(now)
            self._newest = (chunk.frames, now)
            if chunk.control_latency_s is not None and self._pressed_at:
                # From the key to the frame at our end: the server's time, the network's and the queue's.
                self.latencies_s.append(now - self._pressed_at.popleft())

    def _saw_event(self, event: Any) -> None:
        with self._lock:
            match event:
                case Rewound():
                    self._newest = None
                    self._rewinding_count = max(self._rewinding_count - 1, 0)
                    self._message = f"back at chunk {event.chunk_index}"
                case Forked():
                    self.branches += event.worlds
                    self._message = f"forked branch {len(self.branches)}: tab goes there"
                case Paused():
                    self._paused = True
                    self._message = "paused: o goes on"
                case Resumed(rehomed=True):
                    self.rehomings.append(event)
                    self._message = rehomed_text(event)
                case Resumed():
                    self._paused = False
                    self._message = ""

    def _status(self, world: World) -> list[Text]:
        branch = f"branch {self._current + 1}/{len(self.branches)}"
        place = f"{self._model.name} · {branch} · chunk {world.chunk_index} · {self._action or 'start'}"
        return [
            Text(place, style="bold", no_wrap=True, overflow="ellipsis"),
            Text(self._pace(), no_wrap=True, overflow="ellipsis"),
            Text(self._message, style="yellow", no_wrap=True, overflow="ellipsis"),
            Text.assemble(*(part for key, what in self._help() for part in ((key, "bold cyan"), f" {what}   "))),
        ]

    def _pace(self) -> str:
        parts = []
        if self.latencies_s:
            recent = self.latencies_s[-RECENT:]
            parts.append(f"key to frame {statistics.median(recent) * 1e3:.0f} ms")
        if len(self._arrivals) > 1 and self._arrivals[-1] > self._arrivals[0]:
            rate = (len(self._arrivals) - 1) / (self._arrivals[-1] - self._arrivals[0])
            parts.append(f"{rate * self._model.frames_per_chunk:.1f} fps of {self._fps:g}")
        parts.append(f"late {self._late_s * 1e3:.0f} ms" if self._late_s > 0 else "in time")
        if self._chunk_nfe < self.branches[self._current].nfe:
            parts.append(f"made with {self._chunk_nfe} of {self.branches[self._current].nfe} evaluations")
        return " · ".join(parts)


def rehomed_text(event: Resumed) -> str:
    """One line for a world that lost its replica and goes on at another."""
    pause = "" if event.pause_s is None else f" after {event.pause_s:.1f} s"
    identical = "" if event.bit_identical else "; another kind of machine, so frames may differ in the last bit"
    return f"its replica was lost: goes on at chunk {event.chunk_index} on {event.replica}{pause}{identical}"
