"""A package's graphs run as the engine runs them, on worlds of noise: what they promise, looked at bit by bit."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from worldtree_runtime.video_package import DiscreteActions, StoredVideo

from worldtree_video import noise
from worldtree_video.block_store import BlockStore
from worldtree_video.codec import Codec, to_uint8
from worldtree_video.domain import Origin, Storage
from worldtree_video.model import BATCH_CANDIDATES
from worldtree_video.sampler import next_sample
from worldtree_video.tools.findings import Verdict

Array = NDArray[np.float32]
Inputs = dict[str, NDArray[Any]]
Look = tuple[Verdict, str, str]

BATCHES = tuple(sorted({*BATCH_CANDIDATES, 3}))  # those that are served, and one that leaves a rest
CHUNKS = 16
_MEMBERS = max(BATCHES)
_SEED = 20260101


class DryRun:
    """One package's graphs over a small pool.

    Its blocks are those of one history, so that what the graphs see is what they wrote. `store`: with only one block,
    for `finite_in_one_block`.
    """

    def __init__(
        self,
        stored: StoredVideo,
        codec: Codec,
        origin: Origin | None,
        *,
        store: BlockStore | None = None,
    ) -> None:
        self._package = stored.package
        self._codec = codec
        self._random = np.random.default_rng(_SEED)
        window = self._package.kv.window
        self._bank = window + _MEMBERS  # blocks of history; the members' own come after them
        self._store = store or BlockStore(stored, Storage.FP32, block_count=self._bank + _MEMBERS)
        self._given = origin.chunks if origin else ()
        self._inputs: Inputs = {}
        if store is None:
            self._write_history()
            self._inputs = self._members()

    def denoise(self) -> Iterator[Look]:
        """Finite, the same in any batch, no member in another's way, and moved by what should move it."""
        whole = self._denoise(slice(None))
        if not np.isfinite(whole).all():
            yield Verdict.BAD, "x0", "must be finite"
            return
        yield Verdict.OK, "x0", "finite"
        yield self._same_in_any_batch("x0", whole, self._denoise)
        yield self._alone("x0", "x", whole, self._denoise)
        blocks = self._commit(slice(None))
        for what, other in (
            ("action", self._other_action()),
            ("history", {"table": np.roll(self._inputs["table"], 1, axis=0)}),
            ("noise", {"x": np.roll(self._inputs["x"], 1, axis=0)}),
        ):
            same = np.array_equal(self._denoise(slice(None), other), whole)
            if same and np.array_equal(self._commit(slice(None), other), blocks):
                yield Verdict.NOTE, what, "has no effect on what is made"

    def commit(self) -> Iterator[Look]:
        """Finite, the same in any batch, and only the slots that it was told."""
        whole = self._commit(slice(None))
        history = list(range(self._bank))
        before = self._read(history)
        self._commit(slice(None), {"x0": np.roll(self._inputs["x0"], 1, axis=0)})  # what was written is not there yet
        changed = (before != self._read(history)).any(axis=tuple(range(1, before.ndim)))
        if not np.isfinite(whole).all():
            yield Verdict.BAD, "pool_out", "must be finite"
            return
        yield Verdict.OK, "pool_out", "finite"
        if changed.any():
            yield Verdict.BAD, "pool_out", f"must be written only at `slot`; {changed.sum()} other blocks changed"
        else:
            yield Verdict.OK, "pool_out", "in place, and only the blocks of `slot` are written"
        yield self._same_in_any_batch("pool_out", whole, self._commit)
        yield self._alone("pool_out", "x0", whole, self._commit)

    def rollout(self) -> Iterator[Look]:
        """One world for a while, as a session's."""
        package = self._package
        blocks = [0]
        for chunk in range(CHUNKS):
            seen = blocks[-package.kv.window :]
            inputs = self._row(seen)
            x0 = np.zeros(package.sample_shape, np.float32)
            levels = package.sampler.schedules[package.sampler.default_nfe]
            x = noise.draw(_SEED, chunk, 0, package.sample_shape)
            for step, level in enumerate(levels):
                x0 = self._run_denoise({**inputs, "x": x[None], "t": np.array([level], np.float32)})[0]
                if step + 1 < len(levels):
                    fresh = noise.draw(_SEED, chunk, step + 1, package.sample_shape)
                    fresh_or_none = fresh if package.sampler.kind == "renoise" else None
                    x = next_sample(x, x0, level=level, following=levels[step + 1], fresh=fresh_or_none)
            frames = self._codec.decode(x0[None])
            if not np.isfinite(frames).all():
                yield Verdict.BAD, "rollout", f"must stay finite; chunk {chunk} of a world is not"
                return
            slot = 1 + chunk % (self._bank - 1)
            self._run_commit({**inputs, "x0": self._codec.encode(to_uint8(frames)), "slot": np.array([slot])})
            blocks = [block for block in blocks if block != slot] + [slot]
        yield Verdict.OK, "rollout", f"{CHUNKS} chunks at nfe {package.sampler.default_nfe} are finite"

    def codec_batches(self) -> Iterator[Look]:
        """The codec in any batch, and how much a picture loses on its way through the cache."""
        frames = np.stack([self._picture(place) for place in range(_MEMBERS)])

        def encode(rows: slice, _: Inputs | None = None) -> Array:
            return self._codec.encode(frames[rows])

        latents = encode(slice(None))

        def decode(rows: slice, _: Inputs | None = None) -> Array:
            return self._codec.decode(latents[rows])

        shown = decode(slice(None))
        if not (np.isfinite(latents).all() and np.isfinite(shown).all()):
            yield Verdict.BAD, "latents", "must be finite, and so must what is decoded from them"
            return
        yield self._same_in_any_batch("latents", latents, encode)
        yield self._same_in_any_batch("decoded frames", shown, decode)
        once = to_uint8(shown)
        again = to_uint8(self._codec.decode(self._codec.encode(once)))
        lost = np.abs(once.astype(np.int16) - again).mean()
        yield Verdict.OK, "round trip", f"a decoded picture, encoded and decoded again, moves by {lost:.2f} of 255"

    def finite_in_one_block(self) -> bool:
        """Whether a world's first chunk, committed to the store's only block, can be looked at again."""
        package = self._package
        x0 = self._codec.encode(self._picture(0)[None])
        self._run_commit({**self._row([]), "x0": x0, "slot": np.zeros(1, np.int64)})
        x = noise.draw(_SEED, 0, 0, package.sample_shape)[None]
        seen = self._run_denoise({**self._row([0]), "x": x, "t": np.ones(1, np.float32)})
        return bool(np.isfinite(seen).all())

    def _same_in_any_batch(self, field: str, whole: Array, run: Callable[[slice], Array]) -> Look:
        for size in BATCHES:
            for first in range(0, _MEMBERS, size):
                rows = slice(first, min(first + size, _MEMBERS))
                if not np.array_equal(run(rows), whole[rows]):
                    return (
                        Verdict.BAD,
                        field,
                        f"must be the same, bit for bit, in any batch; a batch of {rows.stop - rows.start} differs "
                        f"from one of {_MEMBERS} (see 'Batches' in docs/bring-your-own-model.md)",
                    )
        return Verdict.OK, field, f"bit-identical in batches of {', '.join(map(str, BATCHES))}"

    def _alone(self, field: str, spoiled: str, whole: Array, run: Callable[[slice, Inputs], Array]) -> Look:
        """A member whose input is not finite must not be seen in another's output."""
        inputs = self._inputs[spoiled].copy()
        inputs[1] = np.nan
        others = [place for place in range(_MEMBERS) if place != 1]
        if np.array_equal(run(slice(None), {spoiled: inputs})[others], whole[others]):
            return Verdict.OK, field, "a member of NaN spoils no other"
        return Verdict.BAD, field, "must not depend on the other members of a batch; one of NaN is seen in another"

    def _denoise(self, rows: slice, other: Inputs | None = None) -> Array:
        inputs = {**self._inputs, **(other or {})}
        names = [name for name in inputs if name not in ("x0", "slot")]
        return self._run_denoise({name: inputs[name][rows] for name in names})

    def _commit(self, rows: slice, other: Inputs | None = None) -> Array:
        inputs = {**self._inputs, **(other or {})}
        names = [name for name in inputs if name not in ("x", "t")]
        self._run_commit({name: inputs[name][rows] for name in names})
        return self._read([int(slot) for slot in inputs["slot"][rows]])

    def _run_denoise(self, inputs: Inputs) -> Array:
        table = inputs.pop("table")
        return self._store.run_denoise(inputs, table).copy()

    def _run_commit(self, inputs: Inputs) -> None:
        table = inputs.pop("table")
        pixels = np.zeros((len(table), *self._package.chunk_shape), np.uint8)
        self._store.run_commit(inputs, table, pixels)

    def _read(self, blocks: list[int]) -> Array:
        return np.stack([block.tensors["kv"] for block in self._store.read(blocks)])

    def _write_history(self) -> None:
        window = self._package.kv.window
        for block in range(self._bank):
            x0 = self._codec.encode(self._picture(block)[None])
            inputs = self._row(list(range(max(0, block - window), block)))
            self._run_commit({**inputs, "x0": x0, "slot": np.array([block], np.int64)})

    def _members(self) -> Inputs:
        """Members with histories of all lengths, each another stretch of the one that was written."""
        package, window = self._package, self._package.kv.window
        lengths = [round(place * window / (_MEMBERS - 1)) for place in range(_MEMBERS)]
        rows = [self._row(list(range(place, place + length))) for place, length in enumerate(lengths)]
        levels = sorted({level for schedule in package.sampler.schedules.values() for level in schedule})
        return {
            **{name: np.concatenate([row[name] for row in rows]) for name in rows[0]},
            "x": np.stack([noise.draw(_SEED, place, 0, package.sample_shape) for place in range(_MEMBERS)]),
            "t": np.array([levels[place % len(levels)] for place in range(_MEMBERS)], np.float32),
            "x0": self._codec.encode(np.stack([self._picture(place) for place in range(_MEMBERS)])),
            "slot": self._bank + np.arange(_MEMBERS),
        }

    def _row(self, context: list[int]) -> Inputs:
        """What both graphs are told of one member that sees these blocks."""
        package, window = self._package, self._package.kv.window
        table = np.full((1, window), self._store.blank, np.int64)
        table[0, : len(context)] = context
        mask = np.arange(window)[None] < len(context)
        inputs = {
            "action": self._action(given=not context),
            "position": np.array([len(context)], np.int64),
            "table": table,
            "key_mask": mask,
        }
        if package.cache_quality:
            made_with = self._random.choice([0, *package.sampler.schedules], (1, window))
            inputs["cache_quality"] = np.where(mask, made_with, 0).astype(np.float32)
        return inputs

    def _action(self, *, given: bool) -> NDArray[Any]:
        space = self._package.action
        if isinstance(space, DiscreteActions):
            none = len(space.names)
            return np.array([none if given else self._random.integers(none)], np.int64)
        if given:
            return np.zeros((1, space.size), np.float32)
        return self._random.uniform(space.low, space.high, (1, space.size)).astype(np.float32)

    def _other_action(self) -> Inputs:
        space, action = self._package.action, self._inputs["action"]
        if isinstance(space, DiscreteActions):
            return {"action": (action + 1) % len(space.names)}
        other = (np.float32(space.low + space.high) - action) * np.float32(0.5)
        return {"action": np.clip(other, space.low, space.high).astype(np.float32)}

    def _picture(self, place: int) -> NDArray[np.uint8]:
        """A chunk of the start, where there is one; else of noise."""
        shape = self._package.chunk_shape
        if place < len(self._given):
            return np.frombuffer(self._given[place], np.uint8).reshape(shape)
        return np.random.default_rng((_SEED, place)).integers(0, 256, shape, np.uint8)
