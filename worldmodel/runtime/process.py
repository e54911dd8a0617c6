"""Ctrl-C between steps and in workers, the end of a worker that would run the script again, and freed memory."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import signal
import sys
import threading
from collections.abc import Iterator

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from malloc.h
MAX_INT = 2**31 - 1


@contextlib.contextmanager
def interrupt_between_steps() -> Iterator[threading.Event]:
    """Set a flag at the first Ctrl-C instead of interrupting; interrupt immediately at the second.

    The caller checks the flag between steps, so that it can save a consistent state and stop. In
    threads other than the main one, which receive no signals, the flag is never set.

    Yields:
        The flag.
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


@contextlib.contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Hold Ctrl-C back while a process is started, also from that process.

    A new process inherits the blocked signal, so an interruption of its imports prints no traceback there. It calls
    `ignore_interrupts` when it is ready. This process gets the signal afterwards. Without effect on Windows.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_interrupts() -> None:
    """Ignore Ctrl-C in a worker process, whose parent handles it, and end the block of `interrupts_blocked`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def end_if_starting() -> None:
    """End this process if it is a worker that imports the user's script; the parent then says what the script lacks.

    A worker imports the script of its parent. Without ``if __name__ == "__main__":`` it would do the script's work again, and
    start workers of its own.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # of multiprocessing: the process is being prepared
        raise SystemExit(1)


def keep_freed_memory() -> bool:
    """Make the C library keep freed memory for the rest of the process.

    By default glibc returns large blocks to the system at once, and the next block of that size
    costs one page fault per 4 KB. These faults take a fifth of the training time of M at the
    paper's Doom size (dev/LOG.md). After this call, the process keeps its peak memory until it
    ends. Call this from scripts only; the library itself does not.

    Returns:
        True with glibc (most Linux systems); False elsewhere, where the call has no effect.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(parameter, MAX_INT) == 1 for parameter in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD))
