"""Training speed of V relative to a straightforward implementation, in float32 and bfloat16.

The straightforward implementation stores channels first and computes the transposed convolution of
a single pixel as one. A step is loss, gradient and Adam's update on random 64x64 frames. Times are
CPU times, the best of several rounds in turns, so that the ratios also hold on a shared machine.

    python benchmarks/vae.py --out results/vae
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from pathlib import Path

import numpy as np
import torch
from gymnasium import spaces
from known_process import machine
from torch import Tensor

from worldmodel.models import ConvVAE, FrameBatch, VAEConfig

ROUNDS = 6


class ObviousVAE(ConvVAE):
    """The same computation in a straightforward implementation."""

    def decode_images(self, latents: Tensor) -> Tensor:
        """Decode with channels first in memory."""
        image = self.expand(latents)[:, :, None, None]
        for layer in self.deconvolutions[:-1]:
            image = layer(image).relu()
        return self.deconvolutions[-1](image).permute(0, 2, 3, 1).float().sigmoid()

    def _encode_small_images(self, image: Tensor) -> tuple[Tensor, Tensor]:
        image = image.permute(0, 3, 1, 2).contiguous()
        for layer in self.convolutions:
            image = layer(image).relu()
        features = image.flatten(1)
        return self.mean_head(features).float(), self.log_variance_head(features).float()


def seconds_of_a_step(vision: ConvVAE, optimizer: torch.optim.Optimizer, batch: FrameBatch, bfloat16: bool) -> float:
    began = time.process_time()
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        loss, _ = vision.loss(batch, generator=torch.Generator().manual_seed(0))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="directory for result.json")
    parser.add_argument("--batch-size", type=int, default=256)
    args = parser.parse_args()
    torch.set_num_threads(1)
    space, config = spaces.Box(0, 255, (64, 64, 3), np.uint8), VAEConfig(latent_size=64)
    models = {"V": ConvVAE(space, config), "the obvious way": ObviousVAE(space, config)}
    optimizers = {name: torch.optim.Adam(model.parameters(), lr=1e-5) for name, model in models.items()}
    batch = FrameBatch(torch.randint(0, 256, (args.batch_size, 64, 64, 3), dtype=torch.uint8))
    found: dict[str, float] = {}
    for _ in range(ROUNDS):
        for name, model in models.items():
            for precision in ("float32", "bfloat16"):
                took = seconds_of_a_step(model, optimizers[name], batch, precision == "bfloat16")
                key = f"{name}, {precision}"
                found[key] = max(found.get(key, 0.0), args.batch_size / took)
    for name, speed in found.items():
        print(f"{name:<28}{speed:>8.0f} images per second of CPU time")
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    header = {"command": shlex.join(["python", *sys.argv]), **machine(), "threads": 1}
    (out / "result.json").write_text(json.dumps(header | {"rows": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
