"""An object in a process of its own, whose methods are called with a time limit.

Only a process can be stopped in the middle of a call. The workers of `worldmodel.runtime.workers` do numbered tasks; this is
for an object that is asked again and again, such as an environment that somebody steers.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle

from worldmodel.runtime.process import end_if_starting, ignore_interrupts
from worldmodel.runtime.workers import end_with_parent, start_process, stop_workers, worker_context


class RemoteError(RuntimeError):
    """A call in another process failed, took too long, or ended that process."""


class RemoteObject:
    """Make an object in a new process and call its methods there.

    A call that raises leaves the object as it is. After one that takes too long the process is killed; then, and if the process
    crashed, `is_running` is False and every further call raises.

    Args:
        make: returns the object; sent by cloudpickle. A method ``close`` is called at the end.
        name: of the object in messages.
        seconds: limit of ``make`` and of the start of the process.

    Raises:
        RemoteError: if ``make`` raises, takes too long or crashes.
    """

    def __init__(self, make: Callable[[], Any], *, name: str, seconds: float):
        end_if_starting()
        context = worker_context()
        self.name, self.is_running, self.lost = name, True, False
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, cloudpickle.dumps(make)), daemon=True)
        start_process(self.process)
        theirs.close()
        try:
            self._receive("its construction", seconds)
        except RemoteError:
            self.close()
            raise

    def call(self, method: str, *arguments: Any, seconds: float) -> Any:
        """Call a method and return its result, which must be picklable.

        Raises:
            RemoteError: if it raises, takes longer than ``seconds`` or crashes, or the process has ended before.
        """
        if not self.is_running:
            raise RemoteError(f"{self.name}: expected a running process, got one that has ended")
        with contextlib.suppress(OSError):  # the process has ended; `_receive` says so
            self.connection.send((method, arguments))
        return self._receive(method, seconds)

    def close(self) -> None:
        """Close the object and end its process; kill it if it does not end."""
        self.is_running = False
        stop_workers([self])

    def _receive(self, what: str, seconds: float) -> Any:
        try:
            if not self.connection.poll(seconds):
                self._kill()
                raise RemoteError(f"{self.name}: expected an end of {what} within {seconds:g} s, got none; it was stopped")
            succeeded, value = self.connection.recv()
        except (EOFError, OSError) as error:
            self._kill()
            raise RemoteError(f"{self.name}: expected an end of {what}, got a crash of its process") from error
        if not succeeded:
            raise RemoteError(value)
        return value

    def _kill(self) -> None:
        self.is_running = False
        self.process.kill()


def _serve(connection: Connection, payload: bytes) -> None:
    """Make the object and answer calls until the pipe closes, in the process of its own."""
    ignore_interrupts()
    threading.Thread(target=end_with_parent, daemon=True).start()
    made: Any = None
    with contextlib.suppress(EOFError, OSError):  # of the pipe
        try:
            made = cloudpickle.loads(payload)()
            connection.send((True, None))
        except BaseException as error:  # environments may raise anything
            connection.send((False, _text(error)))
            return
        while True:
            method, arguments = connection.recv()
            try:
                connection.send((True, getattr(made, method)(*arguments)))
            except BaseException as error:
                connection.send((False, _text(error)))
    if hasattr(made, "close"):
        made.close()


def _text(error: BaseException) -> str:
    """Return one line; errors with a message for users need no name of their class."""
    name = type(error).__name__
    try:
        text = " ".join(str(error).split())
    except Exception:  # a class of the environment whose text cannot be made
        return name
    return text if text and isinstance(error, (ValueError, ImportError)) else f"{name}: {text}" if text else name
