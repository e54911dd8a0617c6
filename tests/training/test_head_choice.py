"""`fit` chooses the richer head only where it gains, and resumes with its choice."""

import os
import signal

import numpy as np
import pytest
import torch
from gymnasium import spaces

from worldmodel.data import Episode, EpisodeStore
from worldmodel.mixtures import AutoregressiveHead, LatentLayout, LatentPart
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


def store(path, correlation, dim=2, coin=False):
    """Random walks; the steps of the last dimension are correlated with those of the first. A coin replaces dimension 1."""
    generator, episodes = torch.Generator().manual_seed(0), []
    for number in range(60):
        noise = torch.randn(40, dim, generator=generator)
        noise[:, -1] = correlation * noise[:, 0] + (1 - correlation**2) ** 0.5 * noise[:, -1] if dim > 1 else noise[:, 0]
        walk = torch.cat([torch.zeros(1, dim), noise.cumsum(dim=0)]).numpy()
        if coin:
            walk[:, 1] = torch.where(torch.rand(41, generator=generator) < 0.2, torch.randn(41, generator=generator), 0.0)
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
    space = spaces.Box(-np.inf, np.inf, (dim,), np.float32)
    made = EpisodeStore.create(path, observation_space=space, action_space=spaces.Discrete(2))
    made.append(episodes)
    return path


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


@pytest.mark.parametrize(("correlation", "updates"), [(0.9, 3), (0.0, 6)])
def test_a_longer_trial_decides_only_where_the_first_shows_no_clear_difference(tmp_path, correlation, updates):
    options = OPTIONS | {"training_config": TrainingConfig(num_updates=100, evaluate_every=100)}
    world = fit(store(tmp_path / "store", correlation), out=tmp_path / "out", **options)
    assert world.provenance["latent_head"]["updates"] == updates


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


def layout_of(*kinds):
    parts = [LatentPart(name=f"{i}", kind=kind, start=i, size=1) for i, kind in enumerate(kinds)]
    return LatentLayout(tuple(parts))


def test_there_is_no_choice_in_one_dimension_or_with_options_that_only_one_head_has():
    two = layout_of("continuous", "integer")
    assert has_choice(CONFIG, two)
    assert has_choice(CONFIG, layout_of("continuous", "bits", "continuous", "constant"))
    assert not has_choice(CONFIG, layout_of("continuous", "bits", "mostly_unchanged", "constant"))
    assert not has_choice(CONFIG, layout_of("continuous", "continuous", "image"))
    assert not has_choice(CONFIG, layout_of(*["continuous"] * 65))
    assert not has_choice(MDNRNNConfig(factorization="joint"), two)
    assert not has_choice(MDNRNNConfig(noise_type="isotropic"), two)
    assert not has_choice(MDNRNNConfig(latent_head="MixtureHead"), two)


def test_the_densities_of_a_composite_z_get_the_richer_head_and_start_from_data(tmp_path):
    data = store(tmp_path / "store", 0.9, dim=4, coin=True)
    world = fit(data, out=tmp_path / "out", **OPTIONS)
    assert [part.kind.value for part in world.layout.parts] == ["continuous", "mostly_unchanged", "continuous"]
    assert isinstance(world.mdnrnn.latent_head.heads["densities"], AutoregressiveHead)
    assert world.provenance["latent_head"]["chosen"] == "AutoregressiveHead"
    named_config = MDNRNNConfig(**vars(CONFIG) | {"latent_head": "AutoregressiveHead"})
    assert fit(data, out=tmp_path / "named", **OPTIONS | {"config": named_config}).fingerprint == world.fingerprint
    assert WorldModel.from_pretrained(tmp_path / "out").fingerprint == world.fingerprint


def test_a_run_of_a_version_without_the_choice_resumes_with_its_head(tmp_path):
    data = store(tmp_path / "store", 0.9)
    old = OPTIONS | {"config": MDNRNNConfig(**vars(CONFIG) | {"latent_head": "MixtureHead"})}

    def interrupt(progress):
        if progress.done == 10:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(data, out=tmp_path / "out", **old, run=RunConfig(on_progress=interrupt))
    world = fit(data, out=tmp_path / "out", **OPTIONS)
    assert world.mdnrnn.config.latent_head == "MixtureHead"
    assert "latent_head" not in world.provenance
