"""``worldmodel dream``."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tyro.conf import OmitArgPrefixes as Flat

import worldmodel as wm
from worldmodel.agents import check_agent, load_agent
from worldmodel.cli.options import Command, DeviceOutput, DreamKind, Flag, Result, check_free
from worldmodel.dream import Rollout, format_spread, shared_rollout
from worldmodel.runtime import write_bytes
from worldmodel.spaces import leaf_values, to_numpy


@dataclass(frozen=True, kw_only=True)
class Dream(Command):
    """Dream many futures at once with a world model and write them to an .npz file.

    Args:
        model: world model directory.
        out: .npz file to write; the program lists its arrays at the end.
        controller: controller directory; without it actions are uniformly random.
        num_dreams: number of dreams.
        horizon: maximum number of steps.
        temperature: of the dreams; 0: the most probable next z; 1: as M predicts; above 1: more random.
        seed: seed of the dreams.
        overwrite: replace an existing file.
        kind: end, precision and rewards of dreams.
        output: device and output.
    """

    RESUME = "Nothing was written; the same command starts again."

    model: str
    out: str
    controller: str | None = None
    num_dreams: int = 1024
    horizon: int = 200
    temperature: float = 1.0
    seed: int = 0
    overwrite: Flag = False
    kind: Flat[DreamKind] = field(default_factory=DreamKind)
    output: Flat[DeviceOutput] = field(default_factory=DeviceOutput)

    def run(self) -> Result:
        """Dream."""
        out = Path(self.out)
        if out.suffix != ".npz":
            raise ValueError(f"--out: expected a file name that ends in .npz, got {out}")
        check_free(self.out, overwrite=self.overwrite)
        device = self.output.choose_device()
        world = wm.WorldModel.from_pretrained(self.model, device=device)
        dreams = self.kind.dreams(world, self.num_dreams, temperature=self.temperature)
        policy = check_agent(load_agent(self.controller, device=device), world) if self.controller else None
        began = time.monotonic()
        rollout = shared_rollout(dreams, policy, self.horizon, seed=self.seed)
        if rollout is None:
            return Result("", {})
        seconds = time.monotonic() - began
        arrays = {name: getattr(rollout, name).cpu().numpy() for name in ("z", "rewards", "terminated", "mask")}
        arrays |= {} if rollout.uncertainty is None else {"uncertainty": rollout.uncertainty.cpu().numpy()}
        arrays |= nested("actions", rollout.actions) | nested("observations", world.decode(rollout.z))
        out.parent.mkdir(parents=True, exist_ok=True)
        packed = io.BytesIO()
        np.savez_compressed(packed, **arrays)
        write_bytes(out, packed.getvalue())  # atomic: after a kill the same command works
        return self.report(rollout, arrays, seconds)

    def report(self, rollout: Rollout, arrays: dict[str, np.ndarray], seconds: float) -> Result:
        """Describe the dreams and the arrays of the file."""
        steps = int(rollout.mask.sum())
        numbers = {"length": rollout.lengths.float(), "return": rollout.returns}
        scores = {name: (float(x.mean()), float(x.std(correction=0))) for name, x in numbers.items()}
        lines = [f"{self.num_dreams} dreams, {steps:,} steps in {seconds:.2f} s: {steps / seconds:,.0f} steps/s"]
        lines += [f"{name:<7} {format_spread(mean, spread)}" for name, (mean, spread) in scores.items()]
        lines += [f"  {name:<14} {array.dtype!s:<8} {array.shape}" for name, array in arrays.items()]
        lines.append(f"dreams: {self.out}")
        data = {name: {"mean": mean, "std": spread} for name, (mean, spread) in scores.items()}
        shapes = {name: {"dtype": str(array.dtype), "shape": list(array.shape)} for name, array in arrays.items()}
        return Result("\n".join(lines), data | {"steps": steps, "seconds": seconds, "arrays": shapes, "dreams": self.out})


def nested(name: str, value: object) -> dict[str, np.ndarray]:
    """Name the arrays of a nested value ``name`` or ``name/path``."""
    return {f"{name}/{path}".rstrip("/"): leaf for path, leaf in leaf_values(to_numpy(value)).items()}
