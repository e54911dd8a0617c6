"""The same seed and actions give the same dream through each of the five interfaces."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from toy_worlds import random_world

import worldmodel as wm

STEPS, HORIZON, SEED = 40, 6, 15
PUSH = spaces.Box(-1.0, 1.0, (2,), np.float32)


def chosen(space, t):
    """The action of step t, the same for every dream."""
    return np.int64(t % 3) if isinstance(space, spaces.Discrete) else np.array([np.sin(t), np.cos(t)], np.float32)


# Each front plays: rows of (observation before, reward, terminated, truncated, observation after, before any reset)


def single(world, num_dreams, **options):
    columns = []
    for k in range(num_dreams):
        env, rows = wm.DreamEnv(world, **options), []
        before, _ = env.reset(seed=SEED + k)
        for t in range(STEPS):
            after, *outcome, _ = env.step(chosen(env.action_space, t))
            rows.append((before, *outcome, after))
            before = env.reset()[0] if outcome[1] or outcome[2] else after
        columns.append(rows)
    return [[columns[k][t] for k in range(num_dreams)] for t in range(STEPS)]


def vector(world, num_dreams, *, tensors=False, **options):
    env = wm.DreamVectorEnv(world, num_dreams, autoreset_mode="SameStep", tensors=tensors, **options)
    before, _ = env.reset(seed=SEED)
    steps = []
    for t in range(STEPS):
        actions = np.stack([chosen(env.single_action_space, t)] * num_dreams)
        observations, *outcome, infos = env.step(torch.as_tensor(actions) if tensors else actions)
        ended = infos.get("_final_obs", np.zeros(num_dreams, bool))
        afters = [infos["final_obs"][k] if ended[k] else observations[k] for k in range(num_dreams)]
        steps.append([(before[k], *(part[k] for part in outcome), afters[k]) for k in range(num_dreams)])
        before = observations
    return steps


def vector_with_tensors(world, num_dreams, **options):
    return vector(world, num_dreams, tensors=True, **options)


def stable_baselines(world, num_dreams, **options):
    pytest.importorskip("stable_baselines3", reason="needs worldmodel[sb3]")
    from worldmodel.adapters.sb3 import SB3VecEnv

    env = SB3VecEnv(wm.DreamVectorEnv(world, num_dreams, autoreset_mode="SameStep", **options))
    env.seed(SEED)
    before, steps = env.reset(), []
    for t in range(STEPS):
        observations, rewards, dones, infos = env.step(np.stack([chosen(env.action_space, t)] * num_dreams))
        truncated = [info["TimeLimit.truncated"] for info in infos]
        afters = [info.get("terminal_observation", seen) for info, seen in zip(infos, observations, strict=True)]
        terminated = dones & ~np.array(truncated)
        steps.append(list(zip(before, rewards, terminated, truncated, afters, strict=True)))
        before = observations
    return steps


def torchrl(world, num_dreams, **options):
    pytest.importorskip("torchrl", reason="needs worldmodel[torchrl]")
    from worldmodel.adapters.torchrl import TorchRLEnv

    env = TorchRLEnv(world, num_dreams, **options)
    env.set_seed(SEED)
    times = iter(range(STEPS))

    def policy(tensordict):
        actions = np.stack([chosen(world.action_space, next(times))] * num_dreams)
        return tensordict.set("action", torch.as_tensor(actions))

    rollout = env.rollout(STEPS, policy, break_when_any_done=False)
    after = rollout["next"]
    parts = (
        rollout["observation"],
        *(after[name][..., 0] for name in ("reward", "terminated", "truncated")),
        after["observation"],
    )
    return [[tuple(part[k, t] for part in parts) for k in range(num_dreams)] for t in range(STEPS)]


def gym_wrapper(world, num_dreams, **options):
    """TorchRL's `GymWrapper` of a single environment. Its ``set_seed`` resets, so a further reset would begin episode 2."""
    pytest.importorskip("torchrl", reason="needs worldmodel[torchrl]")
    from torchrl.envs import GymWrapper

    columns = []
    for k in range(num_dreams):
        env = GymWrapper(wm.DreamEnv(world, **options), categorical_action_encoding=True)
        seen, rows = env.reset(seed=SEED + k), []
        for t in range(STEPS):
            seen["action"] = torch.as_tensor(chosen(world.action_space, t))
            after = env.step(seen)["next"]
            outcome = (after[name][0] for name in ("reward", "terminated", "truncated"))
            rows.append((seen["observation"], *outcome, after["observation"]))
            seen = env.reset() if after["done"] else after
        columns.append(rows)
    return [[columns[k][t] for k in range(num_dreams)] for t in range(STEPS)]


@pytest.mark.parametrize("front", [vector_with_tensors, single, stable_baselines, torchrl, gym_wrapper])
@pytest.mark.parametrize("space", [spaces.Discrete(3), PUSH], ids=["choices", "numbers"])
@pytest.mark.parametrize("options", [{}, {"observation": "decoded", "temperature": (0.5, 1.5)}], ids=["features", "decoded"])
def test_every_front_dreams_the_same(front, space, options):
    world = random_world(space, termination_bias=-2.0)
    options = {"horizon": HORIZON, **options}
    expected, given = (play(world, 3, **options) for play in (vector, front))
    terminated, truncated = (np.array([[row[part] for row in step] for step in expected]) for part in (2, 3))
    assert terminated.sum() > 3
    assert truncated.sum() > 3
    for t, (one, two) in enumerate(zip(expected, given, strict=True)):
        for k, (row, other) in enumerate(zip(one, two, strict=True)):
            for part, same in zip(row, other, strict=True):
                np.testing.assert_allclose(np.asarray(same), part, rtol=1e-4, atol=1e-4, err_msg=f"dream {k}, step {t}")
