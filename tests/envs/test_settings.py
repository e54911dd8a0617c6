"""What can be changed in a dream after it was made takes effect; everything else is refused."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from toy_worlds import random_world

import worldmodel as wm

WORLD = random_world(termination_head=False)
TAUS = [0.0, 0.3, 2.0]


def single(**options):
    return gym.make("worldmodel:Dream-v0", world=WORLD, **options)


def vector(**options):
    return wm.DreamVectorEnv(WORLD, 3, autoreset_mode="SameStep", **options)


def sb3(**options):
    pytest.importorskip("stable_baselines3")
    from worldmodel.adapters.sb3 import SB3VecEnv

    return SB3VecEnv(vector(**options))


def torchrl(**options):
    pytest.importorskip("torchrl")
    from worldmodel.adapters.torchrl import TorchRLEnv

    return TorchRLEnv(WORLD, 3, **options)


def observations(env, *, tau=None, options=None, seed=3):
    """Return 6 observations of row 0 under the same actions; ``tau`` is set after the reset."""
    name = type(env).__name__
    seen = []
    if name == "TorchRLEnv":
        env.set_seed(seed)
        state = env.reset(**({} if options is None else {"options": options}))
        if tau is not None:
            env.temperature = tau
        for _ in range(6):
            state["action"] = torch.ones(3, dtype=torch.int64)
            state = env.step(state)["next"].exclude("reward")
            seen.append(state["observation"][0].numpy())
        return np.array(seen)
    if name == "SB3VecEnv":
        env.seed(seed)
        if options is not None:
            env.set_options(options)
        env.reset()
        if tau is not None:
            env.set_attr("temperature", tau)
        return np.array([env.step(np.ones(3, dtype=int))[0][0] for _ in range(6)])
    env.reset(seed=seed, options=options)
    if tau is not None:
        env.unwrapped.temperature = tau
    many = name == "DreamVectorEnv"
    steps = [env.step(np.ones(3, dtype=int) if many else 1)[0] for _ in range(6)]
    return np.array([one[0] if many else one for one in steps])


@pytest.mark.parametrize("make", [single, vector, sb3, torchrl])
@pytest.mark.parametrize("tau", TAUS)
def test_a_temperature_that_is_set_or_given_to_reset_is_the_one_of_the_constructor(make, tau):
    made = observations(make(temperature=tau))
    np.testing.assert_array_equal(observations(make(), tau=tau), made)
    np.testing.assert_array_equal(observations(make(), options={"temperature": tau}), made)
    assert not np.array_equal(observations(make()), made)


@pytest.mark.parametrize("make", [single, vector, torchrl])
@pytest.mark.parametrize("wrong", [-1, float("nan"), "hot", (2.0, 1.0), (1.0, 2.0, 3.0), None])
def test_a_temperature_out_of_range_is_refused_and_nothing_changes(make, wrong):
    env = make(temperature=0.3).unwrapped if make is not torchrl else make(temperature=0.3)
    env.reset()
    with pytest.raises((ValueError, TypeError), match="temperature"):
        env.temperature = wrong
    if wrong is not None:
        with pytest.raises((ValueError, TypeError), match="temperature"):
            env.reset(options={"temperature": wrong})
    assert env.temperature == env.options.temperature == 0.3


def test_a_range_is_sampled_from_the_next_episode_on():
    env = vector()
    env.reset(seed=0)
    env.temperature = (0.5, 0.6)
    _, infos = env.reset(seed=0)
    assert ((infos["temperature"] >= 0.5) & (infos["temperature"] <= 0.6)).all()
    _, expected = vector(temperature=(0.5, 0.6)).reset(seed=0)
    np.testing.assert_array_equal(infos["temperature"], expected["temperature"])
    env.temperature = 1.0
    assert env.reset(seed=0)[1] == {}


def test_a_reset_of_some_dreams_changes_their_temperature_only():
    env = wm.DreamVectorEnv(WORLD, 3, autoreset_mode="Disabled")
    env.reset(seed=0)
    _, infos = env.reset(options={"reset_mask": np.array([False, True, False]), "temperature": 0.25})
    assert infos["temperature"].tolist() == [1.0, 0.25, 1.0]
    assert env.temperature.tolist() == [1.0, 0.25, 1.0]


def test_an_unknown_option_of_reset_is_still_refused():
    with pytest.raises(ValueError, match="temprature"):
        single().reset(options={"temprature": 0.3})
    with pytest.raises(ValueError, match="temprature"):
        vector().reset(options={"temprature": 0.3})


@pytest.mark.parametrize("make", [single, vector, torchrl])
def test_the_horizon_and_the_rule_of_termination_can_be_changed(make):
    env = make() if make is torchrl else make().unwrapped
    env.horizon = 2
    env.termination = "threshold"
    assert (env.options.horizon, env.options.termination) == (env.horizon, env.termination) == (2, "threshold")
    if make is single:
        env.reset(seed=0)
        assert [env.step(0)[3] for _ in range(2)] == [False, True]
    for name, wrong in (("horizon", 0), ("horizon", 2.5), ("termination", "never")):
        with pytest.raises((ValueError, TypeError), match=name):
            setattr(env, name, wrong)


@pytest.mark.parametrize("make", [single, vector, torchrl])
@pytest.mark.parametrize(
    "name", ["observation", "reward", "prefix_length", "prefix_data", "options", "world", "autoreset_mode", "tensors"]
)
def test_what_would_be_ignored_cannot_be_set(make, name):
    env = make() if make is torchrl else make().unwrapped
    with pytest.raises(AttributeError, match=f"{name}: expected to be given when the environment is made"):
        setattr(env, name, "z")


@pytest.mark.parametrize(
    ("name", "wrong"), [("temperature", -1), ("temperature", "hot"), ("temperature", torch.ones(2)), ("termination", "never")]
)
def test_dreams_check_what_is_set(name, wrong):
    dreams = wm.Dreams(WORLD, 4)
    with pytest.raises((ValueError, TypeError), match=name):
        setattr(dreams, name, wrong)
    for fixed in ("precision", "num_groups"):
        with pytest.raises(AttributeError):
            setattr(dreams, fixed, 2)


def test_a_setting_reaches_the_dream_through_wrappers_of_the_vector():
    pytest.importorskip("stable_baselines3")
    from worldmodel.adapters.sb3 import SB3VecEnv

    inner = vector()
    wrapped = gym.wrappers.vector.RecordEpisodeStatistics(inner)
    SB3VecEnv(wrapped).set_attr("temperature", 0.5)
    assert inner.temperature == 0.5
