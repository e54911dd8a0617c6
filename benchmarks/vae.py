"""Training speed of V relative to a straightforward implementation, in float32 and bfloat16.

The straightforward implementation stores channels first and computes the transposed convolution of
a single pixel as one. A step is loss, gradient and Adam's update on random 64x64 frames. Times are
CPU times, the best of several rounds in turns, so that the ratios also hold on a shared machine.

    python benchmarks/vae.py --out results/vae
"""

from __future__ import annotations

import argparse
import time
from functools import partial

import numpy as np
import torch
from gymnasium import spaces
from harness import fastest, write_result
from torch import Tensor

from worldmodel.models import ConvVAE, FrameBatch, VAEConfig


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


def step(vision: ConvVAE, optimizer: torch.optim.Optimizer, batch: FrameBatch, bfloat16: bool) -> None:
    """Do one update."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        loss, _ = vision.loss(batch, generator=torch.Generator().manual_seed(0))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="directory for result.json")
    parser.add_argument("--batch-size", type=int, default=256, help="frames of a step")
    parser.add_argument("--repeats", type=int, default=6, help="timed steps of each variant")
    args = parser.parse_args()
    torch.set_num_threads(1)
    space, config = spaces.Box(0, 255, (64, 64, 3), np.uint8), VAEConfig(latent_size=64)
    models = {"V": ConvVAE(space, config), "the obvious way": ObviousVAE(space, config)}
    optimizers = {name: torch.optim.Adam(model.parameters(), lr=1e-5) for name, model in models.items()}
    batch = FrameBatch(torch.randint(0, 256, (args.batch_size, 64, 64, 3), dtype=torch.uint8))
    works = {
        f"{name}, {precision}": partial(step, model, optimizers[name], batch, precision == "bfloat16")
        for name, model in models.items()
        for precision in ("float32", "bfloat16")
    }
    seconds = fastest(works, repeats=args.repeats, clock=time.process_time)
    found = {name: args.batch_size / value for name, value in seconds.items()}
    for name, speed in found.items():
        print(f"{name:<28}{speed:>8.0f} images per second of CPU time")
    write_result(args.out, {"rows": found})


if __name__ == "__main__":
    main()
