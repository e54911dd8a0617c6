"""Ctrl-C that waits for the end of a step, so that long work can save a whole state before it stops."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def interrupt_between_steps() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into a flag, so that no step is left half done; a second one interrupts at once.

    In a thread other than the main one, where no signal arrives, the flag is never set.
    """
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield requested
        return

    def request(signum: int, frame: object) -> None:
        if requested.is_set():
            raise KeyboardInterrupt
        requested.set()

    previous = signal.signal(signal.SIGINT, request)
    try:
        yield requested
    finally:
        signal.signal(signal.SIGINT, previous)
