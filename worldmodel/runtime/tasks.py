"""Tasks that workers run: what runs them, and one attempt at one of them."""

from __future__ import annotations

import os
import signal
import traceback
from typing import Any, Protocol

from worldmodel.runtime.watch import StepWatch


class Runner(Protocol):
    """Runs tasks. Each worker process gets its own copy."""

    def run(self, task: int, watch: StepWatch) -> Any:
        """Run one task and return its result; may raise. Calls ``watch.step()`` before whatever may hang."""

    def close(self) -> None:
        """Release all resources."""


def attempt_task(runner: Runner, task: int, watch: StepWatch) -> tuple[bool, Any]:
    """Run a task once: (True, result), or (False, message with the location of the error)."""
    watch.start()
    try:
        return True, runner.run(task, watch)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # environments may raise anything, SystemExit too; the other tasks must run
        if _is_from_signal(error):
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        return False, f"{_text(error)} (in {place.name}, {os.path.basename(place.filename)}:{place.lineno})"
    finally:
        watch.pause()


def _is_from_signal(error: BaseException) -> bool:
    """Return whether a handler of a signal raised an error: `sys.exit` at SIGTERM must end the program."""
    codes = [getattr(signal.getsignal(number), "__code__", None) for number in signal.valid_signals()]
    return any(frame.f_code in codes for frame, _ in traceback.walk_tb(error.__traceback__))


def _text(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # a class of the environment whose text cannot be made
        return type(error).__name__
