"""Tasks that workers run: what runs them, and one attempt at one of them."""

from __future__ import annotations

import os
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
    except Exception as error:  # environments and policies may raise anything; the other tasks must still run
        place = traceback.extract_tb(error.__traceback__)[-1]
        return False, f"{type(error).__name__}: {error} (in {place.name}, {os.path.basename(place.filename)}:{place.lineno})"
    finally:
        watch.pause()
