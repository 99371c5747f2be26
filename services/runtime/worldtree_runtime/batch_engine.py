"""The thread of an engine that serves what waits, batch by batch."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar

Request = TypeVar("Request")


class BatchEngine(ABC, Generic[Request]):
    """What waits belongs to whoever derives from this, under `_wake`, which it notifies of what is new. Where
    `_stopping` is set nothing more may come.
    """

    def __init__(self, name: str) -> None:
        """`name`: of the thread."""
        self._wake = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends when the run under way has, and what waits is answered. Safe to call again."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()

    @abstractmethod
    def _take(self) -> Sequence[Request]:
        """The next batch, out of what waits; empty where nothing does. Called under `_wake`."""

    @abstractmethod
    def _serve(self, batch: Sequence[Request]) -> None:
        """Answers them, or gives them back to those who wait. What it raises ends the thread."""

    def _run(self) -> None:
        while batch := self._next_batch():
            self._serve(batch)

    def _next_batch(self) -> Sequence[Request]:
        """Waits for work. Empty: the engine is to stop, and nothing waits."""
        with self._wake:
            while not (batch := self._take()) and not self._stopping:
                self._wake.wait()
            return batch
