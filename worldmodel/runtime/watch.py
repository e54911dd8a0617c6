"""Watch the steps of a task: a beat for the timeout of its parent process, and a limit on the memory."""

from __future__ import annotations

import time
from typing import Any

from worldmodel.runtime.memory import private_memory, total_memory, used_fraction

CHECK_SECONDS = 0.05  # between two looks at the memory
COPIES = 2  # of what a task has recorded so far: it is stacked at the end, and pickled for the parent process
MACHINE_FULL = 0.95  # fraction of the memory in use by all processes at which a task that takes much is ended, too
MUCH = 64 * 2**20  # bytes


class StepWatch:
    """Passed to `Runner.run`, which calls `step` before each step, reset and construction of an environment.

    Args:
        memory_limit: fraction of the memory of the machine that one task may add to this process; None for no limit.
        beats: two shared integers that the parent process reads: the number of beats, and whether a step is running.
    """

    def __init__(self, *, memory_limit: float | None = None, beats: Any = None):
        self._beats, total = beats, total_memory()
        self._limit = None if memory_limit is None or total is None else memory_limit * total
        self._total, self._fraction = total, memory_limit
        self.start()

    def start(self) -> None:
        """Begin a task."""
        self._before = (private_memory() or 0) if self._limit is not None else 0
        self._next_check = time.monotonic() + CHECK_SECONDS

    def step(self, recorded: int = 0) -> None:
        """Report that a step begins.

        Args:
            recorded: bytes that the task keeps until its end.

        Raises:
            MemoryError: if the task exceeds its share of the memory.
        """
        if self._beats is not None:
            self._beats[0] += 1
            self._beats[1] = 1
        if self._limit is not None and time.monotonic() >= self._next_check:
            self._check_memory(recorded)
            self._next_check = time.monotonic() + CHECK_SECONDS

    def pause(self) -> None:
        """Report that no step is running, only work of this library, which the timeout does not limit."""
        if self._beats is not None:
            self._beats[0] += 1
            self._beats[1] = 0

    def _check_memory(self, recorded: int) -> None:
        assert self._limit is not None
        now = private_memory()
        added = (recorded if now is None else max(recorded, now - self._before)) + COPIES * recorded
        in_use = used_fraction() if added > MUCH else None
        full = in_use is not None and in_use > MACHINE_FULL
        if added > self._limit or full:
            limit = f"the machine's memory is {in_use:.0%} full" if full else f"the limit is {self._limit / 2**30:,.2f} GiB"
            raise MemoryError(
                f"memory_limit: expected an episode to fit into its share of the memory, got one that needs "
                f"{added / 2**30:,.2f} GiB so far, and {limit}; set max_steps, use fewer workers, or raise memory_limit"
            )
