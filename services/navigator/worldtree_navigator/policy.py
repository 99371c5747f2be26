"""A policy's graphs on ONNX Runtime: images to tiles, drafts a round nearer to their ends, tiles to images."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from worldtree_runtime.inference import TensorSpec, check_signature, open_session
from worldtree_runtime.model_package import PackageError
from worldtree_runtime.policy_package import PlannerSpec, StoredPolicy

from worldtree_navigator.memory import Ground, Memory, Tiles

_Ints = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float32]


class Draft:
    """A chunk of actions and the frames after them, masked where they are not decided yet.

    Each round decides what the graph is surest of, until the last decides the rest (confidence-ordered unmasking, as in
    Chang et al., "MaskGIT: Masked Generative Image Transformer").
    """

    def __init__(
        self,
        policy: "Policy",
        view: Tiles,
        memory: Memory,
        words: _Ints,
        *,
        planner: PlannerSpec,
        executing: Sequence[int] = (),
        rounds: int | None = None,
        seed: tuple[int, ...] = (0,),
    ) -> None:
        """`view`: tiles [side * side] of what is seen now, and remembered in `memory`. `executing`: actions that come
        first whatever is planned, fewer than the horizon. `rounds`: the planner's where None. `seed`: of
        what is drawn.
        """
        package = policy.package
        self.view = view
        self.around = memory.around(package.remembered).reshape(-1) if package.remembered else None
        self.words = words
        self.context: _Floats | None = None  # what the graph found in the three, from the first round to the last
        self.actions: _Ints = np.full(package.horizon, policy.action_mask, np.int64)
        self.actions[: len(executing)] = executing
        self.frames: _Ints = np.full((package.horizon, package.ground.side**2), policy.cell_mask, np.int64)
        self.fixed = len(executing)
        self.chances = np.ones(package.horizon, np.float32)  # of each action, when it was decided
        self.rounds = rounds or planner.rounds
        self.rounds_done = 0
        self._temperature, self._rng = planner.temperature, np.random.default_rng(seed)
        self._frames_first = planner.order == "frames-first"
        self._policy = policy

    @property
    def is_done(self) -> bool:
        return self.rounds_done >= self.rounds

    @property
    def is_broken(self) -> bool:
        """Whether the graph answered with what is no number."""
        return not bool(np.isfinite(self.chances).all())

    def confidence(self, count: int) -> float:
        """The geometric mean of the probabilities of the first `count` actions that were decided, 0 to 1."""
        decided = self.chances[self.fixed : self.fixed + count]
        return float(np.exp(np.log(np.maximum(decided, 1e-9)).mean()))

    def decide(self, action_logits: _Floats, frame_logits: _Floats | None) -> None:
        """One round: logits [horizon, actions] and [horizon, cells, tiles]."""
        self.rounds_done += 1
        if self.is_done:
            self.context = None
        if not (np.isfinite(action_logits).all() and (frame_logits is None or np.isfinite(frame_logits).all())):
            self.chances[:] = np.nan  # broken as a whole: nothing of it may be executed
            return
        share = self.rounds_done / self.rounds
        if self._frames_first and self.rounds > 1:
            frames_share, actions_share = min(1.0, self.rounds_done / (self.rounds - 1)), float(self.is_done)
        else:
            frames_share = actions_share = share
        self._decide_actions(action_logits, actions_share)
        if frame_logits is not None:
            self._decide_frames(frame_logits, frames_share)

    def _decide_actions(self, logits: _Floats, share: float) -> None:
        masked = self.actions == self._policy.action_mask
        count = math.ceil(share * (len(self.actions) - self.fixed)) - (len(self.actions) - self.fixed - masked.sum())
        if count <= 0:
            return
        chances = _softmax(logits)
        best = self._drawn(logits)
        surest = np.take_along_axis(chances, best[:, None], -1)[:, 0]
        chosen = np.argsort(np.where(masked, -surest, np.inf), kind="stable")[:count]
        self.actions[chosen] = best[chosen]
        self.chances[chosen] = surest[chosen]

    def _drawn(self, logits: _Floats) -> _Ints:
        """An action for each place, by Gumbel's trick: the likeliest after noise."""
        noise = self._temperature * self._rng.gumbel(size=logits.shape) if self._temperature else 0.0
        found: _Ints = (logits + noise).argmax(-1)
        return found

    def _decide_frames(self, logits: _Floats, share: float) -> None:
        """By patch: as surely as the mean over its cells."""
        patch_of_cell = self._policy.patch_of_cell
        patches = self._policy.cells_of_patch.shape[1]
        masked = self.frames == self._policy.cell_mask
        highest = logits.max(-1)
        # log-probability of the best tile of each cell
        sure = -np.log(np.exp(logits - highest[..., None]).sum(-1))
        summed = sure @ self._policy.cells_of_patch
        waiting = np.zeros_like(summed, dtype=bool)
        waiting[:, patch_of_cell] = masked
        mean = summed / np.bincount(patch_of_cell, minlength=patches)
        total = len(self.frames) * patches
        count = math.ceil(share * total) - (total - int(waiting.sum()))
        if count <= 0:
            return
        chosen = np.zeros(total, bool)
        chosen[np.argsort(np.where(waiting, -mean, np.inf), axis=None, kind="stable")[:count]] = True
        decided = chosen.reshape(waiting.shape)[:, patch_of_cell] & masked
        self.frames[decided] = logits.argmax(-1)[decided]


class Policy:
    """One package. `step` is for one thread; everything else for any."""

    def __init__(self, stored: StoredPolicy, *, device: str = "cpu", threads: int = 1) -> None:
        """Raises PackageError when a file is not what `model.yaml` says, or answers with what is no number."""
        self.package = package = stored.package
        ground = package.ground
        names = package.actions
        self.ground = Ground(
            side=ground.side,
            unseen=ground.unseen,
            floor=ground.floor,
            enterable=ground.enterable,
            left=names.index(ground.left),
            right=names.index(ground.right),
            forward=names.index(ground.forward),
        )
        self.action_mask, self.cell_mask = len(names), package.tile_count
        side = ground.side
        row, column = np.divmod(np.arange(side * side), side)
        self.patch_of_cell = row // package.patch * math.ceil(side / package.patch) + column // package.patch
        self.cells_of_patch = np.eye(int(self.patch_of_cell.max()) + 1, dtype=np.float32)[self.patch_of_cell]
        self._tiles = self._read_tiles(stored)
        self._book = self._tiles.reshape(package.tile_count, -1).astype(np.float32)
        self._lengths = 0.5 * np.square(self._book).sum(1)
        self._context, self._denoise = self._open(stored, device, threads)
        self._outputs = ["action_logits", "frame_logits"][: 1 + package.imagines]
        self._check(stored)

    def memory(self) -> Memory:
        """Of a walker that has seen nothing."""
        side = self.package.ground.side
        return Memory(self.ground, 2 * max(self.package.remembered, 2 * side - 1) + 1)

    def read(self, image: bytes) -> tuple[Tiles, float]:
        """An image [height, width, 3] as tiles [side * side], and how far the farthest cell is from its tile: the mean
        absolute difference, 0 to 255.
        """
        size, side = self.package.image, self.package.ground.side
        pixels = np.frombuffer(image, np.uint8).reshape(side, size.height_px // side, side, size.width_px // side, 3)
        cells = pixels.transpose(0, 2, 1, 3, 4).reshape(side * side, -1).astype(np.float32)
        ids = (cells @ self._book.T - self._lengths).argmax(1)
        return ids.astype(np.uint8), float(np.abs(cells - self._book[ids]).mean(1).max())

    def draw(self, frames: npt.NDArray[np.integer[Any]]) -> bytes:
        """Tiles [n, side * side] as images uint8 [n, height, width, 3] in C order."""
        side, size = self.package.ground.side, self.package.image
        cells = self._tiles[frames.reshape(-1, side, side)]
        images: bytes = cells.transpose(0, 1, 3, 2, 4, 5).reshape(-1, size.height_px, size.width_px, 3).tobytes()
        return images

    def words(self, goal: Sequence[str]) -> _Ints:
        """Ids [max_words] of words that are all known."""
        spec = self.package.goal
        ids = [spec.words.index(word) + 1 for word in goal]
        return np.array(ids + [0] * (spec.max_words - len(ids)), np.int64)

    def step(self, drafts: Sequence[Draft]) -> None:
        """One round of each. What is known is looked at in the first."""
        if fresh := [draft for draft in drafts if draft.context is None]:
            self._look(fresh)
        feed: dict[str, npt.NDArray[Any]] = {
            "context": np.stack([draft.context for draft in drafts if draft.context is not None]),
            "actions": np.stack([draft.actions for draft in drafts]),
        }
        if self.package.imagines:
            feed["frames"] = np.stack([draft.frames for draft in drafts])
        decided, *imagined = self._denoise.run(self._outputs, feed)
        for index, draft in enumerate(drafts):
            draft.decide(decided[index], imagined[0][index] if imagined else None)

    def _look(self, drafts: Sequence[Draft]) -> None:
        feed = {
            "view": np.stack([draft.view for draft in drafts]).astype(np.int64),
            "words": np.stack([draft.words for draft in drafts]),
        }
        if self.package.remembered:
            feed["around"] = np.stack([draft.around for draft in drafts if draft.around is not None]).astype(np.int64)
        (found,) = self._context.run(["context"], feed)
        for draft, own in zip(drafts, found, strict=True):
            draft.context = own.copy()  # its own: a view would keep those of all others

    def _read_tiles(self, stored: StoredPolicy) -> npt.NDArray[np.uint8]:
        package, path = self.package, stored.folder / self.package.files.tiles
        side = package.ground.side
        shape = (package.tile_count, package.image.height_px // side, package.image.width_px // side, 3)
        try:
            found = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise PackageError(path, "files.tiles", f"must be a .npy file: {error}") from error
        if not isinstance(found, np.ndarray) or found.dtype != np.uint8 or found.shape != shape:
            is_array = isinstance(found, np.ndarray)
            told = f"{found.dtype} {list(found.shape)}" if is_array else type(found).__name__
            raise PackageError(path, "files.tiles", f"must be uint8 {list(shape)}, got {told}")
        return found

    def _open(self, stored: StoredPolicy, device: str, threads: int) -> tuple[Any, Any]:
        package, files, cells = self.package, self.package.files, self.package.ground.side**2
        context_path, denoise_path = stored.folder / files.context, stored.folder / files.denoise
        known = [
            TensorSpec("view", "int64", (None, cells)),
            TensorSpec("words", "int64", (None, package.goal.max_words)),
        ]
        if package.remembered:
            known.append(TensorSpec("around", "int64", (None, package.remembered**2)))
        context = open_session(context_path, device=device, threads=threads)
        # Its extents are the policy's own affair, but one graph must take what the other gives.
        extents = tuple(
            extent if isinstance(extent, int) else None for node in context.get_outputs()[:1] for extent in node.shape
        )
        found = TensorSpec("context", "float", extents)
        check_signature(context_path, context, known, [found])
        future = [found, TensorSpec("actions", "int64", (None, package.horizon))]
        outputs = [TensorSpec("action_logits", "float", (None, package.horizon, len(package.actions)))]
        if package.imagines:
            future.append(TensorSpec("frames", "int64", (None, package.horizon, cells)))
            outputs.append(TensorSpec("frame_logits", "float", (None, package.horizon, cells, package.tile_count)))
        denoise = open_session(denoise_path, device=device, threads=threads)
        check_signature(denoise_path, denoise, future, outputs)
        return context, denoise

    def _check(self, stored: StoredPolicy) -> None:
        """That drafts of each planner end with numbers. Some at once: the batch is no constant of the graphs."""
        view = np.full(self.package.ground.side**2, self.ground.unseen, np.uint8)
        planners = [*self.package.planners, self.package.planners[0]]
        drafts = [Draft(self, view, self.memory(), self.words(()), planner=each) for each in planners]
        path = stored.folder / self.package.files.context
        try:
            self._look(drafts)
            path = stored.folder / self.package.files.denoise
            while going := [draft for draft in drafts if not (draft.is_done or draft.is_broken)]:
                self.step(going)
        except Exception as error:  # ORT raises one class per failure, with no common base but Exception
            raise PackageError(path, "graph", f"cannot be run: {error}") from error
        if any(draft.is_broken for draft in drafts):
            raise PackageError(path, "graph", "must answer with finite numbers")


def _softmax(logits: _Floats) -> _Floats:
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    found: _Floats = weights / weights.sum(-1, keepdims=True)
    return found
