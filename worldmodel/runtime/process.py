"""Ctrl-C that waits for the end of a step, so that long work can save a whole state before it stops."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import sys
import threading
from collections.abc import Iterator

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
LARGEST_INT = 2**31 - 1


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


def keep_freed_memory() -> bool:
    """Let the C library keep what is freed, for the rest of the process, rather than give it back to the system.

    By default it gives back every large block at once, and the next one of the same size is paid for again by a page fault for
    each 4 KB: a fifth of the time of training M at the paper's Doom size (dev/LOG.md). The price is that a process keeps the
    most memory that it ever used. For scripts, which own their process; nothing in this package calls it.

    Returns:
        Whether it did: True with glibc (most of Linux), False elsewhere, where nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(parameter, LARGEST_INT) == 1 for parameter in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD))
