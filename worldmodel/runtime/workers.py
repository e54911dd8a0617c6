"""Run tasks in worker processes that may raise or crash, without losing the other tasks.

Each worker has its own pipe and does its tasks in order, so a crash can be attributed to one task.
The parent detects a crash by the process's sentinel, counts a failure of that task, returns the
others to the queue and starts a new worker. With a step timeout it also reads the beats of each
worker from shared memory and kills one that makes none, so a step that hangs costs one attempt.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Generator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

import cloudpickle
import torch

from worldmodel.runtime.executors import run_on_executor
from worldmodel.runtime.integers import check_integers
from worldmodel.runtime.process import end_if_starting, ignore_interrupts, interrupts_blocked
from worldmodel.runtime.tasks import Runner, attempt_task
from worldmodel.runtime.watch import StepWatch

PREFETCH = 2  # tasks per worker: the running one, and the next one to hide the latency of the pipe
STOP_SECONDS = 2.0  # grace period in which a worker closes its resources; then it is terminated, and as long after that killed
KILL_SECONDS = 10.0  # longest wait for the system to report the end of killed workers
START_DELAYS = (0.01, 0.1, 1.0, 5.0)  # seconds, until the system reports the end of a fork server
POLL_SECONDS = 0.5  # longest time between two looks at the beats of the workers
MAX_LOST = 10  # workers that may be lost with their fork server before the run gives up; one such loss costs no attempt

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
        attempts: maximum number of attempts at a task that raises, crashes its worker or hangs.
        step_timeout: seconds after which a step, a reset or the construction of an environment counts as hanging: its worker is
            killed and the attempt fails; None: no limit. Needs ``num_workers`` >= 1.
        memory_limit: fraction of the machine's memory that the running episodes may take together, in (0, 1]; an episode that
            exceeds its share ends as a failure; None: no limit.
        executor: a `concurrent.futures.Executor` that runs the tasks instead, such as a pool or a Dask cluster
            (``client.get_executor()``); ``num_workers`` is then the number of tasks that it runs at once, 0 to ask it, and
            ``memory_limit`` holds for each of its processes.

    Raises:
        TypeError: if a number is not an integer, or ``executor`` has no ``submit``.
        ValueError: if ``num_workers`` is below 0, ``attempts`` is below 1, ``step_timeout`` is not positive or is given without
            workers, or ``memory_limit`` is out of range.
    """

    num_workers: int = 0
    attempts: int = 2
    step_timeout: float | None = None
    memory_limit: float | None = 0.8
    executor: Executor | None = None

    def __post_init__(self) -> None:
        """Validate all numbers."""
        check_integers(self, {"num_workers": 0, "attempts": 1})
        for name, most in {"step_timeout": math.inf, "memory_limit": 1.0}.items():
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and 0 < value <= most and value < math.inf):
                expected = "a positive number of seconds" if most == math.inf else "a fraction in (0, 1]"
                raise ValueError(f"{name}: expected {expected} or None, got {value!r}")
        if self.executor is not None:
            self._check_executor()
        elif self.step_timeout is not None and self.num_workers == 0:
            raise ValueError(
                "step_timeout: expected num_workers >= 1 (--workers), because only a process can be stopped in the middle of "
                f"a step, got {self.step_timeout} s with num_workers=0"
            )

    def _check_executor(self) -> None:
        if not callable(getattr(self.executor, "submit", None)):
            raise TypeError(f"executor: expected a concurrent.futures.Executor or None, got {type(self.executor).__name__}")
        if self.step_timeout is not None:
            raise ValueError(
                "step_timeout: expected None with an executor, whose processes this one cannot stop; use num_workers"
            )

    @property
    def is_local(self) -> bool:
        """Whether tasks run in this process."""
        return self.executor is None and self.num_workers == 0

    @classmethod
    def of(cls, workers: int | WorkerConfig) -> WorkerConfig:
        """Convert a number of workers to a configuration; return a configuration unchanged."""
        return workers if isinstance(workers, WorkerConfig) else cls(num_workers=workers)

    def run(self, runner: Runner, tasks: Sequence[int]) -> Generator[tuple[int, int, Any]]:
        """Run all tasks, in this process or in workers; yields as `run_in_processes`."""
        if self.executor is not None:
            return run_on_executor(
                runner,
                tasks,
                self.executor,
                num_workers=self.num_workers,
                attempts=self.attempts,
                memory_limit=self.memory_limit,
            )
        if self.num_workers == 0:
            return run_here(runner, tasks, attempts=self.attempts, memory_limit=self.memory_limit)
        return run_in_processes(runner, tasks, self)


def run_in_processes(runner: Runner, tasks: Sequence[int], config: WorkerConfig) -> Generator[tuple[int, int, Any]]:
    """Run all tasks in worker processes, each with its own copy of ``runner``.

    Args:
        runner: sent to the workers by cloudpickle.
        tasks: numbers of the tasks, all different.
        config: number of processes, at least 1, and limits.

    Yields:
        (task, attempts made, outcome) in the order of completion. The outcome is the result, or the
        last error as a string if no attempt succeeded.

    Raises:
        RuntimeError: if a worker cannot start.
    """
    end_if_starting()
    payload = cloudpickle.dumps(runner)
    waiting = deque(tasks)
    tried: Counter[int] = Counter()
    lost = 0
    pool: list[_Worker] = []
    try:
        pool += [_Worker(payload, config) for _ in range(min(config.num_workers, len(waiting)))]
        while waiting or any(worker.tasks for worker in pool):
            for worker in pool:
                worker.feed(waiting)
            handles = [handle for worker in pool for handle in (worker.connection, worker.process.sentinel)]
            wait(handles, None if config.step_timeout is None else min(POLL_SECONDS, config.step_timeout / 4))
            for index, worker in enumerate(pool):
                for task, succeeded, outcome in worker.receive():
                    tried[task] += 1
                    if succeeded or tried[task] == config.attempts:
                        yield task, tried[task], outcome
                    else:
                        waiting.appendleft(task)
                if worker.ended:
                    lost += worker.lost
                    if lost > MAX_LOST:
                        raise RuntimeError(
                            f"workers: expected the fork server to keep running, got {lost} workers lost with it"
                        )
                    waiting.extendleft(reversed(worker.tasks))
                    stop_workers([worker])
                    pool[index] = _Worker(payload, config)
    finally:
        stop_workers(pool)


def run_here(
    runner: Runner, tasks: Sequence[int], *, attempts: int, memory_limit: float | None = None
) -> Generator[tuple[int, int, Any]]:
    """Run all tasks in this process; yields as `run_in_processes`, then closes the runner."""
    watch = StepWatch(memory_limit=memory_limit)
    try:
        for task in tasks:
            tried, succeeded = 0, False
            while not succeeded and tried < attempts:
                tried += 1
                succeeded, outcome = attempt_task(runner, task, watch)
            yield task, tried, outcome
    finally:
        runner.close()


class _Worker:
    """One worker process, as seen by the parent."""

    def __init__(self, payload: bytes, config: WorkerConfig):
        context, self._timeout = worker_context(), config.step_timeout
        self._beats = None if config.step_timeout is None else context.RawArray("Q", 2)
        share = None if config.memory_limit is None else config.memory_limit / config.num_workers
        self.connection, worker_connection = context.Pipe()
        self.process = context.Process(target=_work, args=(worker_connection, payload, share, self._beats), daemon=True)
        start_process(self.process)
        worker_connection.close()
        self.tasks: deque[int] = deque()
        self.started = self.ended = self.lost = False
        self._seen, self._quiet, self._looked = -1, 0.0, time.monotonic()

    def feed(self, waiting: deque[int]) -> None:
        """Send tasks until the worker has `PREFETCH`."""
        while waiting and len(self.tasks) < PREFETCH:
            try:
                self.connection.send(waiting[0])
            except OSError:
                return  # the process has ended; `receive` handles it
            self.tasks.append(waiting.popleft())

    def receive(self) -> Generator[tuple[int, bool, Any]]:
        """Yield finished tasks: (task, succeeded, outcome). A crash fails the running task, and so does a step that hangs."""
        ended, closed = not self.process.is_alive(), False  # before reading the pipe, so that the last results are not lost
        try:
            while self.connection.poll():
                task, succeeded, outcome = self.connection.recv()
                self._quiet = 0.0
                if task is None and not succeeded:
                    raise RuntimeError(f"workers: expected a worker to unpickle its tasks' runner, got {outcome}")
                self.started = True
                if task is not None:
                    self.tasks.popleft()
                    yield task, succeeded, outcome
        except (EOFError, OSError, pickle.UnpicklingError):
            ended = closed = True
        if not ended:
            if self._hangs():
                self.ended = True
                yield self.tasks.popleft(), False, f"a step took longer than step_timeout = {self._timeout:g} s"
            return
        self.ended = True
        self.process.join(STOP_SECONDS)
        self.lost = not closed and _is_running(self.process.pid)
        if self.lost:
            return  # the fork server died, which reports the ends of workers, and not this worker
        if not self.started:
            raise RuntimeError(_NO_START.format(code=self.process.exitcode))
        if self.tasks:
            yield self.tasks.popleft(), False, f"the worker process crashed (exit code {self.process.exitcode})"

    def _hangs(self) -> bool:
        """Return whether the running step has made no beat for the timeout."""
        if self._beats is None or self._timeout is None:
            return False
        (beats, running), now = self._beats, time.monotonic()
        if beats != self._seen or not running or not self.tasks:
            self._seen, self._quiet = beats, 0.0
        else:
            self._quiet += min(now - self._looked, 2 * POLL_SECONDS)  # the rest the caller, or a suspended machine, took
        self._looked = now
        return self._quiet > self._timeout


class Stoppable(Protocol):
    """A process with a pipe to it; ``lost`` says that it runs although its fork server, which reports its end, does not."""

    connection: Connection
    process: Any
    lost: bool


def stop_workers(workers: Sequence[Stoppable]) -> None:
    """Close the pipes, so that the workers exit; terminate those that do not within `STOP_SECONDS`, then kill them.

    A worker that the system cannot kill (it waits for a device) is left behind.
    """
    try:
        for worker in workers:
            worker.connection.close()
        for end in (None, "terminate", "kill"):
            running = [worker.process for worker in workers if worker.process.is_alive()]
            for process in running:
                if end is not None:
                    getattr(process, end)()
            deadline = time.monotonic() + (KILL_SECONDS if end == "kill" else STOP_SECONDS)
            for process in running:
                process.join(max(0.0, deadline - time.monotonic()))
    finally:  # at once after a second Ctrl-C
        for worker in workers:
            if worker.lost:
                with contextlib.suppress(OSError):
                    os.kill(worker.process.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
            elif worker.process.is_alive():
                worker.process.kill()


def start_process(process: Any) -> None:
    """Start a process of `worker_context`; a fork server that has just died is replaced by the next attempt."""
    for delay in (*START_DELAYS, 0.0):
        error = _start_error(process)
        if error is None:
            return
        time.sleep(delay)
    raise RuntimeError(f"workers: expected a worker process to start, got {error!r}") from error


def _start_error(process: Any) -> Exception | None:
    try:
        with interrupts_blocked():
            process.start()
    except (EOFError, ConnectionError) as error:
        return error
    return None


def _is_running(pid: int) -> bool:
    """Return whether a process exists; False where that cannot be asked."""
    if os.name != "posix":
        return False  # on Windows os.kill would end it
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def worker_context() -> Any:  # ForkServerContext or SpawnContext; the type stubs have no common base with Process and Pipe
    """Return how worker processes are started: by a fork server that has imported this library, or by spawn."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver, resource_tracker

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["worldmodel.data.collecting"])  # imported once; workers then start in milliseconds
    resource_tracker.ensure_running()  # before the block of Ctrl-C, which its start would end
    try:
        with interrupts_blocked():
            forkserver.ensure_running()
    except ChildProcessError:  # it is a child of the process of which this one is a fork, and Python waits for it in vain
        return multiprocessing.get_context("spawn")
    return context


def _work(connection: Connection, payload: bytes, memory_limit: float | None, beats: Any) -> None:
    """Run tasks until the pipe closes, in the worker process."""
    ignore_interrupts()
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    try:
        runner = cloudpickle.loads(payload)
    except Exception as error:  # reported to the parent, which raises
        connection.send((None, False, f"{type(error).__name__}: {error}"))
        return
    watch = StepWatch(memory_limit=memory_limit, beats=beats)
    with contextlib.closing(runner), contextlib.suppress(EOFError, OSError):
        connection.send((None, True, None))
        while True:
            task = connection.recv()
            connection.send((task, *attempt_task(runner, task, watch)))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def end_with_parent() -> None:
    """Wait for the end of the parent process, then end this one."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
