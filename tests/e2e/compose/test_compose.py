"""docker-compose.yml for real: images, health, the demo, a killed replica, a Redis that restarts, a rolling restart."""

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import worldtree
import yaml
from compose_stack import ROOT, Report, Stack
from visitors import MODEL, START, Visitor, walk_of, wrong_frames

SERVICES = ("gateway", "video", "multitask", "reward", "navigator")
DEMO_TIMEOUT_S = 600.0

pytestmark = pytest.mark.timeout(5400)


def in_image(stack: Stack, image: str, *command: str) -> str:
    return stack.docker(
        "run", "--rm", "--network", "none", "--entrypoint", command[0], f"worldtree-{image}", *command[1:]
    )


@pytest.mark.parametrize("image", [*SERVICES, "sdk"])
def test_an_image_holds_what_it_needs_and_lists_it(built: Stack, report: Report, image: str) -> None:
    size_mb = built.docker.inspect(f"worldtree-{image}")["Size"] / 1e6
    base_mb = built.docker.inspect("local/debian")["Size"] / 1e6
    report.say(f"worldtree-{image}: {size_mb:.0f} MB, of which {base_mb:.0f} the base")
    listed = json.loads(in_image(built, image, "cat", "/opt/worldtree/sbom.json"))
    names = {component["name"] for component in listed["components"]}
    assert {"worldtree", "grpcio", "libc6", "python"} <= names
    assert ("onnxruntime" in names) == (image not in ("gateway", "sdk"))
    found = in_image(
        built, image, "sh", "-c", "id -u; for tool in cc gcc g++ make pip; do command -v $tool; done; true"
    )
    assert found.split() == ["10001"], "neither root, nor a compiler, nor an installer"


def test_the_containers_may_do_little_and_take_little(stack: Stack) -> None:
    for name in stack.containers():
        container = stack.docker.inspect(name)
        host = container["HostConfig"]
        assert container["Config"]["User"] not in ("", "root", "0"), name
        assert host["ReadonlyRootfs"], name
        assert host["CapDrop"] == ["ALL"], name
        assert "no-new-privileges:true" in host["SecurityOpt"], name
        assert host["Memory"] > 0, name
        assert host["NanoCpus"] > 0, name
        assert host["PidsLimit"] > 0, name
        published = [each["HostIp"] for ports in (host["PortBindings"] or {}).values() for each in ports]
        assert set(published) <= {"127.0.0.1"}, name
    assert len(stack.containers("gateway")) == 2
    assert len(stack.containers("video")) == 2


def test_prometheus_reads_every_replica_and_knows_the_rules(stack: Stack) -> None:
    def asked(path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:9090/api/v1/{path}", timeout=10) as answer:
            return json.load(answer)["data"]

    expected = {"gateway": 2, "video": 2, "multitask": 1, "reward": 1, "navigator": 1}
    ends_s = time.monotonic() + 60
    while True:
        up = [target["labels"]["job"] for target in asked("targets")["activeTargets"] if target["health"] == "up"]
        if all(up.count(job) == count for job, count in expected.items()):
            break
        assert time.monotonic() < ends_s, f"up are {sorted(up)}"
        time.sleep(1)
    files = (ROOT / "deploy/prometheus/rules").glob("*.yml")
    groups = [group["name"] for file in files for group in yaml.safe_load(file.read_text())["groups"]]
    assert sorted(group["name"] for group in asked("rules")["groups"]) == sorted(groups)


def test_the_demo_runs_through_the_sdk(stack: Stack, report: Report, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-P",
        "-m",
        "worldtree.cli",
        "demo",
        "--address",
        "127.0.0.1:7070",
        "--out",
        str(tmp_path),
    ]
    with report.timed("worldtree demo"):
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEMO_TIMEOUT_S)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (tmp_path / "world_tree.png").stat().st_size > 0


def test_the_image_of_the_sdk_finds_the_balancer_from_inside(stack: Stack) -> None:
    arguments = ["--rm", "--read-only", "--network", "worldtree_inside", "worldtree-sdk", "--address", "balancer:7070"]
    assert MODEL in stack.docker("run", *arguments, "models")


@contextmanager
def visited(stack: Stack, right: str, report: Report, what: str, seed: int) -> Iterator[list[Visitor]]:
    """Six clients, through both gateways, walk while the block runs and some seconds before and after. None of them may
    fail, lose its session, or see a frame that is not its world's.
    """
    doors = stack.doors()
    visitors = [Visitor(doors[index // 2 % 2], seed + index, plays=index % 2 == 0) for index in range(6)]
    for visitor in visitors:
        visitor.start()
    wait_until(lambda: all(visitor.walked_count >= 4 for visitor in visitors), visitors)
    yield visitors
    reached = [visitor.walked_count for visitor in visitors]
    wait_until(lambda: all(v.walked_count >= count + 4 for v, count in zip(visitors, reached, strict=True)), visitors)
    for visitor in visitors:
        visitor.stop()
    chunk_count = sum(len(visitor.frames) for visitor in visitors)
    failures = [failure for visitor in visitors for failure in visitor.failures]
    wrong_count = sum(wrong_frames(visitor, right) for visitor in visitors)
    lost = [visitor.session for visitor in visitors if stands_at(doors[0], visitor.session) != visitor.walked_count]
    report.say(
        f"{what}: {chunk_count} chunks seen by {len(visitors)} clients, {wrong_count} frames wrong, {len(lost)} "
        f"sessions lost, {len(failures)} calls failed; longest wait {max(v.longest_wait_s for v in visitors):.1f} s, "
        f"plays that moved: {sum(visitor.rehomed_count for visitor in visitors)}"
    )
    assert not failures
    assert wrong_count == 0
    assert all(len(visitor.frames) == visitor.walked_count for visitor in visitors), "a chunk was made and not seen"
    assert not lost


def stands_at(address: str, session: str) -> int | None:
    """None: it is lost."""
    with worldtree.Client(address) as client:
        try:
            return client.session(session).refresh().chunk_index
        except worldtree.NotFound:
            return None


def wait_until(holds: Any, visitors: list[Visitor], timeout_s: float = 120.0) -> None:
    ends_s = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > ends_s:
            pytest.fail(f"visitors stand still: {[(v.walked_count, v.failures) for v in visitors]}")
        time.sleep(0.1)


def test_plays_go_on_where_a_video_container_is_killed(stack: Stack, report: Report, right: str) -> None:
    with visited(stack, right, report, "a video container is killed", seed=100) as visitors:
        victim = stack.home_of(next(visitor.session for visitor in visitors if visitor.plays))
        stack.docker("kill", victim)
        struck = [visitor.walked_count for visitor in visitors]
        wait_until(lambda: all(v.walked_count > count + 2 for v, count in zip(visitors, struck, strict=True)), visitors)
        with report.timed("bringing it back"):
            stack.docker("start", victim)
            stack.wait_healthy(victim)
            stack.wait_known()
    assert sum(visitor.rehomed_count for visitor in visitors) > 0, "nobody played where it was killed"


def test_a_redis_that_restarts_has_kept_what_it_was_told(stack: Stack, report: Report, right: str) -> None:
    with worldtree.Client("127.0.0.1:7070") as client:
        kept = client.world(MODEL, start=START, seed=99)
        kept.step(walk_of(99, 3))
        snapshot = kept.save()
        time.sleep(2)  # its log is written each second
        (redis,) = stack.containers("redis")
        with visited(stack, right, report, "redis restarts", seed=200), report.timed("restarting redis"):
            stack.restart(redis)
        assert (client.restore(snapshot).step("forward") == kept.step("forward")).all()


def test_a_rolling_restart_is_not_noticed(stack: Stack, report: Report, right: str) -> None:
    """Of what there are two of: a service with one replica is away while it restarts."""
    with visited(stack, right, report, "rolling restart of video and gateway", seed=300):
        for name in [*stack.containers("video"), *stack.containers("gateway")]:
            with report.timed(f"restarting {name}"):
                stack.restart(name)
