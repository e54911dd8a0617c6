"""Arithmetic of dreams that only unusual shapes or values exercise."""

import importlib
import itertools
import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from toy_data import labelled_episode, write_store
from toy_worlds import random_world

from worldmodel.dream import LatentState, RepeatedActions, Scores, StartBank, StartConfig, as_agent
from worldmodel.dream.seeding import EpisodeSeeds, Rows
from worldmodel.rng import Streams

starts_module = importlib.import_module("worldmodel.dream.starts")


def test_the_standard_error_is_the_unbiased_deviation_over_the_root_of_the_number():
    scores = Scores(np.array([1.0, 2.0, 6.0, 7.0]), np.ones(4, int))
    assert scores.standard_error == pytest.approx(np.std(scores.returns, ddof=1) / math.sqrt(4))
    assert Scores(np.array([3.0]), np.ones(1, int)).standard_error == 0


def test_start_states_do_not_depend_on_how_many_episodes_are_encoded_at_once(tmp_path, monkeypatch):
    store = write_store(tmp_path / "s", [labelled_episode(i, 4 + i, terminated=i % 3 != 0) for i in range(9)])
    world, found = random_world(observation_space=store.observation_space), []
    config = StartConfig(num_states=200, first_frames=0.1, before_ends=0.5)
    for parallel in (2, 100):
        monkeypatch.setattr(starts_module, "PARALLEL_EPISODES", parallel)
        bank = StartBank.along(world, tmp_path / "s", config=config, seed=1)
        states = torch.cat([bank.mean, bank.lstm.h[0], bank.lstm.c[0]], dim=1)
        found.append(sorted(tuple(round(x, 4) for x in state) for state in states.tolist()))
    assert len(found[0]) > 100
    np.testing.assert_allclose(np.array(found[0]), np.array(found[1]), atol=2e-4)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_start_states_are_drawn_uniformly_with_normal_noise(size):
    world = random_world(observation_space=spaces.Box(-1, 1, (size,)), starts=3)
    mean = torch.arange(3.0).reshape(3, 1).expand(3, size).contiguous() * 100
    bank = StartBank(mean, torch.full((3, size), math.log(4.0)), world.mdnrnn.initial_state(3))
    n = 6000
    z, _ = bank.draw(Streams(torch.arange(n), torch.zeros(n, dtype=torch.int64)), n)
    which = (z[:, 0] / 100).round()
    counts = torch.stack([(which == k).sum() for k in range(3)])
    assert (counts - n / 3).abs().max() < 5 * math.sqrt(n * 2 / 9)
    noise = (z - 100 * which.unsqueeze(-1)) / 2
    assert noise.mean(dim=0).abs().max() < 5 / math.sqrt(n)
    torch.testing.assert_close(noise.T.cov(correction=0).reshape(size, size), torch.eye(size), atol=0.1, rtol=0)


def test_rows_are_put_along_the_first_dimension_by_default():
    mask = torch.tensor([True, False, True])
    old, new = torch.zeros(3, 3), torch.arange(1.0, 10.0).reshape(3, 3)
    expected = torch.where(mask.unsqueeze(-1), new, old)
    torch.testing.assert_close(Rows(mask, dense=True).put(old.clone(), new), expected)
    torch.testing.assert_close(Rows(mask, dense=False).put(old.clone(), new[mask]), expected)


def test_the_first_episode_of_a_seed_has_number_0_and_the_next_one_1():
    seeds, rows = EpisodeSeeds(2, torch.device("cpu")), torch.tensor([True, True])
    seeds.reseed(5, rows, np.random.default_rng(0))
    for number in (0, 1):
        expected = Streams(torch.tensor([5, 6]), torch.tensor([number, number])).uniform_(torch.empty(2, 3))
        torch.testing.assert_close(seeds.begin(Rows(rows)).uniform_(torch.empty(2, 3)), expected, rtol=0, atol=0)


def test_what_is_neither_an_agent_nor_a_function_is_refused():
    class Half:
        def act(self, state):
            return None

        def __call__(self, features):
            return None

    with pytest.raises(TypeError, match="got Half without reset, save_pretrained"):
        as_agent(Half())
    with pytest.raises(TypeError, match="got int without reset, act, save_pretrained"):
        as_agent(5)


def test_dreams_after_prefixes_start_where_the_prefixes_of_long_episodes_end(tmp_path):
    lengths = (3, 4, 9, 5)
    store = write_store(tmp_path / "s", [labelled_episode(i, n) for i, n in enumerate(lengths)])
    world = random_world(observation_space=store.observation_space)
    bank = StartBank.after_prefixes(world, tmp_path / "s", 4)
    assert world.decode(bank.mean).round().int().tolist() == [[2, 4], [3, 4]]  # episodes of more than four steps
    for row, episode in enumerate((2, 3)):
        lstm = world.mdnrnn.initial_state(1)
        for t in range(4):
            z = world.encode(torch.tensor([[float(episode), float(t)]]))
            lstm = world.mdnrnn.advance(z, world.action_features.flatten(torch.tensor([t % 3])), lstm)
        torch.testing.assert_close(bank.lstm.h[:, row], lstm.h[:, 0])
    with pytest.raises(ValueError, match=r"expected fewer steps than the longest episode of .* has, 9, got 9"):
        StartBank.after_prefixes(world, tmp_path / "s", 9)


def test_states_before_ends_are_8_to_50_steps_before_them_by_default(tmp_path):
    store = write_store(tmp_path / "s", [labelled_episode(0, 100)])
    world = random_world(observation_space=store.observation_space)
    config = StartConfig(num_states=2000, first_frames=0.0, before_ends=1.0)
    bank = StartBank.along(world, tmp_path / "s", config=config)
    assert set(world.decode(bank.mean)[:, 1].round().int().tolist()) == {100 - back for back in range(8, 51)}


def test_repeated_actions_are_held_for_1_to_10_steps_by_default():
    world = random_world(spaces.Box(-1, 1, (1,), np.float64), seed=1)
    agent = RepeatedActions(world, generator=torch.Generator().manual_seed(0))
    state = LatentState(
        torch.zeros(200, world.vision.latent_size), world.mdnrnn.initial_state(200), torch.ones(200, dtype=torch.bool)
    )
    agent.reset(200)
    actions = torch.stack([agent.act(state)[:, 0] for _ in range(60)], dim=1)  # (200, 60)
    holds = []
    for row in actions.tolist():
        runs = [len(list(run)) for _, run in itertools.groupby(row)]
        holds += runs[:3]  # the last run may be cut short
    assert set(holds) == set(range(1, 11))
    assert np.mean(holds) == pytest.approx(5.5, abs=5 * np.std(holds) / math.sqrt(len(holds)))


def test_seeds_are_below_2_to_the_62():
    seeds, rows = EpisodeSeeds(1, torch.device("cpu")), torch.tensor([True])
    seeds.reseed(2**62 - 1, rows, np.random.default_rng(0))
    with pytest.raises(ValueError, match="expected an integer below 2\\^62"):
        seeds.reseed(2**62, rows, np.random.default_rng(0))
