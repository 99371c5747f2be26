"""A service's process: its event loop, its signals and its exit code."""

import asyncio
import ctypes
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from threadpoolctl import threadpool_limits

from worldtree_runtime.errors import WorldtreeError
from worldtree_runtime.model_package import PackageError
from worldtree_runtime.settings import SettingsError

_log = logging.getLogger(__name__)
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SWITCH_S = 0.0005
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
_MMAP_BYTES, _TRIM_BYTES = 32 << 20, 128 << 20  # the former is the most that glibc takes


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs `main` to its end. The first SIGTERM or SIGINT cancels it, so that its `async with` blocks drain.

    A stop that was asked for is a success (code 0). A second signal ends the process at once (128 + its number). A
    start that can't succeed (a setting, an address, a model) is one line and code 1; a bug, its traceback and code 1.
    """
    # NumPy's matrices here are small. Its threads would wait for each other, spinning, for as long as another process
    # has one of their cores: 30 ms for a product that takes 0.03. What is large is run by ONNX Runtime.
    threadpool_limits(limits=1, user_api="blas")
    # Between two runs of a network its thread needs the interpreter for some microseconds. It would wait for it for as
    # long as the loop is at work, 5 ms at most, and the loop for it.
    sys.setswitchinterval(_SWITCH_S)
    _keep_freed_memory()
    try:
        with asyncio.Runner() as runner:
            runner.run(_until_signal(main))
    except (SettingsError, PackageError, WorldtreeError, OSError) as error:
        _log.debug("the start failed", exc_info=error)
        print(f"worldtree: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def _keep_freed_memory() -> None:
    """What a message of frames took is there for the next one.

    Left to itself, glibc gives it back to the system each time, which then has to clear and map it again: 500 page
    faults for a megabyte that passes the gateway, and a third of its time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # another C library does not have it
        mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)


async def _until_signal(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    loop = asyncio.get_running_loop()
    task = loop.create_task(main(), name="main")
    received: list[signal.Signals] = []

    def on_signal(number: signal.Signals) -> None:
        received.append(number)
        if len(received) > 1:
            _log.warning("%s again: ending at once", number.name)
            # no clean-up of any kind: whoever sends the second signal has waited enough
            os._exit(128 + number)
        _log.info("%s: stopping", number.name)
        task.cancel()

    for number in _SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    try:
        await task
    except asyncio.CancelledError:
        if not received:
            raise
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
