"""Costs of working on many machines, and a model of the throughput with 1 to 512 workers.

    python benchmarks/scaling.py overhead   # pools and a Dask cluster of two workers, episodes of a second
    python benchmarks/scaling.py losses     # kill -9 of a worker, then of the scheduler, in 2,000 episodes
    python benchmarks/scaling.py costs      # of a step, a frame, an update and a generation
    python benchmarks/scaling.py model      # simulated throughput, compared with the two workers of ``overhead``
    python benchmarks/scaling.py doom --price 0.1  # hours of the Doom experiment on 1, 8 and 64 machines

Each writes results/scaling/NAME.json. ``losses`` needs the extra dask; ``model`` needs ``overhead`` and ``costs``, ``doom``
needs ``costs``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import torch
from harness import header
from queue_model import Work, simulate

import worldmodel as wm
from worldmodel.data import EpisodeStore, EpisodeWriter
from worldmodel.models import MDNRNN, MDNRNNConfig, SequenceBatch
from worldmodel.runtime import RunConfig, WorkerConfig, dask_executor

RESULTS = Path(__file__).parents[1] / "results" / "scaling"
DOOM = RESULTS.parent / "doom" / "results.json"
DOOM_COLLECTION = 1155.0, 4_077_118, 10_000  # seconds on two cores, steps and episodes: results/doom/README.md


class SleepEnv(gym.Env):
    """An environment whose episodes take a second and no processor."""

    observation_space = gym.spaces.Box(-1, 1, (4,), np.float32)
    action_space = gym.spaces.Discrete(2)
    seconds = 1.0

    def reset(self, *, seed=None, options=None):
        """Begin an episode."""
        super().reset(seed=seed)
        self._steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        """Sleep for a tenth of the episode."""
        time.sleep(self.seconds / 10)
        self._steps += 1
        return np.zeros(4, np.float32), 0.0, self._steps == 10, False, {}


@contextlib.contextmanager
def cluster(workers: int) -> Iterator[tuple[subprocess.Popen, str]]:
    """A Dask scheduler and workers as programs of their own; gives the scheduler's process and its address."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "scheduler.json"
        dask, common = [sys.executable, "-m", "dask"], ["--scheduler-file", str(file), "--no-dashboard"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        scheduler = subprocess.Popen([*dask, "scheduler", "--host", "127.0.0.1", "--port", "0", *common], **quiet)
        worker = subprocess.Popen([*dask, "worker", "--nworkers", str(workers), "--nthreads", "1", *common], **quiet)
        try:
            while not file.exists():
                time.sleep(0.1)
            yield scheduler, json.loads(file.read_text(encoding="utf-8"))["address"]
        finally:
            for process in (worker, scheduler):
                process.kill()
                process.wait()


@contextlib.contextmanager
def engines() -> Iterator[dict[str, WorkerConfig]]:
    """The local pool, a pool of the standard library and a Dask cluster, with two workers each, warm."""
    with ProcessPoolExecutor(2) as pool, cluster(2) as (_, address), dask_executor(address) as dask:
        dask._client.wait_for_workers(2)
        yield {"local": WorkerConfig(num_workers=2), "pool": WorkerConfig(executor=pool), "dask": WorkerConfig(executor=dask)}


def overhead() -> dict[str, Any]:
    """Time 40 episodes of a second on two workers."""
    rows = {}
    with engines() as configs, tempfile.TemporaryDirectory() as folder:
        for name, workers in configs.items():
            wm.collect(SleepEnv, out=f"{folder}/warm-{name}", num_episodes=4, workers=workers, seed=1)
            began = time.perf_counter()
            wm.collect(SleepEnv, out=f"{folder}/{name}", num_episodes=40, workers=workers, seed=0)
            rows[name] = time.perf_counter() - began
        latency = {name: _latency(configs[name].executor) for name in ("pool", "dask")}
    ratio = {name: rows[name] / rows["local"] for name in rows}
    return {"seconds": rows, "episodes": 40, "workers": 2, "ratio": ratio, "latency": latency}


def _latency(executor: Executor | None) -> float:
    """Return the median seconds of a task that does nothing, sent and answered, of 50."""
    assert executor is not None
    seconds = []
    for number in range(50):
        began = time.perf_counter()
        executor.submit(abs, number).result()
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds))


def losses() -> dict[str, Any]:
    """Kill a worker and then the scheduler in 2,000 episodes; resume, and compare with an undisturbed run."""
    arguments: dict[str, Any] = {"num_episodes": 2000, "seed": 3}
    with tempfile.TemporaryDirectory() as folder:
        expected = wm.collect("CartPole-v1", out=f"{folder}/whole", **arguments).fingerprint
        with cluster(2) as (scheduler, address), dask_executor(address) as executor:
            executor._client.wait_for_workers(2)
            stopped = _collect_with_losses(f"{folder}/dask", scheduler, executor, arguments)
        complete = len(EpisodeStore.open(f"{folder}/dask"))
        with cluster(2) as (_, address), dask_executor(address) as executor:
            store = wm.collect("CartPole-v1", out=f"{folder}/dask", workers=WorkerConfig(executor=executor), **arguments)
        return {
            "message": stopped,
            "complete_when_the_scheduler_was_killed": complete,
            "episodes": len(store),
            "failures": len(store.failures),
            "same_fingerprint": store.fingerprint == expected,
        }


def _collect_with_losses(out: str, scheduler: subprocess.Popen, executor: Executor, arguments: dict[str, Any]) -> str:
    """Collect until the scheduler is killed; return the message of the error."""
    pids = list(executor._client.run(os.getpid).values())  # type: ignore[attr-defined]

    def kill(progress: Any) -> None:
        if progress.done >= 500 and pids:
            os.kill(pids[0], signal.SIGKILL)
            pids.clear()
        if progress.done >= 1200:
            scheduler.kill()

    try:
        wm.collect(
            "CartPole-v1", out=out, workers=WorkerConfig(executor=executor), run=RunConfig(on_progress=kill), **arguments
        )
    except RuntimeError as error:
        return str(error).partition(";")[0]
    raise AssertionError("the scheduler was killed, and nothing was said")


def costs() -> dict[str, Any]:
    """Measure what travels and what it costs, in processor time."""
    return {
        "collection": {env: _collection(env) for env in ("CartPole-v1", "Pendulum-v1")} | _frames(),
        "update of M": {name: _update(*sizes) for name, sizes in {"CartPole": (4, 2, 64), "Doom": (64, 1, 512)}.items()},
        "generation": {f"{size} candidates": {"bytes": 16 * (size + 1)} for size in (64, 256)},
    }


def _collection(env: str) -> dict[str, float]:
    """Cost of an episode on a worker and on the process that writes the store."""
    began = time.process_time()
    episodes = list(wm.data.rollouts(env, episode_ids=range(200), seed=0))
    worker = time.process_time() - began
    steps = sum(len(episode) for episode in episodes)
    parent, size = _writing(episodes)
    return {
        "steps_per_episode": steps / len(episodes),
        "worker_microseconds_per_step": 1e6 * worker / steps,
        "parent_microseconds_per_episode": 1e6 * parent / len(episodes),
        "message_bytes_per_step": sum(len(cloudpickle.dumps(episode)) for episode in episodes) / steps,
        "stored_bytes_per_step": size / steps,
    }


def _writing(episodes: list[Any]) -> tuple[float, int]:
    """Return the seconds that receiving and writing episodes take, and the size of the store in bytes."""
    sent = [cloudpickle.dumps(episode) for episode in episodes]
    with tempfile.TemporaryDirectory() as folder:
        first = episodes[0]
        spaces = {"observation_space": _space(first.observations), "action_space": _space(first.actions)}
        store = EpisodeStore.create(Path(folder) / "store", **spaces)
        began = time.process_time()
        with EpisodeWriter(store, max_steps=2**17) as writer:
            for data in sent:
                writer.add(cloudpickle.loads(data))
                writer.write_if_due()
        seconds = time.process_time() - began
        return seconds, sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())


def _space(values: Any) -> gym.Space:
    """Return a space that contains recorded values."""
    if isinstance(values, dict):
        return gym.spaces.Dict({name: _space(part) for name, part in values.items()})
    if values.dtype == np.uint8:
        return gym.spaces.Box(0, 255, values.shape[1:], np.uint8)
    if np.issubdtype(values.dtype, np.integer):
        return gym.spaces.Discrete(int(values.max()) + 1)
    return gym.spaces.Box(-np.inf, np.inf, values.shape[1:], values.dtype.type)


def _frames() -> dict[str, dict[str, float]]:
    """Cost of 100 frames on the process that writes the store: smooth pictures with noise, and their codes of 64 latents."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 200, 64)[:, None, None] + np.zeros((64, 64, 3))
    last = np.arange(100) == 99
    parts = {"actions": np.zeros(100, np.int64), "rewards": np.zeros(100), "terminations": last, "truncations": ~last & last}
    kinds: dict[str, list[Any]] = {"frames 64x64x3": [], "encoded frames": []}
    for number in range(20):
        pictures = (ramp + rng.integers(0, 4, (101, 64, 64, 3))).astype(np.uint8)
        codes = {name: rng.normal(size=(101, 64)).astype(np.float16) for name in ("log_variance", "mean")}
        for observations, episodes in zip((pictures, codes), kinds.values(), strict=True):
            episodes.append(wm.data.Episode(observations=observations, episode_id=number, **parts))
    found = {}
    for kind, episodes in kinds.items():
        parent, size = _writing(episodes)
        found[kind] = {
            "parent_microseconds_per_frame": 1e6 * parent / 2020,
            "message_bytes_per_frame": sum(len(cloudpickle.dumps(episode)) for episode in episodes) / 2020,
            "stored_bytes_per_frame": size / 2020,
        }
    return found


def _update(latent: int, action: int, hidden: int) -> dict[str, Any]:
    """Cost of an update of M with Adam on windows of 32 steps, and the bytes of its gradients."""
    torch.manual_seed(0)
    model = MDNRNN(latent, action, MDNRNNConfig(hidden_size=hidden))
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    found = {rows: 1e3 * _seconds_of_update(model, optimizer, rows) for rows in (64, 32, 16, 8, 4, 2, 1)}
    count = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters": count, "gradient_bytes": 4 * count, "milliseconds_by_windows": found}


def _seconds_of_update(model: MDNRNN, optimizer: torch.optim.Optimizer, rows: int) -> float:
    """Return the processor time of an update on ``rows`` windows of 32 steps, the fastest of five."""
    steps, mask = (rows, 32), torch.ones(rows, 32, dtype=torch.bool)
    z, action = torch.randn(rows, 33, model.latent_size), torch.randn(*steps, model.action_size)
    batch = SequenceBatch(z=z, action=action, reward=torch.randn(steps), terminated=~mask, mask=mask)
    best = float("inf")
    for _ in range(5):
        began = time.process_time()
        optimizer.zero_grad()
        model.loss(batch)[0].backward()
        optimizer.step()
        best = min(best, time.process_time() - began)
    return best


def model() -> dict[str, Any]:
    """Simulate, and compare with the measurement of two workers."""
    measured = json.loads((RESULTS / "overhead.json").read_text(encoding="utf-8"))
    found = json.loads((RESULTS / "costs.json").read_text(encoding="utf-8"))["collection"]
    frame, code = (1e-6 * found[kind]["parent_microseconds_per_frame"] for kind in ("frames 64x64x3", "encoded frames"))
    cartpole, latency = found["CartPole-v1"], measured["latency"]["dask"]
    writes = 1e-6 * cartpole["parent_microseconds_per_episode"]
    plays = 1e-6 * cartpole["worker_microseconds_per_step"] * cartpole["steps_per_episode"]
    seconds, steps, episodes = DOOM_COLLECTION
    length, played = steps / episodes, 2 * seconds / episodes  # of a Doom episode: frames, and seconds of one core
    encoded = 2 * json.loads(DOOM.read_text(encoding="utf-8"))["stages"]["encode"]["seconds"] / episodes
    second = Work(1.0, writes, latency, spread=0.0)
    works = {
        "CartPole": Work(plays, writes, latency),
        "CarRacing, 1,000 frames at 300 a second": Work(1000 / 300, 1000 * frame, latency),
        "Doom, 408 frames at 1,765 a second": Work(played, length * frame, latency),
        "the same, frames encoded by the workers": Work(played + encoded, length * code, latency),
    }
    rows: dict[str, Any] = {}
    for name, work in works.items():
        for failures in (0.0, 1.0):
            each = replace(work, failures=failures)
            count = {workers: max(2000, 200 * workers) for workers in (1, 2, 8, 64, 512)}
            speed = {workers: count[workers] / simulate(each, workers, episodes=count[workers]) for workers in count}
            rows[f"{name}, {failures:g} losses per worker and hour"] = {
                "episodes_per_second": speed,
                "efficiency": {workers: speed[workers] / (workers * speed[1]) for workers in speed},
                "limit_of_the_writer": 1 / work.parent,
            }
    simulated = simulate(second, 2, episodes=measured["episodes"])
    return {"two workers, 40 episodes of a second": {"simulated": simulated, "measured": measured["seconds"]}, "rows": rows}


AGENTS = 7  # of the Doom experiment; each is trained on a machine of its own
BANDWIDTH = 1.25e8  # bytes per second between machines: 1 Gbit/s
ROUND_TRIP = 0.5e-3  # seconds of a message between machines and back
UPDATES = {"train V": 4000, "train M": 2000}
OTHERS = "1-seed-"  # stages of two agents that are not part of the experiment's command


def _doom_stages() -> dict[str, float]:
    """Return the seconds of each stage of the Doom experiment on one machine of two cores, summed over its agents."""
    stages = {"collect": DOOM_COLLECTION[0]}
    for name, stage in json.loads(DOOM.read_text(encoding="utf-8"))["stages"].items():
        kind = name.partition(" ")[0] if name.startswith(("search ", "PPO ", "test ")) else name
        if OTHERS not in name and name != "collect":  # which found the episodes of an earlier run
            stages[kind] = stages.get(kind, 0.0) + stage["seconds"]
    return stages


def doom(price: float) -> dict[str, Any]:
    """Estimate the hours of the Doom experiment on several machines, from its stages on one."""
    costs_found = json.loads((RESULTS / "costs.json").read_text(encoding="utf-8"))
    update = costs_found["update of M"]["Doom"]
    writing = 1e-6 * costs_found["collection"]["frames 64x64x3"]["parent_microseconds_per_frame"]
    by_windows = {int(rows): value for rows, value in update["milliseconds_by_windows"].items()}
    vision = wm.ConvVAE(gym.spaces.Box(0, 255, (64, 64, 3), np.uint8), wm.VAEConfig(latent_size=64))
    gradient = {"train V": 4 * sum(p.numel() for p in vision.parameters()), "train M": update["gradient_bytes"]}
    on_one = _doom_stages()
    rows = {}
    for machines in (1, 8, 64):
        hours = {}
        for stage, seconds in on_one.items():
            if stage in UPDATES:
                share = by_windows[max(1, 64 // machines)] / by_windows[64]  # of the computation of an update
                ring = 2 * (machines - 1) / machines * gradient[stage] / BANDWIDTH + ROUND_TRIP * np.log2(machines)
                hours[stage] = (seconds * share + UPDATES[stage] * ring) / 3600
            elif stage == "collect":
                hours[stage] = (
                    max(seconds / machines, DOOM_COLLECTION[1] * writing) / 3600
                )  # all frames pass through one process
            elif stage in ("search", "PPO"):
                hours[stage] = seconds / min(machines, AGENTS) / 3600
            elif stage in ("probe", "starts"):
                hours[stage] = seconds / 3600
            else:
                hours[stage] = seconds / machines / 3600
        total = sum(hours.values())
        rows[machines] = {"hours": total, "machine_hours": machines * total, "price": price * machines * total, "stages": hours}
    return {"price_of_a_machine_hour": price, "machines": rows}


def main() -> None:
    """Run a part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {part.__name__: part for part in (overhead, losses, costs, model)}
    parser.add_argument("part", choices=[*parts, "doom"])
    parser.add_argument("--price", type=float, default=0.1, help="of an hour of a machine")
    given = parser.parse_args()
    part = given.part
    result = {**header(), **(doom(given.price) if part == "doom" else parts[part]())}
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{part}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
