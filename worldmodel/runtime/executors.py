"""Run tasks on any `concurrent.futures.Executor`: a pool of processes or threads, or a Dask cluster.

Tasks travel in batches of about a second, because a cluster needs some 10 ms for each message. What the tasks share (the
constructor of an environment, a policy, V and M) is sent to a worker once: a batch names it by its digest, and a worker that
does not have it answers "missing". Large parts of it (`Kept`) have digests of their own, so that later runs on the same workers
do not send V and M again. A batch whose worker was lost returns to the queue, split into single tasks; a task that
fails, or loses its worker, as often as ``attempts`` allows is reported. When nothing is left to start, a batch that takes much
longer than the others is started a second time, and the first result counts.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import threading
import time
from collections import Counter, deque
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from worldmodel.runtime.kept import MissingPartError, dump, keep, load
from worldmodel.runtime.tasks import attempt_task
from worldmodel.runtime.watch import StepWatch
from worldmodel.version import __version__

if TYPE_CHECKING:
    from worldmodel.runtime.tasks import Runner

BATCH_SECONDS = 1.0  # work in one message
MOST_TASKS = 64  # in one message
AHEAD = 2  # batches per worker that are running or on their way
DEFAULT_WORKERS = 8  # of an executor that does not say how many it has
KEPT_RUNNERS = 2  # that a worker keeps open: a search alternates between generations and tests
STRAGGLES = 4.0  # times the median time of a batch, after which it is started again
LEAST_STRAGGLE = 5.0  # seconds
PATIENCE = 3  # answers that something is missing, after which a batch brings it, although another one brought it to the worker

MISSING, PART_MISSING = "missing", "part missing"  # answers of a worker that needs more

Payload = tuple[bytes, dict[str, bytes]]

_cache = threading.local()  # of each thread of a worker: runners and large parts by digest


@dataclass(frozen=True)
class BatchResult:
    """What a worker sends back.

    Args:
        worker: its machine and process.
        problem: why no task was run: "missing" (the runner was not sent yet), "part missing" (a large part of it) or another
            text; None if they were.
        outcomes: (task, succeeded, result or message) of each.
        seconds: time that the tasks took.
    """

    worker: str
    problem: str | None = None
    outcomes: tuple[tuple[int, bool, Any], ...] = ()
    seconds: float = 0.0


def run_batch(
    digest: str, payload: Payload | None, tasks: Sequence[int], version: str, memory_limit: float | None
) -> BatchResult:
    """Run tasks in a worker.

    Args:
        digest: name of the runner.
        payload: the pickled runner, and its large parts by digest, if they are sent too; None if the worker should have it.
        tasks: numbers of the tasks.
        version: version of the library that sends them.
        memory_limit: as in `WorkerConfig`.
    """
    name = f"{platform.node() or 'worker'}, process {os.getpid()}"
    if version != __version__:
        return BatchResult(
            name, f"expected worldmodel {version}, as on the machine that collects, got {__version__}; install the same"
        )
    runners, parts = _cache.__dict__.setdefault("runners", {}), _cache.__dict__.setdefault("parts", {})
    if digest not in runners:
        if payload is None:
            return BatchResult(name, MISSING)
        try:
            keep(parts, payload[1])
            runner = load(payload[0], parts)
        except MissingPartError:
            return BatchResult(name, PART_MISSING)
        except Exception as error:  # a module that the worker lacks, for example
            text = (
                f"expected a worker that can import what the tasks need, got {type(error).__name__}: {error}; install it there"
            )
            return BatchResult(name, text)
        while len(runners) >= KEPT_RUNNERS:
            runners.pop(next(iter(runners))).close()
        runners[digest] = runner
    watch, start = StepWatch(memory_limit=memory_limit), time.perf_counter()
    outcomes = tuple((task, *attempt_task(runners[digest], task, watch)) for task in tasks)
    return BatchResult(name, None, outcomes, time.perf_counter() - start)


def run_on_executor(
    runner: Runner,
    tasks: Sequence[int],
    executor: Executor,
    *,
    num_workers: int = 0,
    attempts: int = 2,
    memory_limit: float | None = None,
) -> Generator[tuple[int, int, Any]]:
    """Run all tasks on an executor; yields as `worldmodel.runtime.workers.run_in_processes`.

    Args:
        runner: sent to the workers by cloudpickle.
        tasks: numbers of the tasks, all different.
        executor: runs them.
        num_workers: number of tasks that it runs at once; 0 asks it.
        attempts: as in `WorkerConfig`.
        memory_limit: as in `WorkerConfig`, for each process.

    Raises:
        RuntimeError: if the executor breaks, after everything that was complete has been yielded; or if a worker has another
            version of the library or cannot import what the tasks need. The message names the worker.
    """
    queue = _Queue(runner, tasks, executor, num_workers or count_workers(executor), attempts, memory_limit)
    with contextlib.closing(queue):
        while queue.unfinished:
            queue.submit()
            yield from queue.receive()


class _Queue:
    """The tasks of one run, as seen by the parent."""

    def __init__(
        self,
        runner: Runner,
        tasks: Sequence[int],
        executor: Executor,
        workers: int,
        attempts: int,
        memory_limit: float | None,
    ):
        self._executor, self._workers, self._attempts, self._memory_limit = executor, workers, attempts, memory_limit
        self._payload, self._parts = dump(runner)
        self._digest = hashlib.sha256(self._payload).hexdigest()
        self._waiting: deque[list[int]] = deque([task] for task in tasks)
        self.unfinished = set(tasks)
        self._tried: Counter[int] = Counter()
        self._running: dict[Future[BatchResult], tuple[list[int], float, int]] = {}  # tasks, start, misses of the runner
        self._sent: set[tuple[str, str]] = set()  # workers, and what they were sent: the runner, or its large parts too
        self._seconds: deque[float] = deque(maxlen=32)  # per task
        self._batches: deque[float] = deque(maxlen=32)  # per batch, with the journey
        self._duplicated: set[int] = set()

    def submit(self) -> None:
        """Start batches until every worker has enough."""
        while self._waiting and len(self._running) < AHEAD * self._workers:
            self._start(self._next_batch())
        if not self._waiting:
            self._repeat_stragglers()

    def receive(self) -> Generator[tuple[int, int, Any]]:
        """Wait for batches; yield the tasks that are done."""
        done, _ = wait(self._running, timeout=1.0, return_when=FIRST_COMPLETED)
        broken: BaseException | None = None
        for future in done:
            tasks, started, misses = self._running.pop(future)
            error = CancelledError() if future.cancelled() else future.exception()
            if isinstance(error, (BrokenExecutor, CancelledError)):  # a cluster cancels what its scheduler lost
                broken = error
            elif error is not None:
                yield from self._lost(tasks, error)
            else:
                yield from self._returned(tasks, started, misses, future.result())
        if broken is not None:
            raise RuntimeError(
                f"executor: expected its workers to keep running, got {type(broken).__name__} with "
                f"{len(self.unfinished)} tasks left; what is complete is kept, and the same call with a new executor resumes"
            ) from broken

    def close(self) -> None:
        """Drop what has not been started."""
        for future in self._running:
            future.cancel()

    def _next_batch(self) -> list[int]:
        """As many waiting tasks as take about a second, and not more than a fair share of those that are left."""
        batch = self._waiting.popleft()
        if self._seconds and batch[0] not in self._tried:
            mean = sum(self._seconds) / len(self._seconds)
            share = -(-len(self._waiting) // (AHEAD * self._workers))
            size = max(1, min(MOST_TASKS, share, int(BATCH_SECONDS / max(mean, 1e-4))))
            while len(batch) < size and self._waiting and self._waiting[0][0] not in self._tried:
                batch += self._waiting.popleft()
        return batch

    def _start(self, tasks: list[int], payload: Payload | None = None, misses: int = 0) -> None:
        arguments = (self._digest, payload, tasks, __version__, self._memory_limit)
        try:
            future = self._executor.submit(run_batch, *arguments, **_options(self._executor))
        except (BrokenExecutor, RuntimeError) as error:
            raise RuntimeError(
                f"executor: expected one that takes tasks, got {type(error).__name__}: {error}; what is complete is kept, and "
                "the same call with a new executor resumes"
            ) from error
        self._running[future] = tasks, time.perf_counter(), misses

    def _returned(self, tasks: list[int], started: float, misses: int, result: BatchResult) -> Generator[tuple[int, int, Any]]:
        if result.problem in (MISSING, PART_MISSING):  # it may be on its way with another batch
            asked = result.worker, result.problem
            payload = self._payload, self._parts if result.problem == PART_MISSING else {}
            send = misses >= PATIENCE or asked not in self._sent
            self._sent.add(asked)
            self._start(tasks, payload if send else None, misses + 1)
            return
        if result.problem is not None:
            raise RuntimeError(f"worker {result.worker}: {result.problem}")
        self._seconds.append(result.seconds / len(tasks))
        self._batches.append(time.perf_counter() - started)
        for task, succeeded, outcome in result.outcomes:
            if task in self.unfinished:
                yield from self._finished(task, succeeded, outcome)

    def _lost(self, tasks: list[int], error: BaseException) -> Generator[tuple[int, int, Any]]:
        """Return the tasks of a lost worker to the queue, one by one, so that the one at fault is found."""
        for task in reversed([task for task in tasks if task in self.unfinished]):
            if len(tasks) > 1:
                self._tried.setdefault(task, 0)
                self._waiting.appendleft([task])
            else:
                yield from self._finished(task, False, f"its worker was lost ({type(error).__name__}: {error})")

    def _finished(self, task: int, succeeded: bool, outcome: Any) -> Generator[tuple[int, int, Any]]:
        self._tried[task] += 1
        if succeeded or self._tried[task] >= self._attempts:
            self.unfinished.remove(task)
            yield task, self._tried[task], outcome
        else:
            self._waiting.append([task])

    def _repeat_stragglers(self) -> None:
        """Start a batch again that takes much longer than the others; an episode is a function of its number."""
        if not self._batches:
            return
        limit = max(LEAST_STRAGGLE, STRAGGLES * sorted(self._batches)[len(self._batches) // 2])
        now = time.perf_counter()
        for tasks, started, _ in list(self._running.values()):
            if now - started > limit and not self._duplicated.issuperset(tasks) and len(self._running) < AHEAD * self._workers:
                self._duplicated.update(tasks)
                self._start(tasks)


def count_workers(executor: Executor) -> int:
    """Return the number of tasks that an executor runs at once, if it says so."""
    client = getattr(executor, "_client", None)
    if client is not None:  # Dask
        return max(1, sum(client.ncores().values()))
    return getattr(executor, "_max_workers", None) or DEFAULT_WORKERS


def _options(executor: Executor) -> dict[str, Any]:
    """Keywords of `submit`: Dask takes two calls with equal arguments for one, unless told otherwise."""
    return {"pure": False} if hasattr(executor, "_client") else {}
