"""What a user's type checker sees: mypy --strict over a program that pins the types of the public surface."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = """
from typing import assert_type
import numpy as np
import numpy.typing as npt
import worldtree
import worldtree.aio

Pixels = npt.NDArray[np.uint8]


def synchronous() -> None:
    worldtree.Client("localhost:7070", tls=worldtree.Tls("ca.pem", cert_file="client.crt", key_file="client.key"))
    with worldtree.Client("localhost:7070", api_key="k", tls=True, timeout=3) as client:
        assert_type(client.models(), list[worldtree.ModelInfo])
        name: str = client.models()[0].starts[0]
        world = client.world("minigrid", start=name, seed=7, nfe=2, kv={"kind": "sliding", "window": 8}, ttl=60)
        assert_type(world, worldtree.World)
        assert_type(world.step("forward"), Pixels)
        assert_type(world.fork(), worldtree.World)
        assert_type(world.fork(8), list[worldtree.World])
        assert_type(world.fork(2, seeds=[1, 2]), list[worldtree.World])
        assert_type(world.rewind(1), Pixels)
        assert_type(world.rollout([["left"] * 4, ["forward", "left"]]), list[worldtree.Rollout])
        assert_type(client.restore(world.save()), worldtree.World)
        for chunk in world.play(["left"], fps=10):
            assert_type(chunk, worldtree.PlayedChunk)
            assert_type(chunk.frames, Pixels)
        assert_type(client.generate("minigrid", start="four-rooms", actions=["forward"] * 8), worldtree.Clip)
        assert_type(client.sessions(), list[worldtree.SessionInfo])
        assert_type(client.introspect("video-1").models[0].tiers[0], worldtree.Tier)
        assert_type(client.replicas(), list[str])
        walls = np.zeros((4, 4), np.bool_)
        assert_type(client.navigator.plan_on_map(walls, start=(0, 0), goal=(3, 3)), worldtree.MapPath)
        client.navigator.plan_on_map(walls, (0, 0), (3, 3))  # type: ignore[call-arg]
        world.play(["left"], degrade="nfe").rehomed_count + 1
        world.play(["left"], degrade="fps")  # type: ignore[arg-type]
        world.rollout([["left"]], detail="some")  # type: ignore[arg-type]
        answer = client.multitask.predict(world.last_frame, merge={"front_object": 0.7, "door_state": 0.3})
        assert_type(answer, worldtree.Answer)
        assert_type(answer["front_object"].labels, list[str])
        assert_type(answer["front_object"].class_ids, npt.NDArray[np.int32])
        client.multitask.predict([b"png"], tasks=["front_object"], merge=worldtree.Recipe("ties", density=0.2))
        client.multitask.predict([b"png"], merge=[0.7, 0.3])
        merge = client.multitask.create_merge("mm_mo", name="front", progress=lambda now: print(now.done), budget=9)
        assert_type(merge, worldtree.Merge)
        assert_type(merge.coefficients, npt.NDArray[np.float32] | None)
        assert_type(client.multitask.pareto_front(merge).points[0], worldtree.FrontPoint)
        assert_type(client.multitask.tasks().methods[0], worldtree.MethodInfo)
        client.multitask.predict([b"png"], merge=0.7)  # type: ignore[arg-type]
        client.multitask.predict([b"png"], ["front_object"])  # type: ignore[call-arg]
        client.world("minigrid", "four-rooms")  # type: ignore[call-arg]
        world.play(["left"], idle="dance")  # type: ignore[arg-type]


async def asynchronous() -> None:
    async with worldtree.aio.Client("localhost:7070") as client:
        world = await client.world("minigrid", start="four-rooms")
        assert_type(world, worldtree.aio.World)
        assert_type(await world.step("forward"), Pixels)
        assert_type(await world.fork(), worldtree.aio.World)
        assert_type(await client.multitask.predict([b"png"]), worldtree.Answer)
        assert_type(await client.multitask.create_merge("average"), worldtree.Merge)
        assert_type(await world.fork(8), list[worldtree.aio.World])
        assert_type(await world.rollout([["left"]]), list[worldtree.Rollout])
        assert_type(await client.introspect(), worldtree.ReplicaStatus)
        async for chunk in world.play(["left"]):
            assert_type(chunk, worldtree.PlayedChunk)
"""


def test_a_user_s_program_type_checks_as_documented(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file", "", "--cache-dir", "cache", program],
        cwd=tmp_path,
        env={"MYPYPATH": str(ROOT / "clients/python/src")},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stdout + done.stderr
