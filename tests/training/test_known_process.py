"""The MDN-RNN attains the known entropy of processes: two of the ten combinations of benchmarks/known_process.py."""

import importlib
from pathlib import Path

import pytest
import torch

from worldmodel.mixtures import Factorization, NoiseType


@pytest.fixture
def known_process(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield importlib.import_module("known_process")
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("factorization", "noise_type"),
    [(Factorization.JOINT, NoiseType.FULL), (Factorization.PER_DIMENSION, NoiseType.DIAGONAL)],
)
def test_the_model_comes_within_002_nats_per_dimension_of_the_entropy_and_not_below(known_process, factorization, noise_type):
    result = known_process.run(known_process.Process(factorization, noise_type), steps=800)
    assert result["gap"] < 0.02
    assert result["gap"] > -4 * result["gap_se"]  # below the entropy would mean that targets leak or constants are missing
    assert result["entropy_se"] < 0.005


def test_the_true_density_is_its_formula(known_process):
    process = known_process.Process(Factorization.PER_DIMENSION, NoiseType.FIXED)
    batch = process.sample(64, torch.Generator().manual_seed(0))
    logits, mean, factor = process.parameters(batch.z[:, 0], batch.action[:, 0])
    assert torch.allclose(factor, 0.3 * torch.eye(2))
    log_density = torch.distributions.Normal(mean, 0.3).log_prob(batch.z[:, 1].unsqueeze(1)) + logits.log_softmax(dim=1)
    torch.testing.assert_close(process.log_prob(batch)[:, 0], log_density.logsumexp(dim=1).sum(-1), rtol=1e-5, atol=1e-5)
