"""NLL of the MDN-RNN for each option of the mixture, compared with a process of known entropy.

The process belongs to the model family: z_{t+1} is sampled from a mixture whose weights, means and
scales depend on (z_t, a_t). So its density is known, and no model can have a lower expected NLL
than its entropy rate. Every batch is new, so that overfitting is impossible. The true density is
computed with `torch.distributions`, which the library does not use.

``gap`` is the mean of log p_true - log p_model over held-out steps, per dimension. It estimates the
KL divergence. Its standard error is computed over sequences, as the steps of a sequence are not
independent.

    python benchmarks/known_process.py --out results/known_process
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch
from harness import write_result
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, Normal

from worldmodel.mixtures import Factorization, NoiseType
from worldmodel.models import MDNRNN, MDNRNNConfig, SequenceBatch

D, A, K, T = 2, 1, 3, 16
FIXED_LEVEL, MIN_SCALE, TARGET = 0.3, 1e-3, 0.02
CENTERS = torch.tensor([[-1.2, -1.2], [0.0, 0.4], [1.2, 1.2]])  # (K, D), on a diagonal, so that joint modes are correlated
LOG_SCALES = torch.tensor([[-1.6, -0.8], [-0.9, -1.5], [-1.2, -1.0]])  # (K, D)
CORRELATION = torch.tensor([0.8, -0.7, 0.5])  # (K,), of the noise with type ``full``


class Process(NamedTuple):
    """A first-order process of one factorisation and noise model."""

    factorization: Factorization
    noise_type: NoiseType

    def parameters(self, z: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mixture parameters given z (N, D) and action (N, A).

        Returns:
            Logits (N, K) or (N, K, D), means (N, K, D) and Cholesky factors (N, K, D, D).
        """
        turned = torch.stack([-z[:, 1], z[:, 0]], dim=-1)
        mean = 0.5 * torch.tanh(0.7 * z + 0.7 * turned).unsqueeze(1) + CENTERS * (1 + 0.3 * action.unsqueeze(1))
        tilt = torch.stack([action + z, 0.5 * z, 0.5 - action + 0 * z], dim=1)  # (N, K, D)
        logits = tilt if self.factorization is Factorization.PER_DIMENSION else tilt[..., 0]
        joint = self.factorization is Factorization.JOINT
        log_scale = {
            NoiseType.FULL: LOG_SCALES,
            NoiseType.DIAGONAL: LOG_SCALES,
            NoiseType.ISOTROPIC: LOG_SCALES[:, :1] if joint else LOG_SCALES,
            NoiseType.ISOTROPIC_ACROSS_CLUSTERS: LOG_SCALES[:1, :1] if joint else LOG_SCALES[:1],
            NoiseType.FIXED: torch.full((1, 1), math.log(FIXED_LEVEL)),
        }[self.noise_type]
        heat = 0.0 if self.noise_type is NoiseType.FIXED else 0.4
        scale = (log_scale + heat * action.unsqueeze(1)).expand_as(mean).exp()
        factor = torch.eye(D).expand(K, D, D).clone()
        if self.noise_type is NoiseType.FULL and joint:
            factor[:, 1, 0], factor[:, 1, 1] = CORRELATION, (1 - CORRELATION.square()).sqrt()
        return logits, mean, scale.unsqueeze(-1) * factor

    def sample(self, num_sequences: int, generator: torch.Generator) -> SequenceBatch:
        """Sample sequences of T steps, with z_0 ~ N(0, 1) and actions uniform in [-1, 1]."""
        action = 2 * torch.rand(num_sequences, T, A, generator=generator) - 1
        z = [torch.randn(num_sequences, D, generator=generator)]
        for t in range(T):
            logits, mean, factor = self.parameters(z[-1], action[:, t])
            weights = logits.softmax(dim=1).reshape(num_sequences, K, -1).transpose(1, 2)  # (N, 1 or D, K)
            index = torch.multinomial(weights.reshape(-1, K), 1, generator=generator).reshape(num_sequences, 1, -1)
            epsilon = torch.randn(num_sequences, 1, D, 1, generator=generator)
            outcomes = mean + (factor @ epsilon)[..., 0]  # (N, K, D), one sample per component
            z.append(outcomes.gather(1, index.expand(-1, 1, D))[:, 0])
        counted = torch.ones(num_sequences, T, dtype=torch.bool)
        return SequenceBatch(torch.stack(z, dim=1), action, torch.zeros(num_sequences, T), ~counted, counted)

    def log_prob(self, batch: SequenceBatch) -> Tensor:
        """Compute the true log p(z_{t+1} | z_t, a_t) in nats, summed over D: (B, T)."""
        logits, mean, factor = self.parameters(batch.z[:, :-1].reshape(-1, D), batch.action.reshape(-1, A))
        target = batch.z[:, 1:].reshape(-1, D)
        if self.factorization is Factorization.JOINT:
            components = MultivariateNormal(mean, scale_tril=factor)
            density = MixtureSameFamily(Categorical(logits=logits), components).log_prob(target)
        else:
            components = Normal(mean.mT, factor.diagonal(dim1=-2, dim2=-1).mT)
            density = MixtureSameFamily(Categorical(logits=logits.mT), components).log_prob(target).sum(dim=-1)
        return density.reshape(batch.mask.shape)


def train(process: Process, *, steps: int, batch_size: int, hidden_size: int, seed: int) -> MDNRNN:
    """Train an MDN-RNN on new sequences with Adam and a cosine learning rate from 5e-3 to 0."""
    generator = torch.Generator().manual_seed(seed)
    fixed = FIXED_LEVEL if process.noise_type is NoiseType.FIXED else None
    config = MDNRNNConfig(
        hidden_size=hidden_size, num_components=K, factorization=process.factorization,
        noise_type=process.noise_type, fixed_noise_level=fixed, min_scale=MIN_SCALE, reward_head=False, termination_head=False,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MDNRNN(D, A, config)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        loss, _ = model.loss(process.sample(batch_size, generator))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model


@torch.no_grad()
def measure(process: Process, model: MDNRNN, *, num_sequences: int, seed: int) -> dict[str, float]:
    """Compare the model with the true density on held-out sequences, in nats per dimension."""
    batch = process.sample(num_sequences, torch.Generator().manual_seed(seed))
    true = -process.log_prob(batch).mean(dim=1) / D  # (B,)
    nll = model.step_losses(batch).latent.mean(dim=1) / D  # (B,)

    def mean_and_error(values: Tensor) -> tuple[float, float]:
        return values.double().mean().item(), values.double().std().item() / math.sqrt(len(values))

    (entropy, entropy_error), (gap, gap_error) = mean_and_error(true), mean_and_error(nll - true)
    return {"entropy": entropy, "entropy_se": entropy_error, "nll": entropy + gap, "gap": gap, "gap_se": gap_error}


def run(
    process: Process, *, steps: int = 1500, batch_size: int = 128, hidden_size: int = 32, seed: int = 0
) -> dict[str, float]:
    """Train a model, then measure it on 4096 sequences of another seed."""
    model = train(process, steps=steps, batch_size=batch_size, hidden_size=hidden_size, seed=seed)
    return measure(process, model, num_sequences=4096, seed=seed + 1_000_000)


def to_markdown(rows: list[dict[str, str | float]]) -> str:
    """Format the rows as a Markdown table, in nats per dimension."""
    lines = [
        "# NLL against the entropy of a known process",
        "",
        f"Nats per dimension on held-out sequences, with standard errors. Target: a gap below {TARGET}.",
        "",
        "| factorisation | noise | true entropy | NLL | gap | seconds |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['factorization']} | {row['noise_type']} | {row['entropy']:.4f} ± {row['entropy_se']:.4f} | {row['nll']:.4f} "
        f"| {row['gap']:.4f} ± {row['gap_se']:.4f} | {row['seconds']:.0f} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> int:
    """Run every combination and write result.json and result.md."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, required=True, help="directory for result.json and result.md")
    parser.add_argument("--steps", type=int, default=1500, help="training steps of each model (default: 1500)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and data (default: 0)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows: list[dict[str, str | float]] = []
    for factorization in Factorization:
        for noise_type in NoiseType:
            start = time.perf_counter()
            result = run(Process(factorization, noise_type), steps=arguments.steps, seed=arguments.seed)
            seconds = time.perf_counter() - start
            rows.append({"factorization": factorization.value, "noise_type": noise_type.value, **result, "seconds": seconds})
            print(f"{factorization.value:14s} {noise_type.value:26s} gap {result['gap']:.4f} +- {result['gap_se']:.4f}")
    write_result(arguments.out, {"target": TARGET, "rows": rows}, markdown=to_markdown(rows))
    print(f"wrote {arguments.out / 'result.json'} and {arguments.out / 'result.md'}")
    return 0 if all(float(row["gap"]) < TARGET for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
