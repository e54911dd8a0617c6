"""A simulation of the queue of `worldmodel.runtime.executors`: throughput with many workers, latency and losses."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

from worldmodel.runtime.executors import AHEAD, BATCH_SECONDS, MOST_TASKS


@dataclass(frozen=True)
class Work:
    """A collection, as the model sees it.

    Args:
        episode: seconds of an episode on a worker, exponentially spread around it by ``spread``.
        parent: seconds of the process that writes the store per episode.
        latency: seconds of a message to a worker and back.
        failures: losses of a worker per hour.
        restart: seconds until a lost worker is replaced.
        spread: relative standard deviation of an episode's time.
    """

    episode: float
    parent: float
    latency: float
    failures: float = 0.0
    restart: float = 60.0
    spread: float = 0.5


def simulate(work: Work, workers: int, *, episodes: int, seed: int = 0) -> float:
    """Return the simulated seconds of a collection, with the batching of `worldmodel.runtime.executors`."""
    rng = np.random.default_rng(seed)
    waiting, finished, parent_free = episodes, 0, 0.0
    free = [0.0] * workers  # when each worker has done all that it was sent
    events: list[tuple[float, int, int, bool]] = []  # arrival at the parent, worker, episodes, done
    batch = max(1, min(MOST_TASKS, int(BATCH_SECONDS / work.episode)))

    def send(worker: int, now: float) -> None:
        nonlocal waiting
        size = min(waiting, batch, max(1, -(-waiting // (AHEAD * workers))))
        if size == 0:
            return
        waiting -= size
        seconds = work.episode * np.maximum(0.1, rng.normal(1.0, work.spread, size)).sum()
        begins = max(free[worker], now + work.latency / 2)
        lost = rng.random() < 1 - np.exp(-seconds * work.failures / 3600)
        ends = begins + (rng.random() * seconds + work.restart if lost else seconds)
        free[worker] = ends
        heapq.heappush(events, (ends + work.latency / 2, worker, size, not lost))

    for _ in range(AHEAD):
        for worker in range(workers):
            send(worker, 0.0)
    now = 0.0
    while finished < episodes:
        arrived, worker, size, done = heapq.heappop(events)
        now = max(arrived, parent_free)
        if done:
            now += size * work.parent
            finished += size
        else:
            waiting += size
        parent_free = now
        send(worker, now)
    return now
