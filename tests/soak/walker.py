"""One client process of the soak: random operations until it is told to stop. Started by soaked_fleet.py.

On stdin a word a line: pause (finish what you do and say so), go, stop. On stdout a JSON object a line: what was done
so far (`done`, `refused`, `checked_chunks`), `paused`, or `failed` with the operation and the walker's seed.
"""

import argparse
import json
import queue
import random
import sys
import threading
import time
import traceback
from contextlib import suppress
from typing import Any

import worldtree
from operations import Offer, Operations, RefusedError

REPORT_S = 0.25


class Walker:
    """Does one operation after another."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._seed = arguments.seed
        self._operations = Operations(
            worldtree.Client(arguments.address, timeout=60),
            worldtree.Client(arguments.reference, timeout=60),
            Offer(arguments.model, tuple(arguments.storages), tuple(arguments.kinds), arguments.most_worlds),
            random.Random(arguments.seed),
        )
        self._words: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._done: dict[str, int] = {}
        self._reported_s = 0.0

    def run(self) -> int:
        """Until told to stop; the exit code."""
        threading.Thread(target=self._listen, daemon=True).start()
        while self._heard_to_go_on():
            operation = self._operations.choose()
            name = operation.__name__
            try:
                with suppress(RefusedError):
                    operation()
            except Exception:
                count = sum(self._done.values())
                said = traceback.format_exc(limit=-6)
                self._say({"failed": {"operation": name, "seed": self._seed, "number": count, "error": said}})
                return 1
            self._done[name] = self._done.get(name, 0) + 1
            if time.monotonic() - self._reported_s > REPORT_S:
                self._report()
        self._report()
        return 0

    def _listen(self) -> None:
        for line in sys.stdin:
            self._words.put(line.strip())
        self._words.put("stop")  # the parent has gone

    def _heard_to_go_on(self) -> bool:
        paused = False
        while paused or not self._words.empty():
            word = self._words.get()
            if word == "stop":
                return False
            if word == "pause":
                self._report()
                self._say({"paused": True})
            paused = word == "pause"
        return True

    def _report(self) -> None:
        self._reported_s = time.monotonic()
        self._say(
            {
                "done": self._done,
                "refused": self._operations.refused,
                "checked_chunks": self._operations.checked_chunks,
                "worlds": len(self._operations.held),
            }
        )

    def _say(self, what: dict[str, Any]) -> None:
        print(json.dumps(what), flush=True)


def main() -> None:
    """Reads the flags and walks."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--address", required=True)
    parser.add_argument("--reference", required=True)
    parser.add_argument("--seed", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--storages", nargs="+", required=True)
    parser.add_argument("--kinds", nargs="+", required=True)
    parser.add_argument("--most-worlds", type=int, required=True)
    sys.exit(Walker(parser.parse_args()).run())


if __name__ == "__main__":
    main()
