"""Gradients through mixture samples and through dreams: bias, variance and cost.

First, the gradient of E[z^2] with respect to the weight of one of two components a distance apart,
by three estimators: the pathwise estimator of `GaussianMixture.rsample`, a straight-through choice
of the component, and the score function. A hard choice alone has no gradient. Then, the time of
imagined rollouts with their backward pass, relative to rollouts without gradients in the same
process.

    OMP_NUM_THREADS=1 python benchmarks/gradients.py --out results/gradients
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import gymnasium as gym
import torch
from harness import fastest, write_result
from torch import Tensor, nn

import worldmodel as wm
from worldmodel.dream import imagine
from worldmodel.mixtures import GaussianMixture
from worldmodel.models import MDNRNN, StateNormalizer

DRAWS, DREAMS, HORIZON, REPEATS = 1_000_000, 1024, 16, 15


def estimates(distance: float, generator: torch.Generator) -> dict[str, dict[str, float]]:
    """Estimate the gradient with respect to the first logit for weights 3/4 and 1/4 and sigma 1.

    Returns:
        Mean and standard deviation of each estimator, relative to the exact gradient.
    """
    mean = torch.tensor([[0.0], [distance]], dtype=torch.float64)  # (K, 1)
    weights = torch.tensor([0.75, 0.25], dtype=torch.float64)
    logits = weights.log().repeat(DRAWS, 1).requires_grad_()
    log_weights = logits.log_softmax(-1)
    many = mean.expand(DRAWS, 2, 1)
    mixture = GaussianMixture(log_weights, many, torch.zeros_like(many))
    exact = -3 / 16 * distance**2  # E[z^2] = 1 + w_1 distance^2, and w_1 changes with the first logit by -w_0 w_1
    with torch.no_grad():
        index = torch.multinomial(weights, DRAWS, replacement=True, generator=generator)
        hard = nn.functional.one_hot(index, 2).double()
        noise = torch.randn(DRAWS, 1, generator=generator, dtype=torch.float64)
    soft = hard + log_weights.exp() - log_weights.exp().detach()
    chosen = hard @ mean + noise
    objectives = {
        "pathwise": mixture.rsample(generator=generator).square(),
        "straight-through": (soft @ mean + noise).square(),
        "score function": chosen.square() * mixture.log_prob(chosen).unsqueeze(-1),
    }
    result = {}
    for name, objective in objectives.items():
        gradient = torch.autograd.grad(objective.sum(), logits, retain_graph=True)[0][:, 0] / exact
        result[name] = {"mean": round(gradient.mean().item(), 4), "std": round(gradient.std().item(), 2)}
    return result


def world_of(**mdnrnn: object) -> wm.WorldModel:
    """Build a world with random weights, 4 latents and 2 actions."""
    vision = StateNormalizer(gym.spaces.Box(-1.0, 1.0, (4,)))
    model = MDNRNN(4, 2, wm.MDNRNNConfig(hidden_size=128, **mdnrnn))
    return wm.WorldModel(
        vision, model, gym.spaces.Box(-1.0, 1.0, (2,)), start_mean=torch.zeros(1, 4), start_log_variance=torch.zeros(1, 4)
    )


def costs(**mdnrnn: object) -> dict[str, float]:
    """Return the time of imagination without and with its backward pass, relative to a rollout."""
    world = world_of(**mdnrnn)
    dreams, generator = wm.Dreams(world, DREAMS), torch.Generator().manual_seed(0)
    policy = nn.Linear(4 + 128, 2)

    def act(features: Tensor) -> Tensor:
        return policy(features).tanh().detach()

    def forward() -> Tensor:
        return imagine(dreams, policy, HORIZON, generator=generator).reward.sum()

    works = {
        "rollout": lambda: dreams.rollout(act, HORIZON, generator=generator),
        "imagine": forward,
        "with_backward": lambda: forward().backward(),
    }
    seconds = fastest(works, repeats=REPEATS)
    return {name: round(value / seconds["rollout"], 2) for name, value in seconds.items()}


def main() -> None:
    """Write result.json and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory for result.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    result = {
        "estimates": {distance: estimates(float(distance), generator) for distance in (1, 2, 4, 6, 8)},
        "costs": {
            "per dimension": costs(),
            "joint, diagonal": costs(factorization="joint"),
            "joint, full": costs(factorization="joint", noise_type="full"),
        },
    }
    write_result(arguments.out, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
