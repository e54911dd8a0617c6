"""Peak memory of training for two sizes of data, and resuming after ``kill -9``.

Memory: writes synthetic stores of two sizes to a temporary directory, with wide Box observations
and episodes of a few hundred steps. `fit` trains on each in a separate process, reads windows from
disk, and reports its peak resident memory. The two peaks must be equal within 10 %, although one
store is ten times as large.

Kills: `fit` runs in a process that is killed by ``kill -9`` at random times and resumed until it is
complete. The weights must equal those of an uninterrupted run bit by bit, and no kill may lose a
saved state.

    python benchmarks/training_memory.py --out results/training_memory
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from gymnasium import spaces
from harness import write_result

from worldmodel.data import Episode, EpisodeStore
from worldmodel.models import WORLD_FILE, MDNRNNConfig, WorldModel
from worldmodel.runtime import files
from worldmodel.training import DataConfig, TrainingConfig, fit

WIDTH, EPISODES_AT_ONCE, TOLERANCE = 256, 64, 0.10
OBSERVATION, ACTION = spaces.Box(-np.inf, np.inf, (WIDTH,), np.float32), spaces.Discrete(4)


def write_store(path: Path, megabytes: int) -> EpisodeStore:
    """Write a store of episodes of 200 to 400 steps with ``megabytes`` of observations."""
    store = EpisodeStore.create(path, observation_space=OBSERVATION, action_space=ACTION)
    rng = np.random.default_rng(megabytes)
    written = 0
    while written < megabytes * 10**6:
        episodes = []
        for number in range(EPISODES_AT_ONCE):
            steps = int(rng.integers(200, 401))
            walk = 0.1 * rng.standard_normal((steps + 1, WIDTH), dtype=np.float32).cumsum(axis=0)
            last = np.arange(steps) == steps - 1
            episodes.append(
                Episode(
                    observations=walk,
                    actions=rng.integers(4, size=steps),
                    rewards=walk[1:, 0].astype(np.float64),
                    terminations=last,
                    truncations=~last & False,
                    episode_id=len(store) + number,
                )
            )
            written += walk.nbytes
        store.append(episodes)
    return store


def train(store: Path, out: Path, updates: int) -> WorldModel:
    """Fit a small model to a store; resumes an interrupted run."""
    torch.set_num_threads(1)
    return fit(
        store,
        out=out,
        data_config=DataConfig(window=32, batch_size=16),
        training_config=TrainingConfig(num_updates=updates, evaluate_every=25, max_test_batches=10),
        config=MDNRNNConfig(hidden_size=64, num_components=2, output_dropout=0.1),
    )


def peak_megabytes() -> float:
    """Return the peak resident memory of this process in MB.

    On Linux, ``ru_maxrss`` includes the parent's peak, so this reads ``VmHWM`` there.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def child(store: Path, out: Path, updates: int) -> list[str]:
    """Return the command of a process that trains and prints its peak memory."""
    return [sys.executable, __file__, "--child", str(store), str(out), str(updates)]


def measure_memory(folder: Path, megabytes: int, updates: int) -> dict[str, float | int]:
    """Write a store, train on it in a new process, and delete it."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        store = write_store(Path(temporary) / "store", megabytes)
        size = sum(file.stat().st_size for file in store.path.rglob("*") if file.is_file()) / 1e6
        facts = {"store_mb": round(size), "episodes": len(store), "steps": store.num_steps, "updates": updates}
        start = time.perf_counter()
        command = child(store.path, Path(temporary) / "run", updates)
        printed = subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout
        return facts | {"peak_rss_mb": round(float(printed), 1), "seconds": round(time.perf_counter() - start, 1)}


def saved_update(out: Path) -> int:
    """Return the update of the saved state; 0 if there is none."""
    path = out / "training" / "state.safetensors"
    return json.loads(files.load_tensors(path)[1]["state"])["state"]["update"] if path.exists() else 0


def measure_kills(folder: Path, updates: int) -> dict[str, object]:
    """Kill and resume a run until it is complete; compare it with an uninterrupted run."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        store = write_store(Path(temporary) / "store", 5).path
        subprocess.run(child(store, Path(temporary) / "whole", updates), check=True, capture_output=True)
        out, saved = Path(temporary) / "killed", [0]
        while not (out / WORLD_FILE).is_file():
            process = subprocess.Popen(child(store, out, updates), stdout=subprocess.DEVNULL)
            while process.poll() is None and saved_update(out) == saved[-1]:  # wait for progress since the last kill
                time.sleep(0.05)
            time.sleep(rng.uniform(0.0, 2.0))
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                saved.append(saved_update(out))
        whole, killed = (WorldModel.from_pretrained(Path(temporary) / name) for name in ("whole", "killed"))
        logs = [
            (Path(temporary) / name / "training" / "metrics.jsonl").read_text(encoding="utf-8") for name in ("whole", "killed")
        ]
        return {
            "updates": updates,
            "kills": len(saved) - 1,
            "saved_update_after_each_kill": saved[1:],
            "nothing_saved_was_lost": saved == sorted(saved),
            "same_weights_as_never_killed": whole.fingerprint == killed.fingerprint,
            "same_log_as_never_killed": logs[0] == logs[1],
        }


def main() -> int:
    """Measure memory and kills, and write result.json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, help="directory for result.json")
    parser.add_argument("--megabytes", type=int, nargs=2, default=[200, 2000], help="sizes of the stores (default: 200 2000)")
    parser.add_argument("--updates", type=int, default=300, help="updates of each run (default: 300)")
    parser.add_argument("--temporary", type=Path, help="where the stores are made (default: the system's temporary directory)")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        store, out, updates = arguments.child
        train(Path(store), Path(out), int(updates))
        print(peak_megabytes())
        return 0
    if arguments.out is None:
        parser.error("--out: expected a directory")
    torch.set_num_threads(1)
    memory = [measure_memory(arguments.temporary, size, arguments.updates) for size in arguments.megabytes]
    growth = float(memory[1]["peak_rss_mb"]) / float(memory[0]["peak_rss_mb"]) - 1
    result: dict[str, object] = {"memory": memory, "growth": round(growth, 4), "tolerance": TOLERANCE}
    print(json.dumps(result, indent=2), flush=True)
    kills = measure_kills(arguments.temporary, arguments.updates)
    print(json.dumps(kills, indent=2))
    write_result(arguments.out, result | {"kills": kills})
    lossless = all(
        kills[name] for name in ("nothing_saved_was_lost", "same_weights_as_never_killed", "same_log_as_never_killed")
    )
    return 0 if abs(growth) <= TOLERANCE and lossless else 1


if __name__ == "__main__":
    sys.exit(main())
