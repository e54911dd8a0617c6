"""States from within real episodes: M's state must be what the episode makes of it, and the steps those that were asked for."""

import importlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_data import labelled_episode, write_store
from toy_worlds import random_world

from worldmodel.dream import StartBank, StartConfig
from worldmodel.dream.starts import _choose_anywhere, _choose_before_ends, _choose_episodes, _shares
from worldmodel.training import encode_store

starts_module = importlib.import_module("worldmodel.dream.starts")
EVENS = {
    "steps": [(1, 0), (2, 2), (1, 2), (1, 2), (2, 6), (2, 13), (3, 13), (2, 18), (2, 24), (2, 24), (2, 24), (2, 28)],
    "times": [(1, 0), (1, 1), (0, 5), (2, 15), (3, 15), (2, 21), (2, 24), (2, 25), (2, 26), (2, 28), (2, 28), (2, 28)],
}


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


def test_states_before_ends_come_from_terminated_episodes_alone_and_are_as_many_as_requested(tmp_path):
    world = make(tmp_path, lengths=())
    kinds = [(9, False), (4, True), (30, False), (17, True)]
    write_store(tmp_path / "mixed", [labelled_episode(k, n, terminated=ends) for k, (n, ends) in enumerate(kinds)])
    config = StartConfig(num_states=300, first_frames=0.0, before_ends=1.0, nearest=1, farthest=3)
    found = places(world, StartBank.along(world, tmp_path / "mixed", config=config))
    assert len(found) == 300
    assert set(found) == {(1, 1), (1, 2), (1, 3), (3, 14), (3, 15), (3, 16)}
    assert sum(episode == 1 for episode, _ in found) == pytest.approx(150, abs=45)  # 5 standard deviations


@pytest.mark.parametrize("even", ["steps", "times"])
def test_the_only_terminated_episode_of_many_gives_all_states_before_ends(tmp_path, monkeypatch, even):
    monkeypatch.setattr(starts_module, "MAX_PREFIXES", 8)
    world = make(tmp_path, lengths=())
    write_store(tmp_path / "many", [labelled_episode(k, 6 + k % 5, terminated=k == 37) for k in range(80)])
    config = StartConfig(num_states=200, first_frames=0.1, before_ends=0.5, nearest=2, farthest=2, even=even)
    for seed in range(3):
        found = places(world, StartBank.along(world, tmp_path / "many", config=config, seed=seed))[20:]
        assert len(found) == 180
        assert sum(place == (37, 6) for place in found) >= 100
        assert len({episode for episode, _ in found}) <= 9  # few episodes prime M: memory and time stay small


def test_terminated_episodes_are_primed_in_proportion_to_their_states(tmp_path, monkeypatch):
    monkeypatch.setattr(starts_module, "MAX_PREFIXES", 40)
    world = make(tmp_path, lengths=())
    write_store(tmp_path / "many", [labelled_episode(k, 5, terminated=k % 4 == 0) for k in range(400)])
    config = StartConfig(num_states=2000, first_frames=0.0, before_ends=0.5, nearest=1, farthest=1)
    found = places(world, StartBank.along(world, tmp_path / "many", config=config))
    episodes = {episode for episode, _ in found}
    assert len({episode for episode in episodes if episode % 4 == 0}) == 20  # half of 40
    assert 40 <= len(episodes) <= 60
    anywhere = [episode for episode, step in found if step != 4]  # of episodes that were chosen whether they terminated or not
    assert np.mean([episode % 4 == 0 for episode in anywhere]) < 0.45


def test_the_choice_of_states_is_that_of_earlier_versions_if_all_episodes_terminated(tmp_path):
    world = make(tmp_path)
    config = StartConfig(num_states=12, first_frames=0.0, before_ends=0.5, nearest=2, farthest=6)
    chosen = {
        even: places(world, StartBank.along(world, tmp_path / "data", config=replace(config, even=even))) for even in EVENS
    }
    assert chosen == EVENS


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
    which, at = _choose_anywhere(lengths, _shares(lengths, "steps"), 4000, np.random.default_rng(0))
    assert np.bincount(which)[1] / 4000 == pytest.approx(0.75, abs=0.03)
    assert at[which == 0].mean() == pytest.approx(4.5, abs=0.4)


def test_times_are_spread_evenly():
    lengths = np.array([10] * 9 + [30] * 3)
    rng, shares = np.random.default_rng(0), _shares(lengths, "times")
    which, at = _choose_anywhere(lengths, shares, 6000, rng)
    assert np.bincount(at) == pytest.approx(200, abs=60)  # 4.2 standard deviations of 14
    assert np.bincount(which[at < 10], minlength=12) == pytest.approx(2000 / 12, abs=55)
    which, back = _choose_before_ends(lengths, shares, 3000, (1, 1), rng)
    ends = np.bincount(lengths[which] - back, minlength=30)
    assert ends[9] == pytest.approx(3000 * 0.75 / 1.75, abs=120)  # of 12 that came to step 9, 9 died; of 3 at 29 all
    assert ends[9] + ends[29] == 3000


def test_times_that_few_episodes_reach_count_less():
    lengths = np.array([10] * 99 + [1000])
    shares = _shares(lengths, "times")
    assert shares[:10] == pytest.approx(1 / 100)
    assert shares[10:] == pytest.approx(1 / 2)  # of 1 in 50


def test_episodes_that_come_to_late_times_prime_m_first():
    lengths = np.array([10] * 6000 + [200] * 500)
    chosen = _choose_episodes(lengths, "times", 2000, np.random.default_rng(0))
    assert len(set(chosen)) == 2000
    assert (chosen >= 6000).sum() > 480
    assert (np.diff(lengths[chosen]) >= 0).all()
    assert (_choose_episodes(lengths, "steps", 2000, np.random.default_rng(0)) >= 6000).sum() < 220


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
