"""How `fit` prepares M: the floors of the sigmas from data, and starts that are near the data."""

import os
import signal

import numpy as np
import pytest
import torch
from gymnasium import spaces

from worldmodel.data import Episode, EpisodeStore
from worldmodel.mixtures import MixtureHead
from worldmodel.models import MDNRNN, MDNRNNConfig, SequenceBatch, WorldModel
from worldmodel.runtime import RunConfig
from worldmodel.training import DataConfig, TrainingConfig, fit
from worldmodel.training.initial_model import initialise_latent_head, initialise_reward_head

CONFIG = MDNRNNConfig(hidden_size=8, num_components=2)
OPTIONS = {
    "data_config": DataConfig(window=16, batch_size=16),
    "training_config": TrainingConfig(num_updates=20, evaluate_every=20),
    "seed": 0,
}


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """A store of walks by exact steps of the action's size, and by noise."""
    path, rng = tmp_path_factory.mktemp("data") / "steps", np.random.default_rng(0)
    box = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    store, episodes = EpisodeStore.create(path, observation_space=box, action_space=spaces.Box(-1, 1, (1,), np.float32)), []
    for number in range(40):
        action = rng.uniform(-1, 1, (40, 1)).astype(np.float32)
        move = np.concatenate([action + 1e-4 * rng.standard_normal((40, 1)), rng.standard_normal((40, 1))], axis=1)
        walk, ends = np.concatenate([np.zeros((1, 2)), move.cumsum(axis=0)]).astype(np.float32), np.arange(40) == 39
        episodes.append(
            Episode(
                observations=walk,
                actions=action,
                rewards=np.zeros(40),
                terminations=ends & False,
                truncations=ends,
                episode_id=number,
            )
        )
    store.append(episodes)
    return path


def test_fit_lowers_the_floor_of_exact_numbers_only_and_saves_it(steps, tmp_path):
    world = fit(steps, out=tmp_path / "out", config=CONFIG, **OPTIONS)
    floors = world.mdnrnn.latent_head.floors
    assert floors.tolist() == pytest.approx([0.003, 0.03])
    assert world.mdnrnn.config_to_json()["floors"] == floors.tolist()
    opened = WorldModel.from_pretrained(tmp_path / "out")
    assert torch.equal(opened.mdnrnn.latent_head.floors, floors)
    assert opened.fingerprint == world.fingerprint
    fields = vars(CONFIG) | {"min_scale": 0.03}
    given = fit(steps, out=tmp_path / "given", config=MDNRNNConfig(**fields), **OPTIONS)
    assert given.mdnrnn.latent_head.floors is None
    assert "floors" not in given.mdnrnn.config_to_json()
    nll = [each.provenance["training"]["best_metrics"]["nll_per_dim"] for each in (world, given)]
    assert nll[0] < nll[1] - 0.5


def test_a_run_with_a_given_floor_resumes_with_it(steps, tmp_path):
    given = MDNRNNConfig(**vars(CONFIG) | {"min_scale": 0.03})

    def interrupt(progress):
        if progress.done == 10:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(steps, out=tmp_path / "out", config=given, **OPTIONS, run=RunConfig(on_progress=interrupt))
    assert fit(steps, out=tmp_path / "out", config=given, **OPTIONS).mdnrnn.latent_head.floors is None


def test_the_start_leaves_the_rest_of_the_model_and_its_mode_alone():
    torch.manual_seed(0)
    model = MDNRNN(2, 1, MDNRNNConfig(hidden_size=4, num_components=2, output_dropout=0.5))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    z, flags = torch.randn(8, 21, 2, generator=torch.Generator().manual_seed(1)).cumsum(dim=1), torch.zeros(8, 20) > 0
    batch = SequenceBatch(z, torch.randn(8, 20, 1), torch.zeros(8, 20), flags, ~flags)
    initialise_latent_head(model.train(), [batch])
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"latent_head.linear.weight", "latent_head.linear.bias"}
    assert model.training


def test_the_learning_rate_of_m_falls_with_its_size_and_a_given_one_is_kept():
    rate = [TrainingConfig().resolve(hidden_size=size).learning_rate for size in (16, 128, 512)]
    assert rate == pytest.approx([6e-3, 6e-3, 3e-3])
    assert TrainingConfig().resolve().learning_rate == 3e-3  # of V, as in earlier versions
    assert TrainingConfig(learning_rate=1e-4).resolve(hidden_size=16).learning_rate == 1e-4
    assert TrainingConfig().identity() == TrainingConfig(learning_rate=3e-3).identity()
    with pytest.raises(ValueError, match="final_learning_rate: expected 0 <= final <= peak"):
        TrainingConfig(final_learning_rate=4e-3)


def test_a_run_of_another_default_rate_resumes_with_its_own(steps, tmp_path):
    earlier = OPTIONS | {"training_config": TrainingConfig(num_updates=20, evaluate_every=20, learning_rate=3e-3)}

    def interrupt(progress):
        if progress.done == 10:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(steps, out=tmp_path / "out", config=CONFIG, **earlier, run=RunConfig(on_progress=interrupt))
    world = fit(steps, out=tmp_path / "out", config=CONFIG, **OPTIONS)
    assert world.provenance["training_config"]["learning_rate"] == 3e-3


def test_features_that_the_start_does_not_use_keep_random_weights_in_proportion_to_the_noise():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3_000, 3, generator=generator)
    x = features[:, 2:] + 0.01 * torch.randn(3_000, 1, generator=generator)
    torch.manual_seed(0)
    head = MixtureHead(3, 1, 1, factorization="per_dimension")
    before = head.linear.weight.detach().clone()
    head.initialise(features, x, torch.tensor([torch.inf, torch.inf, 1e-6]))
    torch.testing.assert_close(head.linear.weight[1, :2], 0.01 * before[1, :2], rtol=0.1, atol=1e-6)
    assert torch.equal(head.linear.weight[0, :2], before[0, :2])
    assert head.linear.weight[1, 2].item() == pytest.approx(1.0, abs=1e-3)


def test_a_fit_starts_with_the_rates_of_rare_rewards(tmp_path):
    rng = np.random.default_rng(0)
    x, action = rng.standard_normal((200, 41, 1)).astype(np.float32), rng.uniform(-1, 1, (200, 40, 1)).astype(np.float32)
    expected = 10 / (1 + np.exp(3 - 1.5 * (x[:, :-1, 0] + action[..., 0])))
    rewards, ends = np.where(10 * rng.random(expected.shape) < expected, 10.0, 0.0), np.arange(40) == 39
    box = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    store = EpisodeStore.create(tmp_path / "data", observation_space=box, action_space=spaces.Box(-1, 1, (1,), np.float32))
    rows = zip(x, action, rewards, strict=True)
    flags = {"terminations": ends & False, "truncations": ends}
    store.append([Episode(observations=o, actions=a, rewards=r, episode_id=k, **flags) for k, (o, a, r) in enumerate(rows)])
    one = TrainingConfig(num_updates=1, learning_rate=1e-7, final_learning_rate=0.0)
    world = fit(tmp_path / "data", out=tmp_path / "out", config=MDNRNNConfig(hidden_size=8), training_config=one)
    z, features = world.encode(torch.as_tensor(x)), world.action_features.flatten(action)
    with torch.no_grad():
        found = world.mdnrnn(z[:, :-1], features)[0].outcome(z[:, 1:]).reward.expectation()[..., 0].numpy()
    assert np.corrcoef(found.flatten(), expected.flatten())[0, 1] > 0.95  # -0.3 without the start


def test_heads_without_skip_connections_and_without_rewards_are_left_as_they_are():
    z, flags = torch.randn(4, 11, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(4, 10) > 0
    batch = SequenceBatch(z, torch.randn(4, 10, 1), torch.zeros(4, 10), flags, ~flags)
    for fields in ({"skip": False}, {"reward_head": False}):
        model = MDNRNN(2, 1, MDNRNNConfig(hidden_size=4, num_components=2, **fields))
        before = {name: value.clone() for name, value in model.state_dict().items()}
        initialise_reward_head(model, [batch])
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
