"""First chunks drawn from words alone."""

import asyncio
from collections.abc import Sequence

import numpy as np
from worldtree_runtime.inference import TensorSpec, check_signature, open_session
from worldtree_runtime.video_package import PromptSpec, StoredVideo

from worldtree_video import noise
from worldtree_video.codec import Codec, to_uint8
from worldtree_video.errors import SceneNotFinite, ScenesBusy
from worldtree_video.sampler import next_sample

# The noise of a scene is that of the chunk before the first, which no history generates.
_CHUNK = 2**64 - 1


class SceneModel:
    """A package's `scene` graph. What it draws becomes the start of a world, as if a client had brought it."""

    def __init__(
        self,
        stored: StoredVideo,
        prompt: PromptSpec,
        codec: Codec,
        *,
        device: str = "cpu",
        threads: int = 1,
        waiting_max: int = 64,
    ) -> None:
        self.spec = prompt
        self._package = stored.package
        self._codec = codec
        path = stored.folder / stored.package.files.named()["scene"]
        self._graph = open_session(path, device=device, threads=threads)
        sample = (None, *stored.package.sample_shape)
        check_signature(
            path,
            self._graph,
            [
                TensorSpec("x", "float", sample),
                TensorSpec("t", "float", (None,)),
                TensorSpec("tokens", "int64", (None, prompt.tokens)),
            ],
            [TensorSpec("x0", "float", sample)],
        )
        # One at a time: a crowd of new worlds shall not take the processor from those that are played.
        self._turn = asyncio.Semaphore(1)
        self._waiting_count, self._waiting_max = 0, waiting_max

    async def draw(self, tokens: Sequence[int], seed: int) -> bytes:
        """The first chunk of a world, uint8 [frames_per_chunk, height, width, 3] in C order: the same for the same
        words and seed. Raises ScenesBusy, SceneNotFinite.
        """
        if self._waiting_count >= self._waiting_max:
            raise ScenesBusy(self._waiting_count, self._waiting_max)
        self._waiting_count += 1
        try:
            await self._turn.acquire()
        finally:
            self._waiting_count -= 1
        drawing = asyncio.get_running_loop().run_in_executor(None, self._draw, tokens, seed)
        drawing.add_done_callback(self._drawn)
        return await asyncio.shield(drawing)  # a thread cannot be cancelled: who leaves does not end its turn

    def _drawn(self, drawing: "asyncio.Future[bytes]") -> None:
        self._turn.release()
        drawing.exception()  # it is known, also where nobody waits for it any more

    def _draw(self, tokens: Sequence[int], seed: int) -> bytes:
        package, levels = self._package, self.spec.schedule
        words = np.array([tokens], np.int64)

        def fresh(step: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
            return noise.draw(seed, _CHUNK, step, package.sample_shape)

        x = fresh(0)
        for step, level in enumerate(levels):
            inputs = {"x": x[None], "t": np.array([level], np.float32), "tokens": words}
            x0 = self._graph.run(["x0"], inputs)[0][0]
            if step + 1 < len(levels):
                again = fresh(step + 1) if package.sampler.kind == "renoise" else None
                x = next_sample(x, x0, level=level, following=levels[step + 1], fresh=again)
        frames = self._codec.decode(x0[None])[0]
        if not np.isfinite(frames).all():
            raise SceneNotFinite
        return to_uint8(frames).tobytes()
