"""Arithmetic of dreams that only unusual shapes or values exercise."""

import importlib
import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from toy_data import labelled_episode, write_store
from toy_worlds import random_world

from worldmodel.dream import Scores, StartBank, StartConfig, as_agent
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
