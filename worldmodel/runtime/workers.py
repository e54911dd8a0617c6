"""Run tasks in worker processes that may raise or crash, without losing the other tasks.

Each worker has its own pipe and does its tasks in order, so a crash can be attributed to one task.
The parent detects a crash by the process's sentinel, counts a failure of that task, returns the
others to the queue and starts a new worker.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections import Counter, deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

import cloudpickle
import torch

from worldmodel.runtime.integers import check_integers

PREFETCH = 2  # tasks per worker: the running one, and the next one to hide the latency of the pipe
STOP_SECONDS = 2.0  # grace period in which a worker closes its resources before it is terminated

_NO_START = (
    "workers: expected a worker process to start, got exit code {code}; put the script's calls under "
    '`if __name__ == "__main__":`, and define what is sent to workers in importable modules'
)


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """Number of worker processes, and attempts per task.

    Args:
        num_workers: number of processes; 0 runs tasks in this process. With 1 or more, a script
            needs ``if __name__ == "__main__":``.
        attempts: maximum number of attempts at a task that raises or crashes its worker.

    Raises:
        TypeError: if a number is not an integer.
        ValueError: if ``num_workers`` is below 0 or ``attempts`` is below 1.
    """

    num_workers: int = 0
    attempts: int = 2

    def __post_init__(self) -> None:
        """Validate both numbers."""
        check_integers(self, {"num_workers": 0, "attempts": 1})

    @classmethod
    def of(cls, workers: int | WorkerConfig) -> WorkerConfig:
        """Convert a number of workers to a configuration; return a configuration unchanged."""
        return workers if isinstance(workers, WorkerConfig) else cls(num_workers=workers)

    def run(self, runner: Runner, tasks: Sequence[int]) -> Generator[tuple[int, int, Any]]:
        """Run all tasks, in this process or in workers; yields as `run_in_processes`."""
        if self.num_workers == 0:
            return run_here(runner, tasks, attempts=self.attempts)
        return run_in_processes(runner, tasks, num_workers=self.num_workers, attempts=self.attempts)


class Runner(Protocol):
    """Runs tasks. Each worker process gets its own copy."""

    def run(self, task: int) -> Any:
        """Run one task and return its result; may raise."""

    def close(self) -> None:
        """Release all resources."""


def run_in_processes(
    runner: Runner, tasks: Sequence[int], *, num_workers: int, attempts: int
) -> Generator[tuple[int, int, Any]]:
    """Run all tasks in worker processes, each with its own copy of ``runner``.

    Args:
        runner: sent to the workers by cloudpickle.
        tasks: numbers of the tasks, all different.
        num_workers: number of processes, at least 1.
        attempts: maximum number of attempts at a task that raises or crashes its worker.

    Yields:
        (task, attempts made, outcome) in the order of completion. The outcome is the result, or the
        last error as a string if no attempt succeeded.

    Raises:
        RuntimeError: if a worker cannot start.
    """
    payload = cloudpickle.dumps(runner)
    waiting = deque(tasks)
    tried: Counter[int] = Counter()
    pool = [_Worker(payload) for _ in range(min(num_workers, len(waiting)))]
    try:
        while waiting or any(worker.tasks for worker in pool):
            for worker in pool:
                worker.feed(waiting)
            wait([handle for worker in pool for handle in (worker.connection, worker.process.sentinel)])
            for index, worker in enumerate(pool):
                for task, succeeded, outcome in worker.receive():
                    tried[task] += 1
                    if succeeded or tried[task] == attempts:
                        yield task, tried[task], outcome
                    else:
                        waiting.appendleft(task)
                if worker.ended:
                    waiting.extendleft(reversed(worker.tasks))
                    worker.stop()
                    pool[index] = _Worker(payload)
    finally:
        for worker in pool:
            worker.connection.close()
        for worker in pool:
            worker.stop()


def run_here(runner: Runner, tasks: Sequence[int], *, attempts: int) -> Generator[tuple[int, int, Any]]:
    """Run all tasks in this process; yields as `run_in_processes`, then closes the runner."""
    try:
        for task in tasks:
            tried, succeeded = 0, False
            while not succeeded and tried < attempts:
                tried += 1
                succeeded, outcome = attempt_task(runner, task)
            yield task, tried, outcome
    finally:
        runner.close()


def attempt_task(runner: Runner, task: int) -> tuple[bool, Any]:
    """Run a task once: (True, result), or (False, message with the location of the error)."""
    try:
        return True, runner.run(task)
    except Exception as error:  # environments and policies may raise anything; the other tasks must still run
        place = traceback.extract_tb(error.__traceback__)[-1]
        return False, f"{type(error).__name__}: {error} (in {place.name}, {os.path.basename(place.filename)}:{place.lineno})"


class _Worker:
    """One worker process, as seen by the parent."""

    def __init__(self, payload: bytes):
        context = _context()
        self.connection, worker_connection = context.Pipe()
        self.process = context.Process(target=_work, args=(worker_connection, payload), daemon=True)
        self.process.start()
        worker_connection.close()
        self.tasks: deque[int] = deque()
        self.started = self.ended = False

    def feed(self, waiting: deque[int]) -> None:
        """Send tasks until the worker has `PREFETCH`."""
        while waiting and len(self.tasks) < PREFETCH:
            try:
                self.connection.send(waiting[0])
            except OSError:
                return  # the process has ended; `receive` handles it
            self.tasks.append(waiting.popleft())

    def receive(self) -> Generator[tuple[int, bool, Any]]:
        """Yield finished tasks: (task, succeeded, outcome). A crash fails the running task."""
        ended = not self.process.is_alive()  # checked before reading the pipe, so that the last results are not lost
        try:
            while self.connection.poll():
                task, succeeded, outcome = self.connection.recv()
                if task is None and not succeeded:
                    raise RuntimeError(f"workers: expected a worker to unpickle its tasks' runner, got {outcome}")
                self.started = True
                if task is not None:
                    self.tasks.popleft()
                    yield task, succeeded, outcome
        except (EOFError, OSError, pickle.UnpicklingError):
            ended = True
        if not ended:
            return
        self.ended = True
        self.process.join(STOP_SECONDS)
        if not self.started:
            raise RuntimeError(_NO_START.format(code=self.process.exitcode))
        if self.tasks:
            yield self.tasks.popleft(), False, f"the worker process crashed (exit code {self.process.exitcode})"

    def stop(self) -> None:
        """Close the pipe, so that the worker exits; terminate it after `STOP_SECONDS`."""
        self.connection.close()
        self.process.join(STOP_SECONDS)
        if self.process.is_alive():
            self.process.terminate()
            self.process.join()


def _context() -> Any:  # ForkServerContext or SpawnContext; the type stubs have no common base with Process and Pipe
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["worldmodel.data.collecting"])  # imported once; workers then start in milliseconds
    return context


def _work(connection: Connection, payload: bytes) -> None:
    """Run tasks until the pipe closes, in the worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    try:
        runner = cloudpickle.loads(payload)
    except Exception as error:  # reported to the parent, which raises
        connection.send((None, False, f"{type(error).__name__}: {error}"))
        return
    with contextlib.closing(runner), contextlib.suppress(EOFError, OSError):
        connection.send((None, True, None))
        while True:
            task = connection.recv()
            connection.send((task, *attempt_task(runner, task)))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
