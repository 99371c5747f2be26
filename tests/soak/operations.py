"""What a walker does: each operation with its weight, and the refusals that are right for it."""

import queue
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import worldtree
from held import Held, Recipe, SurpriseError, digest_of
from worldtree.types import Frames

ACTIONS = ("left", "right", "stay")
POISON = "poison"
MAX_CHUNKS = 40  # a world that stands further on is taken back or left
LONG_TTL_S = 25.0
SHORT_TTLS_S = (1.0, 2.0, 3.0)
NO_ROOM = frozenset({"KV_CACHE_FULL", "SESSION_LIMIT", "QUEUE_FULL"})
NO_ROOM_WAIT_S = 0.03  # at most: short, so that the server is kept busy refusing
OF_OTHERS = frozenset({"SESSION_BUSY", "SESSION_CLOSED", "SESSION_NOT_FOUND", "CHUNK_INDEX_MISMATCH"})


class RefusedError(Exception):
    """The server refused what it may refuse; the operation is over."""


class BrokenOffError(Exception):
    """The walker has had enough of a stream."""


@dataclass(frozen=True)
class Offer:
    """What the server is asked for."""

    model: str
    storages: tuple[str, ...]
    kinds: tuple[str, ...]
    most_worlds: int


class Operations:
    """The worlds of one walker and what it does with them. `reference`: a server that makes everything anew."""

    def __init__(
        self, client: worldtree.Client, reference: worldtree.Client, offer: Offer, chance: random.Random
    ) -> None:
        self.client = client
        self.reference = reference
        self.offer = offer
        self.chance = chance
        self.held: list[Held] = []
        self.refused: dict[str, int] = {}
        self.checked_chunks = 0
        self._rewinding = False  # a play was told to go back and has not said yet that it did
        self.weights: dict[Callable[[], None], int] = {
            self.create: 10,
            self.create_poisoned: 1,
            self.step: 30,
            self.step_cut_short: 4,
            self.step_into_poison: 3,
            self.play: 6,
            self.play_in_time: 4,
            self.play_steered: 5,
            self.play_left: 4,
            self.fork: 6,
            self.rewind: 10,
            self.save_and_restore: 5,
            self.rollout: 5,
            self.rollout_left: 3,
            self.generate: 3,
            self.generate_left: 3,
            self.keep_alive: 4,
            self.look: 6,
            self.list_all: 2,
            self.delete: 4,
            self.meddle: 6,
            self.verify: 6,
        }

    def choose(self) -> Callable[[], None]:
        """The next operation."""
        if not self.held:
            return self.create
        if len(self.held) >= self.offer.most_worlds:
            return self.delete
        return self.chance.choices(list(self.weights), list(self.weights.values()))[0]

    # Worlds come and go

    def create(self) -> None:
        recipe = Recipe(self._origin(), self.chance.randrange(1000), self.chance.choice((0, 1, 2)), self._kv())
        self._create(recipe)

    def create_poisoned(self) -> None:
        white = np.full((1, 4, 6, 3), 255, np.uint8)
        self._create(Recipe({"frames": white}, self.chance.randrange(1000), 1, self._kv(), poisoned=True))

    def fork(self) -> None:
        with self._one() as held:
            count, ttl_s = self.chance.randint(1, 8), self._ttl_s()
            seeds = [self.chance.randrange(1000) for _ in range(count)] if self.chance.random() < 0.3 else None
            children = held.world.fork(count, seeds=seeds, ttl=ttl_s)
            for child in children:
                kept = held.child(child, ttl_s, same_seed=seeds is None)
                kept.check_standing()
                self.held.append(kept)
        while len(self.held) > self.offer.most_worlds:
            self.delete()

    def save_and_restore(self) -> None:
        with self._one() as held:
            as_bytes, ttl_s = self.chance.random() < 0.5, self._ttl_s()
            snapshot = held.world.save(include_data=as_bytes)
            restored = self.client.restore(snapshot.to_bytes() if as_bytes else snapshot, ttl=ttl_s)
            kept = held.child(restored, ttl_s)
            kept.check_standing()
            self.held.append(kept)

    def delete(self) -> None:
        held = self.chance.choice(self.held)
        self.held.remove(held)
        with self._allowing(held):
            held.world.close()

    # Worlds move

    def step(self) -> None:
        with self._one() as held:
            actions = self._actions(8)
            held.tell(actions, held.world.step(actions if len(actions) > 1 else actions[0]))

    def step_cut_short(self) -> None:
        with self._one("DEADLINE_EXCEEDED") as held:
            actions = self._actions(8)
            try:
                frames = held.world.step(actions, timeout=self.chance.uniform(0.0005, 0.02))
            except worldtree.DeadlineExceeded:
                held.leave_unsettled(len(actions))
                raise
            held.tell(actions, frames)

    def step_into_poison(self) -> None:
        with self._one("MODEL_OUTPUT_NOT_FINITE") as held:
            held.world.step([*self._actions(2), POISON])
            raise SurpriseError("a chunk that the model gives no finite frames for was made")

    def rewind(self) -> None:
        with self._one() as held:
            if held.world.chunk_index:
                held.world.rewind(self.chance.randint(1, held.world.chunk_index))
            else:
                held.world.refresh()
            held.rewound(held.world.chunk_index)

    def play(self) -> None:
        self._play(self._actions(12), fps=0.0)

    def play_in_time(self) -> None:
        self._play(self._actions(12), fps=20.0)

    def play_left(self) -> None:
        self._play(self._actions(12), fps=self.chance.choice((0.0, 20.0)), most=self.chance.randint(0, 4))

    def play_steered(self) -> None:
        """Says something after each chunk, one thing at a time."""
        controls = worldtree.LiveActions()
        controls.put(self._actions(3))
        self._play(controls, fps=self.chance.choice((0.0, 20.0)), steered=True)

    # Futures and clips

    def rollout(self) -> None:
        with self._one() as held:
            sequences = [self._actions(5) for _ in range(self.chance.randint(1, 6))]
            futures = held.world.rollout(sequences)
            if held.history is not None:
                held.check_standing()
                one = self.chance.randrange(len(sequences))
                self._compare(held, held.history, sequences[one], futures[one].frames)

    def rollout_left(self) -> None:
        with self._one() as held, suppress(BrokenOffError):
            sequences = [self._actions(5) for _ in range(self.chance.randint(2, 12))]
            held.world.rollout(sequences, progress=self._leave_at(self.chance.randint(1, 6)))

    def generate(self) -> None:
        recipe = Recipe(self._origin(), 2 * self.chance.randrange(500), self.chance.choice((1, 2)), self._kv())
        actions = self._actions(4 if recipe.kv.get("kind") == "full" else 10)
        with self._allowing(None, "KV_WINDOW_FULL"):
            clip = self.client.generate(self.offer.model, actions=actions, **recipe.for_generate)
            other = self.reference.generate(self.offer.model, actions=actions, **recipe.for_generate)
            if not np.array_equal(clip.frames, other.frames):
                raise SurpriseError(f"Generate of {recipe} with {actions} gave other frames than the reference")
            self.checked_chunks += len(actions)

    def generate_left(self) -> None:
        recipe = Recipe(self._origin(), self.chance.randrange(1000), self.chance.choice((1, 2)), self._kv())
        with self._allowing(None, "KV_WINDOW_FULL"), suppress(BrokenOffError):
            self.client.generate(
                self.offer.model,
                actions=self._actions(12),
                progress=self._leave_at(self.chance.randint(1, 4)),
                **recipe.for_generate,
            )

    # Looks

    def keep_alive(self) -> None:
        with self._one() as held:
            ttl_s = self._ttl_s()
            held.world.keep_alive(ttl=ttl_s)
            held.ttl_s = ttl_s

    def look(self) -> None:
        with self._one() as held:
            held.world.refresh()
            held.check_standing()

    def list_all(self) -> None:
        with self._allowing(None):
            known = {info.id for info in self.client.sessions()}
            for held in self.held:
                if held.world.id not in known and not held.may_be_gone():
                    raise SurpriseError(f"session {held.world.id} is not in the list")

    def verify(self) -> None:
        """The whole history again, at the reference: the same frames, whatever happened to the session meanwhile."""
        known = [held for held in self.held if held.history]
        if known:
            with self._one(among=known) as held:
                held.world.refresh()
                if held.history is not None:
                    self._compare(held, held.history, [], None)

    def meddle(self) -> None:
        """Uses a session that another walker made: those with an even seed are not moved."""
        with self._allowing(None, *OF_OTHERS, "KV_WINDOW_FULL", "MODEL_OUTPUT_NOT_FINITE", "OUT_OF_RANGE"):
            mine = {held.world.id for held in self.held}
            others = [info for info in self.client.sessions() if info.id not in mine]
            if not others:
                return
            info = self.chance.choice(others)
            world = self.client.session(info.id)
            deeds: list[Callable[[], Any]] = [
                lambda: world.rollout([self._actions(3)], detail="none"),
                lambda: world.save(),
                lambda: world.fork(ttl=self.chance.choice(SHORT_TTLS_S)),
            ]
            if info.seed % 2:
                deeds += [
                    lambda: world.step(self._actions(3)),
                    lambda: world.rewind(max(1, min(world.chunk_index, 3))) if world.chunk_index else None,
                    lambda: list(zip(range(3), world.play(self._actions(4), fps=0.0, degrade="nfe"), strict=False)),
                    world.close,
                ]
            self.chance.choice(deeds)()

    # How

    def _create(self, recipe: Recipe) -> None:
        ttl_s = self._ttl_s()
        expected = ("MODEL_OUTPUT_NOT_FINITE",) if recipe.poisoned else ()
        with self._allowing(None, *expected):
            world = self.client.world(
                self.offer.model, **recipe.origin, seed=recipe.seed, nfe=recipe.nfe, kv=recipe.kv, ttl=ttl_s
            )
            history: list[Any] | None = [] if recipe.seed % 2 == 0 else None
            self.held.append(Held(world, recipe, ttl_s, digest_of(world.last_frame), history))

    def _play(self, actions: Any, *, fps: float, most: int | None = None, steered: bool = False) -> None:
        with self._one("FPS_UNAVAILABLE") as held:
            lookahead = self.chance.randint(1, 4)
            happened: queue.SimpleQueue[Any] = queue.SimpleQueue()
            play = held.world.play(actions, fps=fps, lookahead=lookahead, on_event=happened.put)
            held.leave_unsettled(len(actions) if isinstance(actions, list) else 60)
            try:
                with play, suppress(BrokenOffError):
                    if most == 0:
                        raise BrokenOffError
                    for count, chunk in enumerate(play, 1):
                        self._heed(held, happened)
                        held.tell(chunk.actions, chunk.frames)
                        if count == most:
                            raise BrokenOffError
                        steered = steered and self._steer(held, actions, count)
                    held.unsettled, held.reach_chunks = False, 0  # it has ended by itself
                self._heed(held, happened)
            finally:
                if self._rewinding:
                    # Nobody can say whether it went back, and what it made from there.
                    self._rewinding, held.history = False, None
            held.check_standing()

    def _heed(self, held: Held, happened: "queue.SimpleQueue[Any]") -> None:
        """Events lie between the chunks, in order."""
        while not happened.empty():
            event = happened.get()
            if isinstance(event, worldtree.Rewound):
                self._rewinding = False
                if held.history is None:
                    continue
                # The world has seen the next chunk already, which is not told yet.
                if not 0 <= event.chunk_index <= len(held.history):
                    raise SurpriseError(f"a play at {len(held.history)} chunks went back to {event.chunk_index}")
                del held.history[event.chunk_index :]
                expected = held.history[-1].digest if held.history else held.start_digest
                if digest_of(event.last_frame) != expected:
                    raise SurpriseError(f"a play went back to chunk {event.chunk_index}, which shows another frame")
            elif isinstance(event, worldtree.Forked):
                for world in event.worlds:
                    kept = held.child(world, held.ttl_s)
                    kept.check_standing()
                    self.held.append(kept)

    def _steer(self, held: Held, controls: worldtree.LiveActions, count: int) -> bool:
        """One control after chunk number `count`; False when it was the last. May leave the play without a word."""
        deed = self.chance.randrange(7) if count <= 12 else 0
        if deed == 0:
            controls.close()
            return False
        if deed == 1:
            # What has been seen has been made, so there is so much to take back.
            self._rewinding = True
            controls.rewind(self.chance.randint(1, max(1, min(held.world.chunk_index, 6))))
        elif deed == 2:
            controls.fork(self.chance.randint(1, 3))
        elif deed == 3:
            controls.stop()
        elif deed == 4:
            controls.replace(self._actions(3))
        elif deed == 5:
            controls.pause()
            time.sleep(self.chance.uniform(0, 0.02))
            controls.resume()
        elif self.chance.random() < 0.3:
            raise BrokenOffError
        if deed != 3:
            controls.put(self._actions(3))
        if deed in (1, 2, 3):
            controls.close()
            return False
        return True

    def _compare(self, held: Held, told: list[Any], more: list[str], frames: Frames | None) -> None:
        actions = [*(chunk.action for chunk in told), *more]
        if not actions:
            return
        clip = self.reference.generate(self.offer.model, actions=actions, **held.recipe.for_generate)
        expected = [digest_of(frame) for frame in clip.frames]
        got = [chunk.digest for chunk in told] + [digest_of(frame) for frame in ([] if frames is None else frames)]
        if expected != got:
            wrong = next(index for index, pair in enumerate(zip(expected, got, strict=True)) if pair[0] != pair[1])
            raise SurpriseError(
                f"chunk {wrong} of {len(actions)} ({len(told)} told) is another at the reference: "
                f"{held.recipe} with {actions}"
            )
        self.checked_chunks += len(actions)

    @contextmanager
    def _one(self, *reasons: str, among: list[Held] | None = None) -> Iterator[Held]:
        """A world to use, standing where its history ends; it is dropped when it has gone rightly."""
        held = self.chance.choice(among or self.held)
        if held.recipe.poisoned:
            reasons += ("MODEL_OUTPUT_NOT_FINITE", "SNAPSHOT_CORRUPT")  # a snapshot of NaN is refused
        if held.recipe.kv.get("kind") == "full":
            reasons += ("KV_WINDOW_FULL",)
        begun_s = time.monotonic()  # its lease is renewed after this, if at all
        with self._allowing(held, *reasons):
            held.settle()
            if held.world.chunk_index > MAX_CHUNKS:
                held.world.rewind(held.world.chunk_index)
                held.rewound(0)
            yield held
            held.touched_s = begun_s

    @contextmanager
    def _allowing(self, held: Held | None, *reasons: str) -> Iterator[None]:
        """Counts the refusals that may come; whatever else is raised ends the soak."""
        try:
            yield
        except worldtree.WorldtreeError as error:
            allowed = NO_ROOM.union(reasons, OF_OTHERS if held and held.shared else ())
            if held and held.may_be_gone():
                allowed |= {"SESSION_NOT_FOUND"}
            if error.reason not in allowed:
                raise
            self.refused[error.reason] = self.refused.get(error.reason, 0) + 1
            if held in self.held and error.reason in ("SESSION_NOT_FOUND", "SESSION_CLOSED"):
                self.held.remove(held)
            if held and error.reason == "CHUNK_INDEX_MISMATCH":
                held.leave_unsettled(0)  # another walker moved it
            if error.reason in NO_ROOM:
                time.sleep(self.chance.uniform(0, NO_ROOM_WAIT_S))
            raise RefusedError from error

    def _leave_at(self, count: int) -> Callable[[int, int], None]:
        def progress(done: int, total: int) -> None:
            if done >= count:
                raise BrokenOffError

        return progress

    def _actions(self, most: int) -> list[str]:
        return [self.chance.choice(ACTIONS) for _ in range(self.chance.randint(1, most))]

    def _ttl_s(self) -> float:
        return self.chance.choice(SHORT_TTLS_S) if self.chance.random() < 0.15 else LONG_TTL_S

    def _origin(self) -> dict[str, Any]:
        if self.chance.random() < 0.8:
            return {"start": self.chance.choice(("dawn", "dusk"))}
        count = self.chance.randint(1, 3)
        frames = np.frombuffer(self.chance.randbytes(count * 4 * 6 * 3), np.uint8).reshape(count, 4, 6, 3)
        between = [self.chance.choice(ACTIONS) for _ in range(count - 1)]
        return {"frames": frames, **({"actions": between} if between else {})}

    def _kv(self) -> dict[str, Any]:
        kind = self.chance.choice(self.offer.kinds)
        kv: dict[str, Any] = {"kind": kind, "storage": self.chance.choice(self.offer.storages)}
        if kind == "sink_window":
            kv["sink"] = self.chance.choice((0, 1, 2))
        elif kind == "retrieve":
            kv |= {"recent": self.chance.choice((1, 2)), "bank": self.chance.choice((2, 6))}
        elif kind == "sliding":
            kv["window"] = self.chance.choice((2, 4))
        return kv
