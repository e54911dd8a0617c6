"""Tasks in processes that may raise, die or be interrupted, without the rest being lost.

Each worker has a pipe of its own and works through its tasks in order, so when it dies it is known which task killed it.
The parent hears of a death by the process's sentinel, blames that task, hands the others on and starts a fresh worker.
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

from worldmodel.runtime.integers import check_integer

PREFETCH = 2  # tasks in a worker's hands: one that it works on, one that hides the way of the next
STOP_SECONDS = 2.0  # time for a worker to close what it holds, before it is ended

_NO_START = (
    "expected a worker process to start, got exit code {code}; a script that uses workers must keep its own calls under "
    '`if __name__ == "__main__":`, and what is sent to workers must be importable there'
)


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """Worker processes.

    Args:
        num_workers: 0 works in this process; n >= 1 in n processes. Then a script needs ``if __name__ == "__main__":``.
        attempts: how often a task is tried that raises or ends its worker.

    Raises:
        TypeError: if a number is not an integer.
        ValueError: if ``num_workers`` is below 0 or ``attempts`` below 1.
    """

    num_workers: int = 0
    attempts: int = 2

    def __post_init__(self) -> None:
        """Check both numbers."""
        for name, least in {"num_workers": 0, "attempts": 1}.items():
            object.__setattr__(self, name, check_integer(getattr(self, name), name, least=least))

    @classmethod
    def of(cls, workers: int | WorkerConfig) -> WorkerConfig:
        """Read an argument that is a number of workers or a configuration."""
        return workers if isinstance(workers, WorkerConfig) else cls(num_workers=workers)

    def run(self, runner: Runner, tasks: Sequence[int]) -> Generator[tuple[int, int, Any]]:
        """Do all tasks, in this process or in workers; see `run_in_processes` for what is yielded."""
        if self.num_workers == 0:
            return run_here(runner, tasks, attempts=self.attempts)
        return run_in_processes(runner, tasks, num_workers=self.num_workers, attempts=self.attempts)


class Runner(Protocol):
    """What a worker gets a copy of."""

    def run(self, task: int) -> Any:
        """Do one task; may raise."""

    def close(self) -> None:
        """Let go of what was opened."""


def run_in_processes(
    runner: Runner, tasks: Sequence[int], *, num_workers: int, attempts: int
) -> Generator[tuple[int, int, Any]]:
    """Do all tasks in worker processes, each with its own copy of ``runner``.

    Args:
        runner: sent by cloudpickle.
        tasks: all different.
        num_workers: at least 1.
        attempts: how often a task is tried that raises or kills its worker.

    Yields:
        (task, attempts made, outcome) in the order of completion; the outcome of a task that never succeeded is its last
        error, a string.

    Raises:
        RuntimeError: if a worker cannot even start.
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
                if worker.dead:
                    waiting.extendleft(reversed(worker.tasks))
                    worker.stop()
                    pool[index] = _Worker(payload)
    finally:
        for worker in pool:
            worker.connection.close()
        for worker in pool:
            worker.stop()


def run_here(runner: Runner, tasks: Sequence[int], *, attempts: int) -> Generator[tuple[int, int, Any]]:
    """Do all tasks in this process, in order, and yield as `run_in_processes` does; the runner is closed at the end."""
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
    """Try a task: (True, its result), or (False, the error in words with the place where it was raised)."""
    try:
        return True, runner.run(task)
    except Exception as error:  # whatever an environment or a policy raises is reported, and must not end the others
        place = traceback.extract_tb(error.__traceback__)[-1]
        return False, f"{type(error).__name__}: {error} (in {place.name}, {os.path.basename(place.filename)}:{place.lineno})"


class _Worker:
    """The parent's side of one worker process."""

    def __init__(self, payload: bytes):
        context = _context()
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, payload), daemon=True)
        self.process.start()
        theirs.close()
        self.tasks: deque[int] = deque()
        self.started = self.dead = False

    def feed(self, waiting: deque[int]) -> None:
        """Hand over tasks until the worker has enough."""
        while waiting and len(self.tasks) < PREFETCH:
            try:
                self.connection.send(waiting[0])
            except OSError:
                return  # it died; `receive` finds out
            self.tasks.append(waiting.popleft())

    def receive(self) -> Generator[tuple[int, bool, Any]]:
        """Yield what has come: (task, succeeded, outcome). A death counts as the failure of the task it was at."""
        ended = not self.process.is_alive()  # asked before the pipe is emptied, so that its last words are heard
        try:
            while self.connection.poll():
                task, succeeded, outcome = self.connection.recv()
                if task is None and not succeeded:
                    raise RuntimeError(f"expected a worker to read what it was sent, got {outcome}")
                self.started = True
                if task is not None:
                    self.tasks.popleft()
                    yield task, succeeded, outcome
        except (EOFError, OSError, pickle.UnpicklingError):
            ended = True
        if not ended:
            return
        self.dead = True
        self.process.join(STOP_SECONDS)
        if not self.started:
            raise RuntimeError(_NO_START.format(code=self.process.exitcode))
        if self.tasks:
            yield self.tasks.popleft(), False, f"the worker process died (exit code {self.process.exitcode})"

    def stop(self) -> None:
        """End the worker: it leaves by itself once its pipe is closed, unless it is in the middle of something long."""
        self.connection.close()
        self.process.join(STOP_SECONDS)
        if self.process.is_alive():
            self.process.terminate()
            self.process.join()


def _context() -> Any:  # a ForkServerContext or a SpawnContext, which share no useful base in the type stubs
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["worldmodel.data.collecting"])  # imported once; workers then start in milliseconds
    return context


def _work(connection: Connection, payload: bytes) -> None:
    """Run in the worker: do tasks until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's matter
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
