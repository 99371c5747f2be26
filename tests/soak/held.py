"""A world that a walker holds, and all that it has been told of it."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import worldtree
from worldtree.types import Frames

LATE_S = 1.0  # a lease may seem to end so much earlier or later than this clock says


class SurpriseError(Exception):
    """The server did what it must not."""


class Told(NamedTuple):
    """One chunk as the server gave it."""

    action: Any
    digest: bytes


def digest_of(frames: Frames) -> bytes:
    """Short, so that a walker's memory stays small; equal for equal pixels."""
    return hashlib.blake2b(frames.tobytes(), digest_size=12).digest()


@dataclass(frozen=True)
class Recipe:
    """What a world was made from. `origin`: the arguments of Client.world that say where it begins."""

    origin: dict[str, Any]
    seed: int
    nfe: int
    kv: dict[str, Any]
    poisoned: bool = False  # its first frames are ones that this model makes a block of NaN from

    @property
    def for_generate(self) -> dict[str, Any]:
        origin = {("frame_actions" if name == "actions" else name): value for name, value in self.origin.items()}
        return {**origin, "seed": self.seed, "nfe": self.nfe, "kv": self.kv}


@dataclass(eq=False)
class Held:
    """`history` is None where it cannot be known: the world is another walker's too, or was found by its id.

    After a call whose end was not seen the world is `unsettled`: it may stand further on than its history.
    """

    world: worldtree.World
    recipe: Recipe
    ttl_s: float
    start_digest: bytes
    history: list[Told] | None = None
    unsettled: bool = False
    touched_s: float = field(default_factory=time.monotonic)
    reach_chunks: int = 0  # how much further it may stand at most

    @property
    def shared(self) -> bool:
        """Whether other walkers may move and delete it: those with an odd seed."""
        return self.world.seed % 2 == 1

    def child(self, world: worldtree.World, ttl_s: float, *, same_seed: bool = True) -> "Held":
        """A fork, or what was restored: it has been told the same."""
        known = self.history if same_seed and world.seed % 2 == 0 else None
        return Held(world, self.recipe, ttl_s, self.start_digest, None if known is None else list(known))

    def may_be_gone(self) -> bool:
        return self.shared or time.monotonic() - self.touched_s > self.ttl_s - LATE_S

    def tell(self, actions: Sequence[Any], frames: Frames) -> None:
        """New chunks, one frame each."""
        if len(frames) != len(actions):
            raise SurpriseError(f"{len(actions)} actions gave {len(frames)} frames")
        if self.history is None:
            return
        self.history += [Told(action, digest_of(frame)) for action, frame in zip(actions, frames, strict=True)]
        self.check_standing()

    def rewound(self, chunk_index: int) -> None:
        """It went back."""
        if self.history is None:
            return
        if not 0 <= chunk_index <= len(self.history):
            raise SurpriseError(f"a rewind led to chunk {chunk_index} of {len(self.history)}")
        del self.history[chunk_index:]
        self.check_standing()

    def check_standing(self) -> None:
        """The world stands where its history ends, at the frame that was shown there."""
        if self.history is None:
            return
        if self.world.chunk_index != len(self.history):
            raise SurpriseError(
                f"the world stands at chunk {self.world.chunk_index}, its history at {len(self.history)}"
            )
        expected = self.history[-1].digest if self.history else self.start_digest
        if digest_of(self.world.last_frame) != expected:
            raise SurpriseError(f"chunk {self.world.chunk_index} shows another frame than it did when it was made")

    def settle(self) -> None:
        """After a call that was broken off: goes back to where the history ends."""
        if not self.unsettled:
            return
        ends_s = time.monotonic() + 10.0
        while self.world.refresh().state == "busy":
            if time.monotonic() > ends_s:
                raise SurpriseError("a call that was broken off held its world for 10 s")
            time.sleep(0.01)
        if self.history is not None:
            further = self.world.chunk_index - len(self.history)
            if not 0 <= further <= self.reach_chunks:
                raise SurpriseError(f"a call that could make {self.reach_chunks} chunks at most went {further} further")
            if further:
                self.world.rewind(further)
            self.check_standing()
        self.unsettled = False
        self.reach_chunks = 0

    def leave_unsettled(self, reach_chunks: int) -> None:
        """The end of a call was not seen."""
        self.unsettled = True
        self.reach_chunks += reach_chunks
