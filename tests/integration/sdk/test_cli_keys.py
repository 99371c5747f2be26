"""`worldtree keys create`, and a command line that shows the key that it made to a gateway."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from worldtree_gateway.api_key import KnownKey, PresentedKey
from worldtree_gateway.key_ring import read_keys

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-m", "worldtree.cli", *arguments],
            env={**os.environ, "NO_COLOR": "1", "COLUMNS": "80", **environ},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def is_key(text: str, line: str) -> bool:
    presented = PresentedKey.parse(text)
    assert presented is not None
    return KnownKey.parse(line).is_key(presented)


def test_a_key_and_its_line_are_printed_once(run: Run) -> None:
    done = run("keys", "create", "--tenant", "acme")
    assert done.returncode == 0, done.stderr
    key, line = done.stdout.splitlines()
    assert is_key(key, line)
    assert line.split()[1:3] == ["acme", "user"]
    assert key not in done.stderr


def test_lines_are_added_to_a_file_that_only_its_owner_reads(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    first = json.loads(run("keys", "create", "--tenant", "acme", "--file", "keys", "--json").stdout)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.write_text(file.read_text().rstrip("\n"))  # as some editors leave it
    second = run("keys", "create", "--tenant", "globex", "--role", "operator", "--file", "keys")
    assert len(second.stdout.splitlines()) == 1
    known = read_keys(file)
    assert [(key.tenant, key.role.name) for key in known.values()] == [("acme", "USER"), ("globex", "OPERATOR")]
    assert is_key(first["key"], known[first["key_id"]].line)


@pytest.mark.parametrize("arguments", [("--tenant", "a b"), ("--tenant", ""), (), ("--tenant", "a", "--role", "root")])
def test_a_key_for_nobody_is_refused(run: Run, arguments: tuple[str, ...]) -> None:
    done = run("keys", "create", *arguments)
    assert done.returncode != 0
    assert not done.stdout
    assert done.stderr
