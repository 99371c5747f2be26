"""Is a generated view one that MiniGrid could show? A measure of coherence that needs no true frame."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from training.minigrid import tiles
from training.minigrid.worlds import seen_cells


def legal_views(ids: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
    """[..., 49] tile ids -> [...] bool.

    A view is legal when the agent stands in its cell and nowhere else, and when the seen cells are exactly those that
    light reaches through what the view itself shows (or all of them, in worlds whose walls are seen through).
    """
    flat = ids.reshape(-1, tiles.CELL_COUNT)
    agent = (flat >= tiles.AGENT) & (flat != tiles.DARK)
    legal = agent[:, tiles.AGENT_CELL] & (agent.sum(1) == 1)
    for index in np.flatnonzero(legal):
        view = flat[index]
        seen = view != tiles.DARK
        if not seen.all():
            codes = np.where(seen, view, tiles.WALL)
            codes[tiles.AGENT_CELL] = tiles.EMPTY
            legal[index] = np.array_equal(seen_cells(codes.tolist()), seen)
    shaped: npt.NDArray[np.bool_] = legal.reshape(ids.shape[:-1])
    return shaped
