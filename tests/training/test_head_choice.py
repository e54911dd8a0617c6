"""`fit` chooses the richer head only where it gains, and resumes with its choice."""

import os
import signal

import pytest
import torch
from toy_data import write_store

from worldmodel.data import Episode
from worldmodel.models import MDNRNNConfig, WorldModel
from worldmodel.runtime import RunConfig
from worldmodel.training import DataConfig, TrainingConfig, fit
from worldmodel.training.head_choice import has_choice

CONFIG = MDNRNNConfig(hidden_size=8, num_components=2)
OPTIONS = {
    "config": CONFIG,
    "data_config": DataConfig(window=16, batch_size=16),
    "training_config": TrainingConfig(num_updates=20, evaluate_every=20),
    "seed": 0,
}


def store(path, correlation, dim=2):
    """Random walks whose steps are correlated between the dimensions."""
    generator, episodes = torch.Generator().manual_seed(0), []
    for number in range(60):
        noise = torch.randn(40, dim, generator=generator)
        noise[:, -1] = correlation * noise[:, 0] + (1 - correlation**2) ** 0.5 * noise[:, -1] if dim > 1 else noise[:, 0]
        walk = torch.cat([torch.zeros(1, dim), noise.cumsum(dim=0)]).numpy()
        ends = torch.arange(40).numpy() == 39
        episodes.append(
            Episode(
                observations=walk,
                actions=torch.zeros(40, dtype=torch.int64).numpy(),
                rewards=torch.zeros(40).numpy(),
                terminations=ends & False,
                truncations=ends,
                episode_id=number,
            )
        )
    return write_store(path, episodes).path


def test_correlated_steps_get_the_autoregressive_head_and_the_choice_is_recorded(tmp_path):
    world = fit(store(tmp_path / "store", 0.9), out=tmp_path / "out", **OPTIONS)
    choice = world.provenance["latent_head"]
    assert world.mdnrnn.config.latent_head == choice["chosen"] == "AutoregressiveHead"
    gain = -0.25 * torch.log(torch.tensor(1 - 0.9**2)).item()  # nats per dimension
    assert choice["gain"] == pytest.approx(gain, rel=0.3)
    assert choice["gain"] > choice["se"]
    opened = WorldModel.from_pretrained(tmp_path / "out")
    assert opened.mdnrnn.config.latent_head == "AutoregressiveHead"
    assert opened.provenance["latent_head"] == choice


def test_independent_steps_keep_the_mixture_per_dimension(tmp_path):
    world = fit(store(tmp_path / "store", 0.0), out=tmp_path / "out", **OPTIONS)
    choice = world.provenance["latent_head"]
    assert choice["gain"] <= choice["se"]
    assert world.mdnrnn.config.latent_head == choice["chosen"] == "MixtureHead"


def test_the_chosen_head_is_trained_as_if_it_had_been_named_and_resumes_to_the_same_weights(tmp_path):
    data = store(tmp_path / "store", 0.9)
    chosen = fit(data, out=tmp_path / "chosen", **OPTIONS)
    named_config = MDNRNNConfig(**vars(CONFIG) | {"latent_head": "AutoregressiveHead"})
    named = fit(data, out=tmp_path / "named", **OPTIONS | {"config": named_config})
    assert "latent_head" not in named.provenance
    assert chosen.fingerprint == named.fingerprint

    def interrupt(progress):
        if progress.done == 10:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(data, out=tmp_path / "resumed", **OPTIONS, run=RunConfig(on_progress=interrupt))
    assert fit(data, out=tmp_path / "resumed", **OPTIONS).fingerprint == chosen.fingerprint


def test_there_is_no_choice_in_one_dimension_or_with_options_that_only_one_head_has():
    assert has_choice(CONFIG, 2)
    assert not has_choice(CONFIG, 1)
    assert not has_choice(MDNRNNConfig(factorization="joint"), 2)
    assert not has_choice(MDNRNNConfig(noise_type="isotropic"), 2)
