"""The Python of the SDK's README runs."""

import re
from pathlib import Path
from typing import Any

README = Path(__file__).parents[3] / "clients/python/README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_each_block_runs_against_a_server(echo: Any, monkeypatch: Any) -> None:
    assert BLOCKS
    for block in BLOCKS:
        assert "localhost:7070" in block
        exec(compile(block.replace("localhost:7070", echo.address), str(README), "exec"), {})
    assert echo.servicer.end_reasons["Play"] == "done"
