"""Speed and memory of `worldmodel convert` on large files, and a conversion that is killed and continued.

    python benchmarks/convert.py --gigabytes 5 --format csv --folder FOLDER

Writes a file of about that size, converts it in a process of its own, and prints megabytes per second of processor time and the
largest resident memory. With ``--kill`` the conversion is killed once some episodes are written, and started again; the
fingerprint must be that of an undisturbed one.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from worldmodel.data import EpisodeStore

COLUMNS = 20
STEPS = 500  # of an episode
BLOCK = 200  # episodes that are made at once


def write_csv(path: Path, size: float) -> None:
    """Write episodes of 20 columns of real numbers, an action and a reward."""
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(BLOCK * STEPS, COLUMNS + 2))
    tails = [",".join(f"{value:.6g}" for value in row) for row in numbers]
    header = ["episode", "time", *(f"x{i}" for i in range(COLUMNS)), "action", "reward"]
    with open(path, "w", encoding="utf-8") as file:
        file.write(",".join(header) + "\n")
        number = 0
        while file.tell() < size:
            for first in range(0, len(tails), STEPS):
                rows = enumerate(tails[first : first + STEPS])
                file.write("\n".join(f"{number},{t / 100:.2f},{tail}" for t, tail in rows) + "\n")
                number += 1


def write_hdf5(path: Path, size: float) -> None:
    """Write D4RL's form: flat arrays of float32."""
    import h5py

    rng = np.random.default_rng(0)
    block = rng.normal(size=(BLOCK * STEPS, COLUMNS + 1)).astype(np.float32)
    rows = int(size / block[0].nbytes) // len(block) * len(block)
    with h5py.File(path, "w") as file:
        observations = file.create_dataset("observations", (rows, COLUMNS), "float32", chunks=(4096, COLUMNS))
        actions = file.create_dataset("actions", (rows, 1), "float32", chunks=(4096, 1))
        ends = file.create_dataset("timeouts", (rows,), "bool", chunks=(4096,))
        for first in range(0, rows, len(block)):
            part = slice(first, first + len(block))
            observations[part], actions[part] = block[:, :COLUMNS], block[:, COLUMNS:]
            ends[part] = np.arange(len(block)) % STEPS == STEPS - 1


def write_parquet(path: Path, size: float) -> None:
    """Write lists of float32 and an episode column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    block = rng.normal(size=(BLOCK * STEPS, COLUMNS)).astype(np.float32)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), COLUMNS)
    action = pa.array(rng.normal(size=len(block)).astype(np.float32))
    writer, number = None, 0
    while number * STEPS * (COLUMNS + 1) * 4 < size:
        episode = pa.array(np.repeat(np.arange(number, number + BLOCK), STEPS))
        table = pa.table({"episode": episode, "observation": vectors, "action": action})
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
        number += BLOCK
    assert writer is not None
    writer.close()


WRITERS = {"csv": write_csv, "hdf5": write_hdf5, "parquet": write_parquet}


def command(source: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "worldmodel", "convert", str(source), "--out", str(out)]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--format", choices=WRITERS, default="csv")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--kill", type=int, default=0, help="kill once so many episodes are written, and continue")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    source = arguments.folder / f"data.{arguments.format}"
    if not source.exists():
        WRITERS[arguments.format](source, arguments.gigabytes * 1e9)
    size = source.stat().st_size
    out = arguments.folder / f"store-{arguments.format}{'-killed' if arguments.kill else ''}"
    if arguments.kill:
        process = subprocess.Popen(command(source, out), stdout=subprocess.DEVNULL)
        while process.poll() is None and (not EpisodeStore.lies_in(out) or len(EpisodeStore.open(out)) < arguments.kill):
            time.sleep(0.5)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        print(f"killed with {len(EpisodeStore.open(out))} episodes written")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    subprocess.run(command(source, out), check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    store = EpisodeStore.open(out)
    speed, memory = size / 1e6 / seconds, after.ru_maxrss / 1024
    print(f"{arguments.format}: {size / 1e9:.2f} GB, {len(store)} episodes, {store.num_steps} steps")
    print(f"{seconds:.0f} s of processor time, {time.monotonic() - began:.0f} s, {speed:.1f} MB/s of processor time")
    print(f"largest memory {memory:.0f} MiB; fingerprint {store.fingerprint[:16]}")


if __name__ == "__main__":
    main()
