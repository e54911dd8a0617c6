"""Largest difference between M over a sequence and M step by step, over all options."""

from __future__ import annotations

import argparse
import itertools

import torch
from harness import write_result

from worldmodel.mixtures import Factorization
from worldmodel.models import MDNRNN, MDNRNNConfig


@torch.no_grad()
def difference(config: MDNRNNConfig, *, steps: int, dtype: torch.dtype) -> float:
    """Return the largest absolute difference in outputs and state of a random model."""
    torch.manual_seed(0)
    model = MDNRNN(8, 3, config).to(dtype).eval()
    z, action = torch.randn(4, steps, 8, dtype=dtype), torch.randn(4, steps, 3, dtype=dtype)
    whole, last = model(z, action)
    state, worst = model.initial_state(4), 0.0
    for t in range(steps):
        one, state = model.step(z[:, t], action[:, t], state)
        pairs = [
            (one.latent.log_weights, whole.latent.log_weights[:, t]),
            (one.latent.mean, whole.latent.mean[:, t]),
            (one.latent.log_scale, whole.latent.log_scale[:, t]),
            (one.reward.mean, whole.reward.mean[:, t]),
            (one.termination_logit, whole.termination_logit[:, t]),
        ]
        worst = max(worst, *((a - b).abs().max().item() for a, b in pairs))
    return max(worst, *((a - b).abs().max().item() for a, b in zip(state, last, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--steps", type=int, default=500, help="length of the sequences")
    parser.add_argument("--out", required=True, help="directory for result.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for hidden, layers, skip, change, factorization, norm in itertools.product(
        (64, 512), (1, 2), (True, False), (True, False), Factorization, (False, True)
    ):
        if norm and hidden == 512:
            continue  # slow, and the same code as the small size
        config = MDNRNNConfig(
            hidden_size=hidden,
            num_layers=layers,
            skip=skip,
            predict_change=change,
            factorization=factorization,
            layer_norm=norm,
        )
        rows.append([difference(config, steps=args.steps, dtype=dtype) for dtype in (torch.float32, torch.float64)])
    worst = [max(column) for column in zip(*rows, strict=True)]
    print(f"{len(rows)} configurations, {args.steps} steps: float32 {worst[0]:.2e}, float64 {worst[1]:.2e}")
    content = {"configurations": len(rows), "steps": args.steps, "float32": worst[0], "float64": worst[1]}
    write_result(args.out, content)


if __name__ == "__main__":
    main()
