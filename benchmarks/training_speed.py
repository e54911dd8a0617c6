"""Training speed of M at three sizes: `MDNRNN.loss` relative to the straightforward implementation.

The straightforward implementation ("obvious") uses `nn.LSTM`, the ``log_prob`` of the mixture and
autograd (`MDNRNN.step_losses`). Speeds are steps per second of complete updates (loss, backward,
clipping, Adam). "memory kept" is after `keep_freed_memory`, in a separate process. Within a
process, the variants run in turns and the best time of each counts. In "doom, padded", windows hold
100 to 500 steps of 500, as in that game, and only these steps count. Elsewhere all windows are
full.

    python benchmarks/training_speed.py --threads 2 --out results/training_speed
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from harness import fastest, write_result
from torch import Tensor

from worldmodel.models import MDNRNN, MDNRNNConfig, SequenceBatch, mdnrnn
from worldmodel.runtime import keep_freed_memory
from worldmodel.training import make_optimizer

SIZES = {  # latents, actions, hidden units, batch, window
    "doom": (64, 3, 512, 100, 500),
    "doom, padded": (64, 3, 512, 100, 500),
    "car-racing": (32, 3, 256, 100, 500),
    "cartpole": (4, 2, 128, 64, 64),
}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
VARIANTS = ("obvious, float32", "obvious, bfloat16", "loss, float32", "loss, bfloat16")


def make(size: str) -> tuple[MDNRNN, SequenceBatch]:
    """Build a model with random weights and a batch of noise."""
    d, a, hidden, b, t = SIZES[size]
    torch.manual_seed(0)
    model = MDNRNN(d, a, MDNRNNConfig(hidden_size=hidden, num_components=5))
    action = torch.nn.functional.one_hot(torch.randint(a, (b, t)), a).float()
    least = t // 5 if "padded" in size else t
    counted = torch.arange(t) < torch.linspace(least, t, b).round()[torch.randperm(b)].unsqueeze(1)
    return model, SequenceBatch(torch.randn(b, t + 1, d), action, torch.randn(b, t), torch.rand(b, t) < 0.01, counted)


def obvious_loss(model: MDNRNN, batch: SequenceBatch) -> Tensor:
    """Compute the loss by `nn.LSTM`, `log_prob` and autograd."""
    ours, mdnrnn.run_lstm = mdnrnn.run_lstm, lambda lstm, inputs, state, lengths: lstm(inputs, state)
    try:
        losses = model.step_losses(batch)
    finally:
        mdnrnn.run_lstm = ours
    return (losses.latent / batch.z.shape[-1] + losses.reward + losses.termination)[batch.mask].mean()


def updates(model: MDNRNN, batch: SequenceBatch, *, clip: bool = True) -> dict[str, Callable[[], None]]:
    """Return a function per variant that performs one update, with clipping of the gradient's norm or without."""
    parameters = list(model.parameters())
    optimizer = make_optimizer("adam", parameters, learning_rate=1e-4)

    def update(loss: Callable[[], Tensor], half: bool) -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16) if half else contextlib.nullcontext():
            value = loss()
        value.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(parameters, 10.0)
        optimizer.step()

    losses = {"obvious": lambda: obvious_loss(model, batch), "loss": lambda: model.loss(batch)[0]}
    return {name: lambda name=name: update(losses[name.split(",")[0]], "bfloat16" in name) for name in VARIANTS}


def measure(size: str, rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Return steps per second of each variant: the best of several rounds in turns."""
    model, batch = make(size)
    seconds = fastest(updates(model, batch), repeats=rounds, clock=clock)
    return {name: batch.weight / value for name, value in seconds.items()}


def child(size: str, rounds: int, threads: int, clock: str, keep: bool) -> dict[str, float]:
    """Run `measure` in a separate process."""
    command = [sys.executable, __file__, "--size", size, "--rounds", str(rounds), "--threads", str(threads), "--clock", clock]
    result = subprocess.run([*command, *["--keep"][:keep]], capture_output=True, encoding="utf-8", check=True)
    return json.loads(result.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n", 1)[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="directory for result.json")
    parser.add_argument("--size", choices=SIZES, help="only this size, in this process, as JSON on standard output")
    parser.add_argument("--keep", action="store_true", help="keep freed memory, with --size")
    parser.add_argument("--rounds", type=int, default=5, help="measurements per variant")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: for one thread on a shared machine")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.keep:
        keep_freed_memory()
    if args.size:
        print(json.dumps(measure(args.size, args.rounds, CLOCKS[args.clock])))
        return
    content: dict[str, object] = {}
    for size in SIZES:
        rounds = args.rounds if size != "cartpole" else 20 * args.rounds
        rows = {f"{name}, memory {'kept' if keep else 'returned'}": speed for keep in (False, True)
                for name, speed in child(size, rounds, args.threads, args.clock, keep).items()}  # fmt: skip
        base = rows["obvious, float32, memory returned"]
        content[size] = {
            name: {"steps_per_second": round(speed), "ratio": round(speed / base, 2)} for name, speed in rows.items()
        }
        for name, speed in rows.items():
            print(f"{size:12s} {name:36s} {speed:8.0f} steps/s, {speed / base:.2f}", flush=True)
        if args.out:  # after each size, as the benchmark takes minutes
            write_result(args.out, content)


if __name__ == "__main__":
    main()
