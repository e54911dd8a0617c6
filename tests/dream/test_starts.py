"""States from within real episodes: M's state must be what the episode makes of it, and the steps those that were asked for."""

import numpy as np
import pytest
import torch
from toy_data import labelled_episode, write_store
from toy_worlds import random_world

from worldmodel.dream import StartBank, StartConfig
from worldmodel.dream.starts import _choose, _choose_episodes, _shares
from worldmodel.training import encode_store


def make(tmp_path, lengths=(9, 4, 30, 17), *, terminated=True):
    world = random_world(vision_scale=10.0, observation_space=write_store(tmp_path / "space", []).observation_space)
    write_store(tmp_path / "data", [labelled_episode(k, n, terminated=terminated) for k, n in enumerate(lengths)])
    return world


def places(world, bank):
    """Episode and step of each state, which the made-up observations spell out."""
    return [tuple(row) for row in world.decode(bank.mean).round().int().tolist()]


@pytest.mark.parametrize("encoded", [False, True])
def test_the_state_is_what_the_episode_made_of_it(tmp_path, encoded):
    world = make(tmp_path)
    data = tmp_path / "data"
    if encoded:
        data = encode_store(data, vision=world.vision, out=tmp_path / "encoded", dtype="float32").path
    bank = StartBank.along(
        world, data, config=StartConfig(num_states=60, first_frames=0.0, before_ends=0.4, nearest=1, farthest=3)
    )
    assert len(bank) == 60
    for number, (episode, step) in enumerate(places(world, bank)):
        lstm = world.mdnrnn.initial_state(1)
        for t in range(step):
            z = world.encode(torch.tensor([[float(episode), float(t)]]))
            lstm = world.mdnrnn.advance(z, world.action_features.flatten(torch.tensor([t % 3])), lstm)
        assert torch.allclose(bank.lstm.h[:, number], lstm.h[:, 0], atol=1e-5)
        assert torch.allclose(bank.lstm.c[:, number], lstm.c[:, 0], atol=1e-5)


def test_the_steps_have_the_requested_distances_before_the_end(tmp_path):
    lengths = (9, 4, 30, 17)
    world = make(tmp_path, lengths)
    part = {"first_frames": 0.0, "before_ends": 1.0, "nearest": 5, "farthest": 7}
    before_ends = places(world, StartBank.along(world, tmp_path / "data", config=StartConfig(num_states=300, **part)))
    expected = {(k, back) for k in (0, 2, 3) for back in (5, 6, 7)} | {(1, 4)}  # all of the shorter episode
    assert {(k, lengths[k] - step) for k, step in before_ends} == expected
    anywhere = places(
        world, StartBank.along(world, tmp_path / "data", config=StartConfig(num_states=900, first_frames=0.0, before_ends=0.0))
    )
    assert set(anywhere) == {(k, step) for k in range(4) for step in range(lengths[k])}
    firsts = StartBank.along(world, tmp_path / "data", config=StartConfig(num_states=50, first_frames=1.0, before_ends=0.0))
    assert (firsts.lstm.h == 0).all()
    assert (firsts.mean[:, None] == world.start_mean).all(dim=2).any(dim=1).all()


def test_truncated_episodes_have_no_steps_before_a_termination(tmp_path):
    world = make(tmp_path, terminated=False)
    assert (
        len(StartBank.along(world, tmp_path / "data", config=StartConfig(num_states=50, first_frames=0.1, before_ends=0.3)))
        == 35
    )


def test_parts_never_come_to_more_than_the_whole(tmp_path):
    assert (
        len(
            StartBank.along(
                make(tmp_path), tmp_path / "data", config=StartConfig(num_states=3, first_frames=0.5, before_ends=0.5)
            )
        )
        == 3
    )


def test_steps_are_spread_evenly():
    lengths = np.array([10, 30])
    which, at, dying = _choose(lengths, _shares(lengths, "steps"), 4000, 0, (1, 5), np.random.default_rng(0))
    assert not dying.any()
    assert np.bincount(which)[1] / 4000 == pytest.approx(0.75, abs=0.03)
    assert at[which == 0].mean() == pytest.approx(4.5, abs=0.4)


def test_times_are_spread_evenly():
    lengths = np.array([10] * 9 + [30] * 3)
    which, at, dying = _choose(lengths, _shares(lengths, "times"), 6000, 3000, (1, 1), np.random.default_rng(0))
    assert np.bincount(at[~dying]) == pytest.approx(200, abs=60)  # 4.2 standard deviations of 14
    assert np.bincount(which[~dying & (at < 10)], minlength=12) == pytest.approx(2000 / 12, abs=55)
    ends = np.bincount(at[dying], minlength=30)
    assert ends[9] == pytest.approx(3000 * 0.75 / 1.75, abs=120)  # of 12 that came to step 9, 9 died; of 3 at 29 all
    assert ends[9] + ends[29] == 3000


def test_times_that_few_episodes_reach_count_less():
    lengths = np.array([10] * 99 + [1000])
    shares = _shares(lengths, "times")
    assert shares[:10] == pytest.approx(1 / 100)
    assert shares[10:] == pytest.approx(1 / 2)  # of 1 in 50


def test_episodes_that_come_to_late_times_prime_m_first():
    lengths = np.array([10] * 6000 + [200] * 500)
    chosen = _choose_episodes(lengths, "times", np.random.default_rng(0))
    assert len(set(chosen)) == 2000
    assert (chosen >= 6000).sum() > 480
    assert (np.diff(lengths[chosen]) >= 0).all()
    assert (_choose_episodes(lengths, "steps", np.random.default_rng(0)) >= 6000).sum() < 220


def test_the_seed_decides(tmp_path):
    world = make(tmp_path)
    banks = [StartBank.along(world, tmp_path / "data", config=StartConfig(num_states=40), seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(banks[0].lstm.h, banks[1].lstm.h)
    assert places(world, banks[0]) != places(world, banks[2])


@pytest.mark.parametrize(
    "numbers",
    [
        {"num_states": 0},
        {"first_frames": -0.1},
        {"first_frames": 0.6, "before_ends": 0.6},
        {"nearest": 0},
        {"nearest": 51},
        {"even": "time"},
    ],
)
def test_numbers_out_of_range_are_rejected(tmp_path, numbers):
    world = make(tmp_path)
    with pytest.raises(ValueError, match=": expected"):
        StartBank.along(world, tmp_path / "data", config=StartConfig(**numbers))


def test_data_of_another_environment_are_rejected(tmp_path):
    make(tmp_path)
    with pytest.raises(ValueError, match="expected the world model's observation space"):
        StartBank.along(random_world(), tmp_path / "data")
