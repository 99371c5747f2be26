"""Between the pixels that a client sees and what the denoiser works on: the same in -1 to 1, or a model's latents."""

from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from worldtree_runtime.inference import TensorSpec, check_signature, open_session
from worldtree_runtime.video_package import StoredVideo

Array = NDArray[np.float32]


class Codec:
    """A package's `encode` and `decode`, where it has latents. Any thread.

    What goes into the cache is always `encode(pixels)` of the rounded pixels that the client got, never the latents
    that they were decoded from: a start's frames, generated ones and those of a replay are then one case, and a world
    made again from its frames is the same to the last bit.
    """

    def __init__(self, stored: StoredVideo, *, device: str = "cpu", threads: int = 1) -> None:
        package = stored.package
        self._encode: ort.InferenceSession | None = None
        self._decode: ort.InferenceSession | None = None
        if package.latent is None:
            return
        files = package.files.named()
        encode, decode = stored.folder / files["encode"], stored.folder / files["decode"]
        self._encode = open_session(encode, device=device, threads=threads)
        self._decode = open_session(decode, device=device, threads=threads)
        frames = TensorSpec("frames", "float", (None, *package.chunk_shape))
        latents = TensorSpec("latents", "float", (None, *package.latent.shape))
        check_signature(encode, self._encode, [frames], [latents])
        check_signature(decode, self._decode, [latents], [frames])

    def decode(self, x0: Array) -> Array:
        """Clean samples [batch, *sample_shape] as pixels [batch, frames, height, width, 3], about -1 to 1."""
        return x0 if self._decode is None else _run(self._decode, {"latents": x0})

    def encode(self, pixels: NDArray[np.uint8]) -> Array:
        """Pixels [batch, frames, height, width, 3] as samples [batch, *sample_shape]."""
        frames = pixels.astype(np.float32) / np.float32(127.5) - np.float32(1)
        return frames if self._encode is None else _run(self._encode, {"frames": frames})


def to_uint8(frames: Array) -> NDArray[np.uint8]:
    """Pixels of -1 to 1, as a client sees them; what lies outside is clipped."""
    pixels: NDArray[np.uint8] = np.clip(np.rint((frames + np.float32(1)) * np.float32(127.5)), 0, 255).astype(np.uint8)
    return pixels


def _run(session: ort.InferenceSession, inputs: dict[str, Any]) -> Array:
    (output,) = session.run(None, inputs)
    result: Array = output
    return result
