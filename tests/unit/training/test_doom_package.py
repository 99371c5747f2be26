"""The shipped first-person world: what its manifest promises, and what its four graphs do together."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from worldtree_runtime.model_package import read_package
from worldtree_runtime.video_package import VideoPackage

pytest.importorskip("onnxruntime")

from training.doom.package import Histories, Package, from_pixels, to_pixels

FOLDER = Path(__file__).parents[3] / "models/doom/1"
NONE, LEFT, FORWARD = 8, 3, 1


@cache
def package() -> Package:
    return Package(FOLDER)


@cache
def starts() -> np.ndarray:
    """The first chunks of all starts, uint8 [N, 4, 64, 80, 3]."""
    strips = [np.asarray(Image.open(path)) for path in sorted((FOLDER / "starts").glob("*.png"))]
    return np.stack([np.stack(np.split(strip[:, : 4 * 80], 4, axis=1)) for strip in strips])


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.square(one.astype(float) - other).mean()))


def played(actions: list[int], rows: slice = slice(None)) -> np.ndarray:
    """Chunks [T, N, 4, 64, 80, 3] after the starts."""
    given = starts()[rows]
    histories = Histories(package(), len(given), seed=3)
    histories.observe(given, np.full(len(given), NONE))
    return np.stack([histories.step(np.full(len(given), action)) for action in actions])


def test_the_manifest_is_a_latent_package_of_at_most_24_mb() -> None:
    spec = read_package(FOLDER / "model.yaml", VideoPackage)
    assert spec.latent is not None
    assert spec.latent.shape == (8, 10, 96)
    assert spec.frames_per_chunk == 4
    assert min(spec.frame.height_px, spec.frame.width_px) >= 64
    assert (FOLDER / "weights.bin").stat().st_size <= 24_000_000


def test_frames_that_are_decoded_and_encoded_again_do_not_drift() -> None:
    first = frames = to_pixels(
        package().run("decode", {"latents": package().run("encode", {"frames": from_pixels(starts())})})
    )
    for _ in range(4):
        frames = to_pixels(
            package().run("decode", {"latents": package().run("encode", {"frames": from_pixels(frames)})})
        )
    assert psnr(first, frames) > 40
    assert psnr(starts(), first) > 28


def test_a_session_gets_the_same_bits_alone_and_in_a_batch() -> None:
    kv = package().manifest["kv"]
    rng = np.random.default_rng(0)
    shape = (8, kv["layers"], 2, kv["heads"], kv["tokens"], kv["head_dim"])
    feeds = {
        "x": rng.standard_normal((3, 8, 10, 96), dtype=np.float32),
        "t": np.full(3, 0.5, np.float32),
        "action": np.array([1, 3, 7]),
        "position": np.array([2, 1, 0]),
        "table": np.tile(np.arange(kv["window"]), (3, 1)),
        "key_mask": np.arange(kv["window"])[None] < np.array([2, 1, 0])[:, None],
    }
    pool = rng.random(shape, dtype=np.float32)
    together = package().run("denoise", {**feeds, "pool": pool})
    for row in range(3):
        alone = package().run(
            "denoise", {**{name: value[row : row + 1] for name, value in feeds.items()}, "pool": pool}
        )
        assert np.array_equal(alone[0], together[row])


def test_turning_right_round_comes_back_to_the_view_it_began_with() -> None:
    begun = starts()[:, -1]
    ended = played([LEFT] * 12)[-1, :, -1]
    back = [psnr(a, b) for a, b in zip(begun, ended, strict=True)]
    other = [psnr(a, b) for a, b in zip(begun, np.roll(ended, 1, axis=0), strict=True)]
    assert np.mean(back) > np.mean(other) + 3


def test_actions_steer_and_equal_seeds_give_equal_frames() -> None:
    left, again, ahead = (played([action] * 2, slice(2)) for action in (LEFT, LEFT, FORWARD))
    assert np.array_equal(left, again)
    assert psnr(left[-1], ahead[-1]) < 25
