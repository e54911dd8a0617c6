"""Unknown arguments are explained, and what is printed says what it is."""

import numpy as np
import pytest
import torch
from toy_worlds import random_world

import worldmodel as wm
from worldmodel.dream import Scores


@pytest.mark.parametrize(
    ("function", "unknown", "advice"),
    [
        (wm.fit, "num_updates", r"training_config=TrainingConfig\(num_updates=10\)"),
        (wm.fit, "window", r"data_config=DataConfig\(window=10\)"),
        (wm.fit, "hidden_size", r"config=MDNRNNConfig\(hidden_size=10\)"),
        (wm.train_vae, "batch_size", r"frame_config=FrameConfig\(batch_size=10\)"),
        (wm.evolve, "population", r"config=SearchConfig\(population=10\)"),
        (wm.ppo, "iterations", r"config=PPOConfig\(iterations=10\)"),
        (wm.evaluate, "num_episodes", r"config=EvaluationConfig\(num_episodes=10\)"),
        (wm.iterate, "max_rounds", r"config=IterationConfig\(max_rounds=10\)"),
        (wm.collect, "overwrite", r"run=RunConfig\(overwrite=10\)"),
        (wm.collect, "num_episode", "did you mean num_episodes"),
        (wm.encode_store, "nonsense_of_mine", "it has data, vision"),
    ],
)
def test_an_unknown_argument_is_explained(function, unknown, advice):
    with pytest.raises(TypeError, match=rf"{function.__name__}: expected one of its arguments, got '{unknown}'.*{advice}"):
        function(**{unknown: 10})


def test_a_store_can_be_indexed_and_printed(tmp_path):
    store = wm.collect(wm.EnvConfig("CartPole-v1", max_steps=9), out=tmp_path, num_episodes=3, seed=0)
    assert len(store) == 3
    assert store[0].episode_id == store[-3].episode_id == store[np.int64(0)].episode_id == 0
    assert [episode.episode_id for episode in store[1:]] == [1, 2]
    for wrong in (3, -4):
        with pytest.raises(IndexError, match="index: expected -3 to 2"):
            store[wrong]
    text = str(store)
    for part in ("3 episodes", "Box(", "Discrete(2)", "env CartPole-v1", "seed 0", str(tmp_path), f"{store.num_steps} in all"):
        assert part in text


def test_dreams_and_rollouts_print_shapes_and_not_numbers():
    dreams = wm.Dreams(random_world(), 4, temperature=0.5)
    assert "4 dreams" in str(dreams)
    assert "temperature 0.5" in str(dreams)
    rollout = dreams.rollout(lambda features: torch.ones(4, dtype=torch.long), 3, generator=torch.Generator().manual_seed(0))
    assert str(rollout).startswith("Rollout: 4 episodes of up to")


@pytest.mark.parametrize(
    ("returns", "text"),
    [([0.012, 0.014], "0.0130 +- 0.0010"), ([100.0, 300.0], "200.0 +- 100.0"), ([0.5, 0.9], "0.70 +- 0.20"), ([3.0], "3.0")],
)
def test_small_scores_have_more_decimals(returns, text):
    assert str(Scores(np.array(returns), np.ones(len(returns)))).startswith(text)
