"""PNG strips for the eye: the true frames above, the model's below."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from training.minigrid import tiles
from training.minigrid.data import Episode


def save_strips(
    folder: Path,
    episodes: list[Episode],
    frames: npt.NDArray[np.uint8],
    *,
    start_count: int,
    count: int = 24,
    zoom: int = 2,
) -> None:
    """Writes one strip an episode; frames [episode, depth, 56, 56, 3] are what the model made after the start."""
    folder.mkdir(parents=True, exist_ok=True)
    depth = frames.shape[1]
    for index, (episode, made) in enumerate(zip(episodes[:count], frames, strict=False)):
        truth = tiles.draw_frame(episode.ids[start_count - 1 : start_count + depth])
        below = np.concatenate([truth[:1], made])
        gap = np.full((4, tiles.FRAME_PX, 3), 255, np.uint8)
        columns = [np.concatenate([a, gap, b]) for a, b in zip(truth, below, strict=True)]
        spacer = np.full((columns[0].shape[0], 4, 3), 255, np.uint8)
        strip = np.concatenate([part for column in columns for part in (column, spacer)], axis=1)
        image = Image.fromarray(strip)
        name = f"{index:03d}-{episode.env_id.split('/')[-1]}.png"
        image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST).save(folder / name)
