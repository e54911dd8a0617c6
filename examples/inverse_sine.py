"""Fit a mixture density network to the inverse of a sine (Bishop 1994, section 5).

The data are x = y + 0.3 sin(2 pi y) + noise with y uniform in [0, 1]. Up to three values of y give
the same x. A network that predicts one Gaussian puts its mean between them; a mixture of five
represents all of them.

    python examples/inverse_sine.py --out inverse_sine.png
"""

from __future__ import annotations

import argparse
import math

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from worldmodel.mixtures import MixtureDensityNetwork


def draw_data(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    y = torch.rand(n, 1, generator=generator)
    noise = 0.05 * torch.randn(n, 1, generator=generator)
    return y + 0.3 * torch.sin(2 * math.pi * y) + noise, y


def fit(x: Tensor, y: Tensor, n_components: int, steps: int) -> MixtureDensityNetwork:
    network = MixtureDensityNetwork(1, 1, n_components, hidden_dim=32)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        loss = network.loss(x, y).mean()  # nats per example
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network


@torch.no_grad()
def draw_picture(panels: list[tuple[str, MixtureDensityNetwork, float]], x: Tensor, y: Tensor, generator: torch.Generator):
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.4), sharex=True, sharey=True, layout="constrained")
    grid_x, grid_y = torch.linspace(-0.2, 1.2, 400), torch.linspace(-0.35, 1.35, 400)
    for axis, (title, network, nll) in zip(axes, panels, strict=True):
        density = network(grid_x[:, None]).log_prob(grid_y[:, None, None].expand(-1, 400, 1)).exp()  # (y, x)
        axis.pcolormesh(grid_x, grid_y, density.sqrt(), cmap="Blues", vmin=0, vmax=3, shading="gouraud", rasterized=True)
        axis.scatter(x, y, s=5, color="0.35", alpha=0.35, linewidths=0, label="data")
        sample = network.sample(x, generator=generator)
        axis.scatter(x, sample, s=5, color="#d1495b", alpha=0.6, linewidths=0, label="samples from the model")
        axis.set(title=f"{title}: NLL {nll:+.2f} nats", xlabel="x", xlim=(-0.2, 1.2), ylim=(-0.35, 1.35))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("y")
    axes[1].legend(loc="upper left", frameon=False, markerscale=3, title="shading: density of the model")
    return figure


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", default="inverse_sine.png", help="the picture (default: inverse_sine.png)")
    parser.add_argument("--steps", type=int, default=1500, help="training steps of each network (default: 1500)")
    parser.add_argument("--seed", type=int, default=0, help="seed of data, weights and samples (default: 0)")
    arguments = parser.parse_args()
    generator = torch.Generator().manual_seed(arguments.seed)
    torch.manual_seed(arguments.seed)
    (x, y), held_out = draw_data(1000, generator), draw_data(10_000, generator)
    panels = []
    for title, n_components in (("A single Gaussian", 1), ("A mixture of five", 5)):
        network = fit(x, y, n_components, arguments.steps)
        panels.append((title, network, network.loss(*held_out).mean().item()))
        print(f"{title}: {panels[-1][2]:+.3f} nats per held-out example")
    draw_picture(panels, x, y, generator).savefig(arguments.out, dpi=150)
    print(f"wrote {arguments.out}")
    return 0


if __name__ == "__main__":
    main()
