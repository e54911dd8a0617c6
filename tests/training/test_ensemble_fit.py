"""`fit(ensemble=...)`: bootstraps, files, resuming, calibration and the likelihood of the mixture."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_data import walking_episode, write_store

from worldmodel.data import EpisodeCollection
from worldmodel.evaluation import likelihood
from worldmodel.models import MDNRNNConfig, MDNRNNEnsemble, StateNormalizer, WorldModel
from worldmodel.runtime import RunConfig
from worldmodel.spaces import FlatSpace
from worldmodel.training import DataConfig, TrainingConfig, fit
from worldmodel.training.fit_ensemble import bootstrap
from worldmodel.training.windows import SequenceData, WindowSampler

SMALL = MDNRNNConfig(hidden_size=4, num_components=2, latent_head="MixtureHead")
DATA = DataConfig(window=6, batch_size=4, test_fraction=0.25)
TRAINING = TrainingConfig(num_updates=6, evaluate_every=3, learning_rate=1e-2)


@pytest.fixture(scope="module")
def walks(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("walks") / "store", [walking_episode(i, 5 + i) for i in range(12)]).path


def small_fit(data, out, **options):
    return fit(data, out=out, **({"config": SMALL, "data_config": DATA, "training_config": TRAINING, "seed": 3} | options))


@pytest.fixture(scope="module")
def fitted(walks, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "ensemble"
    return out, small_fit(walks, out, ensemble=3)


def test_members_differ_and_share_the_statistics(fitted):
    _, world = fitted
    one, two, three = world.mdnrnn.members
    assert isinstance(world.mdnrnn, MDNRNNEnsemble)
    assert not torch.equal(one.lstm.weight_hh_l0, two.lstm.weight_hh_l0)
    assert not torch.equal(two.lstm.weight_hh_l0, three.lstm.weight_hh_l0)
    for name in ("change_scale", "latent_low", "reward_mean"):
        assert torch.equal(getattr(one, name), getattr(three, name))


def test_each_member_has_a_training_of_its_own_and_the_provenance_names_all(fitted):
    out, world = fitted
    assert sorted(path.name for path in (out / "training").iterdir()) == ["member-1", "member-2", "member-3"]
    assert [member["updates"] for member in world.provenance["training"]["members"]] == [6, 6, 6]
    assert set(world.provenance["training"]["best_metrics"]) >= {"loss", "nll_per_dim", "reward_nll", "termination_loss"}


def test_the_directory_opens_as_the_world_that_was_returned(fitted):
    out, world = fitted
    assert WorldModel.from_pretrained(out).fingerprint == world.fingerprint


def test_an_interrupted_ensemble_resumes_to_the_same_weights(fitted, walks, tmp_path):
    def stop(progress):
        if progress.stage == "train M (2 of 3)" and progress.done == 3:
            os.kill(os.getpid(), signal.SIGINT)

    training = replace(TRAINING, evaluate_every=3)
    with pytest.raises(KeyboardInterrupt, match="stopped after update 3 of 6"):
        small_fit(walks, tmp_path / "run", ensemble=3, training_config=training, run=RunConfig(on_progress=stop))
    again = small_fit(walks, tmp_path / "run", ensemble=3, training_config=training)
    assert again.fingerprint == fitted[1].fingerprint


def test_a_size_of_one_is_a_single_model(walks, tmp_path):
    one, none = small_fit(walks, tmp_path / "one", ensemble=1), small_fit(walks, tmp_path / "none")
    assert one.fingerprint == none.fingerprint
    assert (tmp_path / "one" / "fit.json").read_bytes() == (tmp_path / "none" / "fit.json").read_bytes()


def test_another_size_does_not_resume_a_run(walks, tmp_path):
    small_fit(walks, tmp_path / "run")
    with pytest.raises(ValueError, match="ensemble"):
        small_fit(walks, tmp_path / "run", ensemble=2)


def test_further_training_keeps_the_members(fitted, walks, tmp_path):
    _, world = fitted
    further = small_fit(walks, tmp_path / "further", initial=world, config=None)
    assert len(further.mdnrnn.members) == 3
    with pytest.raises(ValueError, match="expected None or 3, the number of models of the initial world model, got 2"):
        small_fit(walks, tmp_path / "other", initial=world, config=None, ensemble=2)


def test_calibration_is_recorded_for_each_member(tmp_path):
    store = write_store(tmp_path / "store", [walking_episode(i, 4 + i % 5) for i in range(24)]).path
    world = small_fit(store, tmp_path / "run", ensemble=2, training_config=replace(TRAINING, calibrate=True))
    assert {"member 1 before", "member 2 gain"} <= set(world.provenance["calibration"])


def test_held_out_likelihood_is_that_of_the_mixture(fitted, walks):
    _, world = fitted
    together = likelihood(world, walks)
    alone = []
    for member in world.mdnrnn.members:
        single = WorldModel.from_pretrained(fitted[0])
        single.mdnrnn = member
        alone.append(likelihood(single, walks).nats["nll_per_dim"])
    assert together.nats["nll_per_dim"] < np.mean(alone)  # by Jensen's inequality


def test_a_bootstrap_sample_repeats_episodes_by_its_seed(walks):
    episodes = EpisodeCollection.open(walks)
    which = np.arange(8)
    sampler = WindowSampler(which, episodes.lengths[which], window=6, batch_size=4)
    data = SequenceData(episodes, sampler, StateNormalizer(episodes.observation_space), FlatSpace(episodes.action_space))
    drawn = bootstrap(data, 1).sampler
    assert len(drawn.episodes) == 8
    assert set(drawn.episodes) < set(which)
    assert np.array_equal(drawn.lengths, episodes.lengths[drawn.episodes])
    assert np.array_equal(drawn.episodes, bootstrap(data, 1).sampler.episodes)
    assert not np.array_equal(drawn.episodes, bootstrap(data, 2).sampler.episodes)
