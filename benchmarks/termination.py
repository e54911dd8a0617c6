"""Overfitting of rare terminations: effect of calibration, dropout and early stopping.

z is a random walk in four dimensions that is driven by the action. Episodes terminate with log-odds
``3 |z_0| + 2 z_1 - 8.5``. M is trained on 150 episodes. 100 further episodes select the checkpoint
and calibrate the head. 2000 further episodes compare its probabilities with the true ones, in nats
per step.

    python benchmarks/termination.py --out results/termination
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
from harness import write_result

from worldmodel.models import MDNRNN, DataStatistics, MDNRNNConfig, SequenceBatch
from worldmodel.training import calibrate_termination, termination_logits, termination_scores

D, A, T = 4, 2, 100


def draw(episodes: int, seed: int) -> tuple[SequenceBatch, torch.Tensor]:
    """Sample episodes of at most 100 steps and their true log-odds of termination (B, T)."""
    g = torch.Generator().manual_seed(seed)
    z, action = [torch.randn(episodes, D, generator=g)], torch.randn(episodes, T, A, generator=g)
    for t in range(T):
        push = torch.cat([action[:, t], torch.zeros(episodes, D - A)], dim=1)
        z.append(0.95 * z[-1] + 0.2 * push + 0.2 * torch.randn(episodes, D, generator=g))
    latents = torch.stack(z, dim=1)
    logits = 3 * latents[:, :-1, 0].abs() + 2 * latents[:, :-1, 1] - 8.5
    dead = torch.rand(episodes, T, generator=g) < logits.sigmoid()
    alive = (dead.cumsum(dim=1) - dead.long()) == 0
    return SequenceBatch(latents, action, torch.zeros(episodes, T), dead & alive, alive), logits


def rows(batch: SequenceBatch, index: torch.Tensor) -> SequenceBatch:
    """Return a subset of the windows."""
    return SequenceBatch(*(value[index] for value in vars(batch).values()))


def train(weight: float, dropout: float, *, updates: int, seed: int) -> dict[str, MDNRNN]:
    """Train M; return the checkpoints with the best loss and termination loss, and the last."""
    data, (held_out, _) = draw(150, 3 * seed)[0], draw(100, 3 * seed + 1)
    torch.manual_seed(seed)
    config = MDNRNNConfig(hidden_size=64, num_components=2, reward_head=False,
                          termination_weight=weight, output_dropout=dropout)  # fmt: skip
    model, g = MDNRNN(D, A, config), torch.Generator().manual_seed(seed)
    model.set_statistics(DataStatistics.of([data]))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    best: dict[str, tuple[float, int, dict]] = {}
    for update in range(1, updates + 1):
        loss, _ = model.train().loss(rows(data, torch.randint(150, (32,), generator=g)), generator=g)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        if update % 50 == 0:
            with torch.no_grad():
                total, terms = model.eval().loss(held_out)
            for name, value in (("best loss", total), ("best termination", terms["termination_loss"]), ("last", -update)):
                if name not in best or float(value) < best[name][0]:
                    best[name] = (float(value), update, copy.deepcopy(model.state_dict()))
    models = {}
    for name, (_, update, weights) in best.items():
        models[f"{name} ({update})"] = copy.deepcopy(model)
        models[f"{name} ({update})"].load_state_dict(weights)
    return models


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, required=True, help="directory for result.json")
    parser.add_argument("--updates", type=int, default=800, help="updates of each model (default: 800)")
    parser.add_argument("--seeds", type=int, default=2, help="seeds (default: 2)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for seed in range(args.seeds):
        held_out, (test, logits) = draw(100, 3 * seed + 1)[0], draw(2000, 3 * seed + 2)
        truth = termination_scores(logits[test.mask].double(), test.terminated[test.mask].double())
        found.append({"seed": seed, "model": "the truth", **truth})
        for weight, dropout in ((1.0, 0.0), (1.0, 0.3), (10.0, 0.0), (10.0, 0.3)):
            for name, model in train(weight, dropout, updates=args.updates, seed=seed).items():
                with torch.no_grad():
                    latent = model.loss(test)[1]["nll_per_dim"].item()
                row = {"seed": seed, "model": name, "weight": weight, "dropout": dropout, "nll_per_dim": latent}
                found.append(row | {"calibrated": False} | termination_scores(*termination_logits(model, [test])))
                calibrate_termination(model, [held_out])
                found.append(row | {"calibrated": True} | termination_scores(*termination_logits(model, [test])))
                print(*found[-2:], sep="\n", flush=True)
    write_result(args.out, {"rows": found})


if __name__ == "__main__":
    main()
