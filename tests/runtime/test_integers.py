"""Integer arguments are validated in the same way everywhere."""

import dataclasses
import json

import numpy as np
import pytest

import worldmodel as wm
from worldmodel.agents import OpenAIESConfig
from worldmodel.data import EnvConfig, RepeatPolicy, rollouts, split_episodes
from worldmodel.envs.options import DreamOptions
from worldmodel.runtime import WorkerConfig, check_integer

FIELDS = [
    *((wm.TrainingConfig, name) for name in ("num_updates", "evaluate_every", "max_test_batches", "patience")),
    *((wm.DataConfig, name) for name in ("window", "burn_in", "batch_size", "min_length")),
    *((wm.FrameConfig, name) for name in ("batch_size", "min_length")),
    *((wm.VAEConfig, name) for name in ("latent_size", "crop_top", "crop_bottom", "crop_left", "crop_right")),
    *((wm.EvaluationConfig, name) for name in ("num_episodes", "num_dreams")),
    *((wm.IterationConfig, name) for name in ("max_rounds", "first_episodes", "rollouts", "test_episodes", "patience_rounds")),
    *((WorkerConfig, name) for name in ("num_workers", "attempts")),
    (DreamOptions, "horizon"),
]


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_integers_of_python_and_numpy_become_python_integers(value):
    assert type(check_integer(value, "size", least=1)) is int


@pytest.mark.parametrize("value", [True, np.True_, 2.0, "2", None, np.float64(2)])
def test_other_types_are_rejected(value):
    with pytest.raises(TypeError, match="size: expected an integer >= 1, got"):
        check_integer(value, "size", least=1)


def test_values_below_the_least_are_rejected():
    with pytest.raises(ValueError, match="size: expected an integer >= 1, got 0"):
        check_integer(0, "size", least=1)
    assert check_integer(-5, "shift") == -5


@pytest.mark.parametrize(("config", "name"), FIELDS)
def test_every_configuration_rejects_a_boolean_and_a_fraction_and_takes_numpys_integers(config, name):
    for value in (True, 1.5):
        with pytest.raises(TypeError, match=f"{name}: expected an integer"):
            config(**{name: value})
    with pytest.raises(ValueError, match=f"{name}: expected an integer >= "):
        config(**{name: -1})
    assert type(getattr(config(**{name: np.int64(4)}), name)) is int


NUMPY_NUMBERS = [
    (wm.TrainingConfig, {"learning_rate": np.float32(1e-3), "final_learning_rate": np.float64(1e-5), "calibrate": np.True_}),
    (wm.TrainingConfig, {"clip_norm": np.float32(1)}),
    (wm.DataConfig, {"test_fraction": np.float32(0.25)}),
    (wm.FrameConfig, {"test_fraction": np.float32(0.25)}),
    (wm.MDNRNNConfig, {"min_scale": np.float32(0.1), "output_dropout": np.float64(0.5), "reward_components": np.int64(2)}),
    (wm.MDNRNNConfig, {"reward_atoms": (np.float32(0.1), np.int64(3)), "skip": np.False_}),
    (wm.SearchConfig, {"sigma": np.float32(0.5), "target": np.float32(3)}),
    (wm.PPOConfig, {"discount": np.float32(0.5), "entropy": np.float64(0.1)}),
    (wm.EvaluationConfig, {"temperature": np.float32(0.5)}),
    (wm.IterationConfig, {"temperature": np.float32(0.5), "exploration": np.float32(0.5)}),
    (OpenAIESConfig, {"learning_rate": np.float32(0.5)}),
    (wm.VAEConfig, {"min_nats": np.float32(0.5)}),
]


@pytest.mark.parametrize(("config", "fields"), NUMPY_NUMBERS, ids=str)
def test_numpys_numbers_are_the_same_configuration_as_pythons(config, fields):
    made = config(**fields)
    assert json.loads(json.dumps(dataclasses.asdict(made), default=str)) is not None
    for name in fields:
        value = getattr(made, name)
        assert not isinstance(value, np.generic)
        assert not any(isinstance(one, np.generic) for one in value) if isinstance(value, tuple) else True
    plain = {name: np.asarray(value).tolist() for name, value in fields.items()}
    assert made == config(**{name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()})


def test_functions_reject_booleans(tmp_path):
    with pytest.raises(TypeError, match="num_episodes: expected an integer"):
        wm.collect("CartPole-v1", out=tmp_path / "s", num_episodes=True)
    with pytest.raises(TypeError, match="episode_ids: expected an integer"):
        rollouts("CartPole-v1", episode_ids=[0, 1.5], seed=0)
    with pytest.raises(TypeError, match="seed: expected an integer"):
        rollouts("CartPole-v1", episode_ids=[0], seed=0.5)
    with pytest.raises(TypeError, match="num_episodes: expected an integer"):
        split_episodes(5.0, test_fraction=0.1, seed=0)
    with pytest.raises(TypeError, match="max_steps: expected an integer"):
        EnvConfig("CartPole-v1", max_steps=2.5)
    with pytest.raises(TypeError, match="max_repeat: expected an integer"):
        RepeatPolicy(None, 2.5)
