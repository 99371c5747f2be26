"""Raw keys from a terminal, and the terminal put back as it was however we leave."""

import os
import select
import sys
import termios
import threading
import tty
from collections.abc import Callable
from types import TracebackType

from worldtree.errors import FailedPrecondition

ESCAPE = b"\x1b"
# CSI and SS3 forms of the arrow keys.
ARROWS = {b"A": "up", b"B": "down", b"C": "right", b"D": "left"}
ESCAPE_WAIT_S = 0.05  # an escape sequence arrives at once; a lone Esc key does not go on
POLL_S = 0.1


class Keys:
    """Calls `on_key` with each key pressed, on a thread of its own, while entered.

    Names: "up", "down", "left", "right", "escape", "tab", "space", or the character itself.
    """

    def __init__(self, on_key: Callable[[str], None]) -> None:
        self._on_key = on_key
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._read, name="keys", daemon=True)
        if not self.possible():
            raise FailedPrecondition(
                "this command needs a terminal on stdin and stdout",
                reason="NO_TERMINAL",
                remedy="run it in a terminal, or use `worldtree generate`",
            )
        self._fd = sys.stdin.fileno()
        self._before = termios.tcgetattr(self._fd)

    @staticmethod
    def possible() -> bool:
        """Whether there is a terminal to read keys from."""
        return sys.stdin.isatty() and sys.stdout.isatty()

    def __enter__(self) -> "Keys":
        # cbreak, not raw: Ctrl-C still interrupts, and output still gets its line ends.
        tty.setcbreak(self._fd)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        # Drain drops keys that were pressed for us, so that the shell does not get them.
        termios.tcsetattr(self._fd, termios.TCSAFLUSH, self._before)
        self._thread.join(2 * POLL_S)

    def _read(self) -> None:
        while not self._stopping.is_set():
            if not select.select([self._fd], [], [], POLL_S)[0]:
                continue
            data = os.read(self._fd, 64)
            if data.endswith(ESCAPE) and select.select([self._fd], [], [], ESCAPE_WAIT_S)[0]:
                data += os.read(self._fd, 64)
            for key in parse_keys(data):
                self._on_key(key)


def parse_keys(data: bytes) -> list[str]:
    """The keys in what a terminal sent; unknown escape sequences are passed over."""
    keys: list[str] = []
    position = 0
    while position < len(data):
        if data[position : position + 1] != ESCAPE:
            character = data[position : position + 1].decode("latin-1")
            keys.append({" ": "space", "\t": "tab", "\r": "enter", "\n": "enter"}.get(character, character))
            position += 1
        elif data[position + 1 : position + 2] in (b"[", b"O"):
            end = position + 2
            while end < len(data) and not 0x40 <= data[end] <= 0x7E:
                end += 1
            if data[end : end + 1] in ARROWS:
                keys.append(ARROWS[data[end : end + 1]])
            position = end + 1
        else:
            keys.append("escape")
            position += 1
    return keys
