"""Training on episodes in which numbers of the observation are missing."""

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from linear_worlds import DECAY, SD, linear_world

from worldmodel.data import Episode, EpisodeStore
from worldmodel.dream import Dreams, LatentTracker, StartBank, StartConfig, primed_states
from worldmodel.evaluation import episode_uncertainty, impute, likelihood, open_loop, surprise
from worldmodel.models import (
    MDNRNN,
    ExtraInputs,
    MDNRNNConfig,
    SequenceBatch,
    StateNormalizer,
    WorldModel,
    encode_episodes,
    fill_missing,
)
from worldmodel.training import TrainingConfig, encode_store, fit

CONFIG = MDNRNNConfig(hidden_size=8)
NAN = np.nan
TRAINING = TrainingConfig(num_updates=20, evaluate_every=10)


def write_store(path, *, share=0.3, episodes=8, steps=30, seed=0, missing=(0, 1)):
    """Write episodes of a Dict of two numbers, some of which are missing, and a choice."""
    rng = np.random.default_rng(seed)
    observation = spaces.Dict({"gear": spaces.Discrete(3), "state": spaces.Box(-np.inf, np.inf, (2,), np.float32)})
    store = EpisodeStore.create(
        path,
        observation_space=observation,
        action_space=spaces.Box(-1, 1, (1,), np.float32),
        recipe={"missing": {"state": list(missing)}, "rewards": False},
    )
    data = []
    for number in range(episodes):
        state = rng.normal(size=(steps + 1, 2)).cumsum(axis=0).astype(np.float32)
        lacking = rng.random(state.shape) < share
        lacking[:, [column for column in range(2) if column not in missing]] = False
        data.append(
            Episode(
                observations={"gear": rng.integers(3, size=steps + 1), "state": np.where(lacking, np.nan, state)},
                actions=rng.uniform(-1, 1, (steps, 1)).astype(np.float32),
                rewards=np.zeros(steps),
                terminations=np.zeros(steps, bool),
                truncations=np.arange(steps) == steps - 1,
                episode_id=number,
            )
        )
    store.append(data)
    return path


def test_fit_gives_m_an_indicator_for_each_number_that_may_be_missing(tmp_path):
    world = fit(write_store(tmp_path / "data"), out=tmp_path / "world", config=CONFIG, training_config=TRAINING)
    assert world.mdnrnn.extras == ExtraInputs(maskable=(3, 4))  # after the one-hot gear
    found = likelihood(world, tmp_path / "data")
    assert all(math.isfinite(value) for value in found.nats.values())
    assert math.isfinite(found.nats_per_step)


def test_complete_data_make_the_model_that_they_made_before(tmp_path):
    model = MDNRNN(2, 1, CONFIG)
    assert model.extras.size == 0
    assert not {"maskable", "usual_time"} & set(model.config_to_json())
    assert model.lstm.input_size == 3


def test_a_world_of_incomplete_data_is_saved_opened_and_dreamed(tmp_path):
    world = fit(write_store(tmp_path / "data"), out=tmp_path / "world", config=CONFIG, training_config=TRAINING)
    again = WorldModel.from_pretrained(tmp_path / "world")
    assert again.fingerprint == world.fingerprint
    assert again.mdnrnn.extras == world.mdnrnn.extras
    for precision in ("float32", "bfloat16"):
        dreams = Dreams(again, 4, precision=precision)
        rollout = dreams.rollout(lambda state: np.zeros((4, 1), np.float32), 5, generator=dreams.generator(0))
        assert bool(rollout.z.isfinite().all())
    found = open_loop(again, tmp_path / "data", burn_in=3, horizon=4, num_dreams=19, num_forecasts=5)
    assert np.isfinite(found.error).all()
    assert bool(StartBank.along(again, tmp_path / "data", config=StartConfig(num_states=20)).mean.isfinite().all())
    assert bool(StartBank.after_prefixes(again, tmp_path / "data", 5).mean.isfinite().all())


def test_the_tracker_reads_the_means_of_what_is_missing(tmp_path):
    path = write_store(tmp_path / "data")
    world = fit(path, out=tmp_path / "world", config=CONFIG, training_config=TRAINING)
    episode = EpisodeStore.open(path).read(0)
    steps = encode_episodes([episode], world.vision, world.action_features)
    filled = fill_missing(world.mdnrnn, steps.mean.unsqueeze(0), steps.action.unsqueeze(0))
    tracker = LatentTracker(world)
    tracker.reset(seed=0)
    for t in range(len(episode) + 1):
        observation = {name: leaf[t : t + 1] for name, leaf in episode.observations.items()}
        state = tracker.observe(observation, None if t == 0 else episode.actions[t - 1 : t])
        torch.testing.assert_close(state.z, filled.z[:, t])
    *_, lstm = primed_states(world.mdnrnn, filled.z, filled.action)
    torch.testing.assert_close(state.lstm.h, lstm.h)


def test_two_episodes_of_a_tracker_lack_different_numbers_and_one_may_end(tmp_path):
    world = fit(write_store(tmp_path / "data"), out=tmp_path / "world", config=CONFIG, training_config=TRAINING)
    gear, action = np.zeros(2, dtype=np.int64), np.zeros((2, 1), np.float32)
    rows = np.array([[[0.5, NAN], [1.0, 2.0]], [[NAN, NAN], [NAN, 1.0]], [[1.0, 1.0], [NAN, NAN]]], np.float32)
    both, alone = LatentTracker(world, 2), LatentTracker(world, 1)
    for tracker in (both, alone):
        tracker.reset(seed=0)
    for t, row in enumerate(rows):
        if t == 2:
            both.end(np.array([True, False]))
        state = both.observe({"gear": gear, "state": row}, None if t == 0 else action)
        last = alone.observe({"gear": gear[:1], "state": row[1:]}, None if t == 0 else action[:1])
    torch.testing.assert_close(state.z[1:], last.z)
    torch.testing.assert_close(state.lstm.h[:, 1:], last.lstm.h)


def test_a_number_that_was_never_missing_in_training_must_be_there(tmp_path):
    world = fit(write_store(tmp_path / "data", missing=(0,)), out=tmp_path / "world", config=CONFIG, training_config=TRAINING)
    message = "z: expected number 4 to be observed in every row, as in the data that M was trained on, got NaN"
    with pytest.raises(ValueError, match=message):
        likelihood(world, write_store(tmp_path / "other"))
    tracker = LatentTracker(world)
    tracker.reset(seed=0)
    tracker.observe({"gear": np.zeros(1, int), "state": np.array([[NAN, 1.0]], np.float32)})
    with pytest.raises(ValueError, match=message):
        tracker.observe({"gear": np.zeros(1, int), "state": np.array([[0.0, NAN]], np.float32)}, np.zeros((1, 1)))
    with pytest.raises(ValueError, match=r"initial: expected a world model of data in which 'state' may be missing"):
        fit(tmp_path / "other", out=tmp_path / "more", initial=world, training_config=TRAINING)


def test_heads_that_cannot_be_conditioned_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"latent_head: expected one with conditionals in closed form.*'AutoregressiveHead'"):
        MDNRNN(2, 1, MDNRNNConfig(latent_head="AutoregressiveHead"), extras=ExtraInputs(maskable=(0,)))


def test_the_loss_counts_observed_numbers_only():
    model = linear_world(2, 0.8, ExtraInputs(maskable=(0, 1))).mdnrnn
    z = torch.tensor([[[0.0, 0.0], [1.0, NAN], [NAN, NAN], [0.5, -0.5]]], dtype=torch.float64)
    mask = torch.ones(1, 3, dtype=torch.bool)
    batch = SequenceBatch(z, torch.zeros(1, 3, 1, dtype=torch.float64), torch.zeros(1, 3), ~mask, mask)
    losses = model.step_losses(batch).latent[0]
    normal = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), SD)
    torch.testing.assert_close(losses[0], -normal.log_prob(z[0, 1, 0]))
    assert losses[1] == 0
    means = torch.tensor([1.0, 0.8], dtype=torch.float64) * DECAY**2  # the missing number was 0.8, given the other
    covariance = SD**2 * torch.tensor([[1, 0.8], [0.8, 1]], dtype=torch.float64)
    joint = torch.distributions.MultivariateNormal(means, covariance)
    torch.testing.assert_close(losses[2], -joint.log_prob(z[0, 3]))
    loss, metrics = model.loss(batch)
    torch.testing.assert_close(loss, losses.sum() / 3)  # observed numbers
    torch.testing.assert_close(metrics["nll_per_dim"], losses.sum() / 3)


def test_extra_inputs_that_are_left_out_have_their_usual_values():
    extras = ExtraInputs(maskable=(1, 0), usual_time=0.5)
    assert (extras.maskable, extras.size) == ((0, 1), 3)
    units = MDNRNN(2, 1, CONFIG, extras=extras).action_units
    every = units(torch.tensor([[2.0, 0.5, 0.0, 0.0]]), torch.float32)
    for given in ([[2.0]], [[2.0, 0.5]]):
        assert torch.equal(units(torch.tensor(given), torch.float32), every)
    assert units(torch.tensor([[2.0, 1.0, 1.0, 0.0]]), torch.float32).tolist() == [[2.0, pytest.approx(math.log(2)), 1.0, 0.0]]
    with pytest.raises(ValueError, match="usual_time: expected a positive finite number"):
        ExtraInputs(usual_time=0.0)


def test_incomplete_observations_are_not_encoded_in_a_store(tmp_path):
    store = EpisodeStore.open(write_store(tmp_path / "data"))
    vision = StateNormalizer(store.observation_space).fit(episode.observations for episode in store)
    assert bool(vision.mean.isfinite().all())
    message = r"data: expected complete observations, got some in which numbers of \['state'\] may be missing"
    with pytest.raises(ValueError, match=message):
        encode_store(tmp_path / "data", vision=vision, out=tmp_path / "encoded")


def test_v_is_standardised_by_what_was_observed():
    rows = np.array([[1.0, NAN], [3.0, 5.0], [NAN, 7.0]])
    box = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    found = StateNormalizer(box).fit([rows[:1], rows[1:]])
    torch.testing.assert_close(found.mean.double(), torch.tensor([2.0, 6.0], dtype=torch.float64))
    torch.testing.assert_close(found.scale.double(), torch.ones(2, dtype=torch.float64))
    assert found.encode(rows)[0].isnan().tolist() == np.isnan(rows).tolist()


def test_an_ensemble_is_trained_on_incomplete_data(tmp_path):
    path = write_store(tmp_path / "data")
    world = fit(path, out=tmp_path / "world", config=CONFIG, training_config=TRAINING, ensemble=2)
    assert all(math.isfinite(value) for value in likelihood(world, path).nats.values())
    episode = EpisodeStore.open(path).read(0)
    assert np.isfinite(impute(world, episode, 2)["state"]).all()
    assert np.isfinite(surprise(world, episode).nats[1:][~np.isnan(episode.observations["state"][1:]).any(axis=1)]).all()
    assert bool(episode_uncertainty(world, episode).isfinite().all())
