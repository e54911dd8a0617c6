"""Bytes per frame and frames per second of storage formats for 64x64 frames.

Frames are from real episodes. Speeds are the best of three runs on one thread.

- Codecs in memory (raw, PNG, zlib and zstd, in chunks of several sizes): reads random chunks.
  "single" reads single random frames, for which it decodes the complete chunk.
- Formats on disk (the store of this library, a raw memory map, and a lossless Minari data set in
  HDF5): reads random windows of 64 frames, as in training. "single" reads single frames. Minari
  reads complete episodes. The files are in the page cache.

    python benchmarks/frames.py --data doom=data/doom car=data/car --out results/frames
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import minari
import numpy as np
import torch
import zstandard
from harness import fastest, write_result
from PIL import Image

from worldmodel.adapters.minari import to_minari
from worldmodel.data import EpisodeStore

FRAMES = 2048  # for the codecs
EPISODES, READS, WINDOW = 12, 300, 64  # for the formats on disk
Codec = tuple[Callable[[np.ndarray], bytes], Callable[[bytes, tuple[int, ...]], np.ndarray]]


def png() -> Codec:
    def encode(frames: np.ndarray) -> bytes:
        file = io.BytesIO()
        Image.fromarray(frames.reshape(-1, *frames.shape[2:])).save(file, "PNG", compress_level=3)
        return file.getvalue()

    return encode, lambda data, shape: np.asarray(Image.open(io.BytesIO(data))).reshape(shape)


def codecs() -> dict[str, Codec]:
    found: dict[str, Codec] = {
        "raw": (np.ndarray.tobytes, lambda data, shape: np.frombuffer(data, np.uint8).reshape(shape).copy()),
        "png": png(),
        "zlib 1": (
            lambda frames: zlib.compress(frames.tobytes(), 1),
            lambda data, shape: np.frombuffer(zlib.decompress(data), np.uint8).reshape(shape),
        ),
    }
    for level in (1, 3, 9):
        compressor, decompressor = zstandard.ZstdCompressor(level=level), zstandard.ZstdDecompressor()
        found[f"zstd {level}"] = (
            lambda frames, c=compressor: c.compress(frames.tobytes()),
            lambda data, shape, d=decompressor: np.frombuffer(d.decompress(data), np.uint8).reshape(shape),
        )
    return found


def some_frames(path: str) -> np.ndarray:
    """Return `FRAMES` frames: the first of each episode, in complete windows of 256."""
    windows = []
    for episode in EpisodeStore.open(path):
        frames = episode.observations
        windows += [frames[i : i + 256] for i in range(0, len(frames) - 255, 256)]
        if 256 * len(windows) >= FRAMES:
            break
    return np.concatenate(windows)[:FRAMES]


def best(function: Callable[[], object]) -> float:
    """Seconds of the fastest of three calls."""
    return fastest({"call": function}, repeats=3)["call"]


def measure(frames: np.ndarray, codec: Codec, chunk: int) -> dict[str, float]:
    encode, decode = codec
    chunks = [np.ascontiguousarray(frames[i : i + chunk]) for i in range(0, len(frames), chunk)]
    stored = [encode(part) for part in chunks]
    order = np.random.default_rng(0).permutation(len(chunks))
    assert all((decode(stored[i], chunks[i].shape) == chunks[i]).all() for i in order[:4])
    written = best(lambda: [encode(part) for part in chunks[: max(1, 1024 // chunk)]])
    read = best(lambda: [decode(stored[i], chunks[i].shape) for i in order])
    return {
        "bytes": sum(map(len, stored)) / len(frames),
        "write": min(len(frames), max(chunk, 1024)) / written,
        "read": len(frames) / read,
        "single": len(chunks) / read,
    }


def on_disk(path: str, work: Path) -> dict[str, dict[str, float]]:
    """Measure each format on disk with the first episodes of a store."""
    source, store = EpisodeStore.open(path), work / "store"
    episodes = [source.read(index) for index in range(EPISODES)]
    spaces = {"observation_space": source.observation_space, "action_space": source.action_space}
    own = EpisodeStore.create(store, recipe={}, **spaces)
    own.append(episodes)
    os.environ["MINARI_DATASETS_PATH"] = str(work / "minari")
    to_minari(own, "frames/benchmark-v0")
    dataset = minari.load_dataset("frames/benchmark-v0")
    frames = np.concatenate([episode.observations for episode in episodes])
    frames.tofile(work / "raw")
    raw, rng = np.memmap(work / "raw", np.uint8, mode="r", shape=frames.shape), np.random.default_rng(0)
    lengths = np.array([len(episode) for episode in episodes])
    which = rng.choice(EPISODES, READS, p=lengths / lengths.sum())
    starts = [int(rng.integers(lengths[index] - WINDOW)) for index in which]
    offsets = np.concatenate([[0], np.cumsum(lengths + 1)])[which] + starts
    windows = list(zip(which.tolist(), starts, strict=True))
    order = rng.permutation(EPISODES).tolist()
    total = len(frames)
    return {
        "store": {
            "bytes": size(store) / total,
            "read": READS * WINDOW / best(lambda: [own.read(i, s, s + WINDOW).observations for i, s in windows]),
            "single": READS / best(lambda: [own.read(i, s, s + 1).observations for i, s in windows]),
        },
        "memory map": {
            "bytes": size(work / "raw") / total,
            "read": READS * WINDOW / best(lambda: [np.array(raw[o : o + WINDOW]) for o in offsets]),
            "single": READS / best(lambda: [np.array(raw[o]) for o in offsets]),
        },
        "Minari": {
            "bytes": size(work / "minari") / total,
            "read": total / best(lambda: [dataset[index].observations for index in order]),
        },
    }


def size(path: Path) -> int:
    """Return the size of a file, or of all files below a directory, in bytes."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, metavar="NAME=STORE", help="stores of 64x64 frames")
    parser.add_argument("--out", required=True, help="directory for result.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    result = {}
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    for name, _, path in (text.partition("=") for text in args.data):
        frames = some_frames(path)
        for codec_name, codec in codecs().items():
            for chunk in (1, 16, 64, 256):
                row = measure(frames, codec, chunk)
                result[f"{name}, {codec_name}, chunks of {chunk}"] = row
                facts = ", ".join(f"{key} {value:,.0f}" for key, value in row.items())
                print(f"{name:<6}{codec_name:<8}{chunk:>4}  {facts}", flush=True)
        with tempfile.TemporaryDirectory(dir=args.out) as work:
            for form, row in on_disk(path, Path(work).resolve()).items():
                result[f"{name}, {form}"] = row
                print(f"{name:<6}{form:<12}  {', '.join(f'{key} {value:,.0f}' for key, value in row.items())}", flush=True)
    write_result(out, {"rows": result})


if __name__ == "__main__":
    main()
