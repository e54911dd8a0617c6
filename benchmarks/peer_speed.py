"""Speed relative to peers: the public ``log_prob`` with autograd, and the training of M at CartPole's size.

- `GaussianMixture.log_prob` with backward, against `torch.distributions.MixtureSameFamily` without validation of its
  arguments, for joint and per-dimension mixtures with diagonal covariances, and joint ones with full covariances.
- One update of `MDNRNN.loss` against the common loop of MDN-RNN implementations: `nn.LSTM`, one linear layer, a joint diagonal
  mixture by `torch.distributions.Normal`, mean squared error of the reward, RMSprop. That loop does not clip gradients, the
  library does; so its update is measured with clipping and without.

CPU time of one thread; the variants run in turns and the fastest of each counts. A ratio above 1 means that the library is
faster.

    python benchmarks/peer_speed.py --out results/peer_speed
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from harness import fastest, write_result
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal
from torch.nn import functional
from training_speed import SIZES, make, updates

from worldmodel.mixtures import GaussianMixture

SHAPES = {"cartpole": (4096, 5, 4), "doom": (2000, 5, 64), "one number": (4096, 5, 1)}  # rows, K, D


class CommonLoop(nn.Module):
    """An MDN-RNN as it is commonly written, with its loss."""

    def __init__(self, latent_size: int, action_size: int, hidden_size: int, num_components: int):
        super().__init__()
        self.d, self.k = latent_size, num_components
        self.rnn = nn.LSTM(latent_size + action_size, hidden_size)
        self.out = nn.Linear(hidden_size, (2 * latent_size + 1) * num_components + 2)

    def loss(self, z: Tensor, action: Tensor, reward: Tensor, terminated: Tensor) -> Tensor:
        """Loss of sequences: z (T + 1, B, D), action (T, B, A), reward and terminated (T, B)."""
        raw = self.out(self.rnn(torch.cat([action, z[:-1]], dim=-1))[0])
        kd = self.k * self.d
        mean, scale = raw[..., :kd].unflatten(-1, (self.k, self.d)), raw[..., kd : 2 * kd].unflatten(-1, (self.k, self.d)).exp()
        log_weights = raw[..., 2 * kd : 2 * kd + self.k].log_softmax(dim=-1)
        each = log_weights + Normal(mean, scale, validate_args=False).log_prob(z[1:].unsqueeze(-2)).sum(dim=-1)
        largest = each.max(dim=-1, keepdim=True).values
        nll = -(largest[..., 0] + (each - largest).exp().sum(dim=-1).log()).mean()
        ended = functional.binary_cross_entropy_with_logits(raw[..., -1], terminated)
        return (nll + ended + functional.mse_loss(raw[..., -2], reward)) / (self.d + 2)


def log_prob_works(rows: int, k: int, d: int, joint: bool) -> dict[str, Callable[[], None]]:
    """Return one forward and backward pass of the library and of the peer."""
    torch.manual_seed(0)
    x = torch.randn(rows, d)
    log_weights = torch.randn(rows, *((k,) if joint else (k, d))).log_softmax(dim=1).requires_grad_()
    mean, log_scale = (torch.randn(rows, k, d, requires_grad=True) for _ in range(2))

    def ours() -> None:
        GaussianMixture(log_weights, mean, log_scale).log_prob(x).sum().backward()

    def peer() -> None:
        scale, off = log_scale.exp(), {"validate_args": False}
        if joint:
            parts = Independent(Normal(mean, scale, **off), 1, **off)
            mixture = MixtureSameFamily(Categorical(logits=log_weights, **off), parts, **off)
        else:
            mixture = MixtureSameFamily(Categorical(logits=log_weights.mT, **off), Normal(mean.mT, scale.mT, **off), **off)
        mixture.log_prob(x).sum().backward()

    return {"ours": ours, "peer": peer}


def full_works(rows: int, k: int, d: int) -> dict[str, Callable[[], None]]:
    """Return the same for joint mixtures with full covariances, given by their Cholesky factors."""
    torch.manual_seed(0)
    x, off = torch.randn(rows, d), {"validate_args": False}
    log_weights = torch.randn(rows, k).log_softmax(dim=1).requires_grad_()
    mean = torch.randn(rows, k, d, requires_grad=True)
    tril = (0.1 * torch.randn(rows, k, d, d).tril(-1) + torch.eye(d)).requires_grad_()

    def ours() -> None:
        GaussianMixture(log_weights, mean, scale_tril=tril).log_prob(x).sum().backward()

    def peer() -> None:
        parts = MultivariateNormal(mean, scale_tril=tril, **off)
        MixtureSameFamily(Categorical(logits=log_weights, **off), parts, **off).log_prob(x).sum().backward()

    return {"ours": ours, "peer": peer}


def training_works(*, clip: bool = True) -> dict[str, Callable[[], None]]:
    """Return one update of the library, with clipping or without, and of the common loop, on the same batch."""
    model, batch = make("cartpole")
    d, a, hidden, _, _ = SIZES["cartpole"]
    peer = CommonLoop(d, a, hidden, 5)
    optimizer = torch.optim.RMSprop(peer.parameters(), lr=1e-4, alpha=0.9)
    parts = [part.transpose(0, 1) for part in (batch.z, batch.action, batch.reward, batch.terminated.float())]

    def update() -> None:
        optimizer.zero_grad()
        peer.loss(*parts).backward()
        optimizer.step()

    return {"ours": updates(model, batch, clip=clip)["loss, float32"], "peer": update}


def main() -> None:
    """Measure every pair and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, help="directory for result.json")
    parser.add_argument("--rounds", type=int, default=40, help="turns of each variant (default: 40)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    works = {
        f"log_prob, {'joint' if joint else 'per dimension'}, {name}": log_prob_works(*shape, joint)
        for name, shape in SHAPES.items()
        for joint in (True, False)
    }
    works |= {f"log_prob, full, {name}": full_works(*SHAPES[name]) for name in ("cartpole", "one number")}
    works |= {"training, cartpole": training_works(), "training, cartpole, not clipped": training_works(clip=False)}
    ratios = {}
    for name, pair in works.items():
        seconds = fastest(pair, repeats=arguments.rounds, warm_up=1, clock=time.process_time)
        ratios[name] = round(seconds["peer"] / seconds["ours"], 2)
        print(f"{name:40s} {ratios[name]:.2f}", flush=True)
    if arguments.out:
        write_result(arguments.out, {"speed_relative_to_peer": ratios})


if __name__ == "__main__":
    main()
