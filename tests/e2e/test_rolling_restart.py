"""Every process of a deployment restarted in turn under load: no client is failed, no session is lost.

`python benchmarks/rolling.py` is the same with the shipped models, and reports how long calls took meanwhile.
"""

from pathlib import Path

import pytest
import rolling
from worldtree_loadtest.summary import Summary
from worldtree_runtime.testing import TinyWorld
from worldtree_runtime.testing_experts import TinyExperts
from worldtree_runtime.testing_judges import TinyJudge
from worldtree_runtime.testing_mazes import TinyMaze

SIDE_PX = 8
SMALL = (
    "--pool-mib",
    "1",
    "--fp16-pool-mib",
    "1",
    "--int8-pool-mib",
    "1",
    "--max-batch",
    "4",
    "--headroom-blocks",
    "2",
)
PROCESS_COUNT = 10


@pytest.mark.timeout(600)
async def test_a_rolling_restart_fails_no_call_and_loses_no_session(tmp_path: Path) -> None:
    TinyWorld(height_px=SIDE_PX, width_px=SIDE_PX).write(tmp_path)
    TinyJudge(size_px=SIDE_PX, actions=("left", "right", "stay", "poison")).write(tmp_path)
    TinyExperts().write(tmp_path)
    TinyMaze().write(tmp_path)
    recording, lost, took_s = await rolling.roll(
        tmp_path, model="tiny", goal="a bright clip", rate_per_s=4, extra={"video": SMALL}
    )
    tally = Summary(recording).tally()
    assert len(took_s) == PROCESS_COUNT
    assert lost == []
    assert tally.counts["ok"] == tally.total > PROCESS_COUNT, tally.reasons
