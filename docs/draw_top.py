"""Draws docs/top.svg: `worldtree top --svg` beside a server of its own, with worlds, plays and rollouts under way.

.venv/bin/python docs/draw_top.py
"""

import random
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import worldtree
from worldtree.cli.stack import Stack, StackOptions
from worldtree.cli.top import Watch, save_svg

TO = Path(__file__).with_name("top.svg")
MODEL, START = "minigrid", "four-rooms"
PLAY_COUNT = 2
PLAY_FPS = 5.0
WARM_UP_S = 6.0


def main() -> None:
    dice = random.Random(7)  # noqa: S311 - dice, not secrets
    with ExitStack() as stack:
        journal = Path(stack.enter_context(TemporaryDirectory()))
        server = stack.enter_context(Stack(StackOptions(port=0, journal_folder=journal), on_log=lambda _: None))
        client = stack.enter_context(worldtree.Client(server.grpc_address))
        ended = threading.Event()
        trunk = client.world(MODEL, start=START, seed=7)
        moves = ("forward", "left", "right")
        trunk.step(dice.choices(moves, k=12))
        branches = trunk.fork(6)
        for branch in branches[:4]:
            branch.step(dice.choices(moves, k=3))
        small = client.world(MODEL, start="door-key", kv={"storage": "int8"})
        small.step(["forward", "toggle"])

        def play(world: worldtree.World) -> None:
            live = worldtree.LiveActions()
            live.put("left")
            with world.play(live, fps=PLAY_FPS, idle="repeat", degrade="nfe") as chunks:
                for _ in chunks:
                    if ended.is_set():
                        return

        def imagine() -> None:
            while not ended.is_set():
                trunk.rollout([dice.choices(moves, k=6) for _ in range(8)], detail="none")

        runs = [threading.Thread(target=play, args=(branch,)) for branch in branches[:PLAY_COUNT]]
        runs.append(threading.Thread(target=imagine))
        for run in runs:
            run.start()
        try:
            time.sleep(WARM_UP_S)
            save_svg(Watch(client, interval_s=1.0).look(), TO)
        finally:
            ended.set()
            for run in runs:
                run.join()
    print(f"wrote {TO}")


if __name__ == "__main__":
    main()
