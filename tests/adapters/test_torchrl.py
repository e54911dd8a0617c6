"""TorchRLEnv with TorchRL's checks, rollouts and collectors; an agent that learns in a dream."""

import importlib
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from toy_worlds import random_world, walk_world

import worldmodel as wm

pytest.importorskip("torchrl", reason="needs worldmodel[torchrl]")
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential, TensorDictModule
from torchrl.envs import GymWrapper, StepCounter, TransformedEnv
from torchrl.envs.utils import check_env_specs
from torchrl.modules import ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # TorchRL uses its own deprecated modules
    from torchrl.collectors import Collector

from worldmodel.adapters.torchrl import TorchRLEnv

DISCRETE = spaces.Discrete(3)
ACTIONS = [
    DISCRETE,
    spaces.Box(-1.0, 1.0, (2,), np.float32),
    spaces.Box(-np.inf, np.inf, (1,), np.float32),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiDiscrete([2, 2]),
    spaces.MultiBinary(3),
    spaces.Dict({"push": spaces.Box(-1.0, 1.0, (2,), np.float32), "kind": DISCRETE}),
]
PLACES = spaces.Dict({"place": spaces.Box(-9.0, 9.0, (2,), np.float32), "mode": spaces.Discrete(2)})


def terminating_world(action_space=None, observation_space=None):
    return random_world(action_space, observation_space, termination_bias=-1.0)


@pytest.mark.parametrize("num_envs", [1, 4])
@pytest.mark.parametrize("kind", ["z", "zh", "zhc", "decoded"])
@pytest.mark.parametrize("space", ACTIONS, ids=str)
def test_torchrl_finds_nothing_wrong(space, kind, num_envs):
    check_env_specs(TorchRLEnv(terminating_world(space), num_envs, observation=kind, horizon=5))


def test_decoded_dicts_lie_under_the_observation():
    env = TorchRLEnv(terminating_world(observation_space=PLACES), 3, observation="decoded", temperature=(0.5, 1.5))
    check_env_specs(env)
    assert env.reset()["observation", "place"].shape == (3, 2)


def test_flags_have_a_column_and_a_rollout_resets_what_ended():
    env = TorchRLEnv(terminating_world(), 5, horizon=4)
    env.set_seed(0)
    rollout = env.rollout(40, break_when_any_done=False)
    after = rollout["next"]
    for name in ("done", "terminated", "truncated", "reward"):
        assert after[name].shape == (5, 40, 1)
    assert torch.equal(after["done"], after["terminated"] | after["truncated"])
    assert after["terminated"].sum() > 5 < after["truncated"].sum()
    goes_on = ~after["done"][:, :-1, 0]
    assert torch.equal(rollout["observation"][:, 1:][goes_on], after["observation"][:, :-1][goes_on])
    begun = rollout["observation"][:, 1:][~goes_on]
    assert not begun[:, 2:].any()  # h of a fresh episode is zero
    assert (after["observation"][:, :-1][~goes_on][:, 2:] != 0).any(dim=1).all()


def test_a_partial_reset_leaves_the_other_dreams_alone():
    env = TorchRLEnv(random_world(termination_head=False), 3)
    before = env.rand_step(env.reset())["next"]
    mask = torch.tensor([[False], [True], [False]])
    after = env.reset(before.clone().set("_reset", mask))
    assert torch.equal((after["observation"] == before["observation"]).all(dim=1, keepdim=True), ~mask)


def test_finished_dreams_do_not_change_until_all_are_finished():
    env = TorchRLEnv(terminating_world(), 4)
    env.set_seed(1)
    rollout = env.rollout(50, break_when_any_done=False, break_when_all_done=True)
    done = rollout["next", "done"][..., 0]
    assert done[:, -1].all()
    assert not done[:, -2].all()
    first = done.int().argmax(dim=1)
    assert first.min() < first.max()
    for k in range(4):
        assert done[k, first[k] :].all()
        last = rollout["next", "observation"][k, first[k] :]
        assert torch.equal(last, last[:1].expand_as(last))


def test_seeds_are_those_of_the_vector_environment_and_apply_to_one_reset():
    world = terminating_world()
    env, plain = TorchRLEnv(world, 3), wm.DreamVectorEnv(world, 3)
    env.set_seed(7)
    assert np.array_equal(env.reset()["observation"].numpy(), plain.reset(seed=7)[0])
    assert np.array_equal(env.reset()["observation"].numpy(), plain.reset()[0])
    env.set_seed(7)
    first = env.rollout(10, break_when_any_done=False, policy=lambda td: td.set("action", torch.ones(3, dtype=torch.int64)))
    env.set_seed(7)
    again = env.rollout(10, break_when_any_done=False, policy=lambda td: td.set("action", torch.ones(3, dtype=torch.int64)))
    assert (first == again).all()


def test_callers_may_modify_returned_values():
    env = TorchRLEnv(terminating_world(), 3)
    action = TensorDict({"action": torch.zeros(3, dtype=torch.int64)}, batch_size=3)

    def run(overwrite):
        env.set_seed(0)
        results = [env.reset()]
        for _ in range(6):
            given = action.clone().set("_reset", results[-1]["done"]) if results[-1]["done"].any() else None
            results.append(env.step(action.clone())["next"].clone(recurse=False) if given is None else env.reset(given))
            copied = results[-1].clone()
            if overwrite:
                for name in ("observation", "terminated", "truncated"):
                    results[-1][name].fill_(1)
            results[-1] = copied
        return results

    assert all((one == two).all() for one, two in zip(run(False), run(True), strict=True))


def test_collectors_and_transforms_run():
    env = TransformedEnv(TorchRLEnv(random_world(termination_head=False), 4, horizon=6), StepCounter())
    batches = list(Collector(env, None, frames_per_batch=40, total_frames=80))
    assert [batch.shape for batch in batches] == [(4, 10)] * 2
    assert batches[1]["step_count"].max() == 5


def test_gym_wrapper_takes_a_single_dream():
    world = terminating_world()
    env, plain = GymWrapper(wm.DreamEnv(world, horizon=5), categorical_action_encoding=True), wm.DreamEnv(world, horizon=5)
    check_env_specs(env)
    env.set_seed(3)
    plain.reset(seed=3)
    seen, _ = env.reset(), plain.reset()  # set_seed has reset it already: this is the second episode of the seed
    for t in range(30):
        seen = env.step(seen.set("action", torch.tensor(t % 3)))["next"]
        observation, reward, terminated, truncated, _ = plain.step(t % 3)
        assert np.array_equal(seen["observation"].numpy(), observation)
        assert (seen["reward"].item(), seen["terminated"].item(), seen["truncated"].item()) == (
            pytest.approx(reward),
            terminated,
            truncated,
        )
        if terminated or truncated:
            seen, (observation, _) = env.reset(), plain.reset()
            assert np.array_equal(seen["observation"].numpy(), observation)


# Invalid input


def step(env, *actions, **others):
    return env.step(TensorDict({"action": torch.tensor(actions), **others}, batch_size=env.batch_size))


def test_actions_outside_the_space_are_named():
    env = TorchRLEnv(terminating_world(), 2)
    env.reset()
    with pytest.raises(ValueError, match=r"action\[1\]: expected a value of Discrete\(3\), got 3"):
        step(env, 0, 3)
    with pytest.raises(TypeError, match="action: expected integers"):
        step(env, 0.0, 1.0)


def test_stepping_a_finished_dream_is_rejected():
    env = TorchRLEnv(random_world(), 2, horizon=1)
    env.reset()
    step(env, 0, 0)
    with pytest.raises(gym.error.ResetNeeded, match=r"expected no finished dream, got \[0, 1\]; reset them with \"_reset\""):
        step(env, 0, 0)
    env.reset()
    with pytest.raises(ValueError, match="_step: expected all dreams that are not finished"):
        step(env, 0, 0, _step=torch.tensor([[True], [False]]))
    trusting = TorchRLEnv(random_world(), 2, horizon=1, check_actions=False)
    trusting.reset()
    step(trusting, 0, 0)
    assert step(trusting, 0, 0)["next", "done"].all()


@pytest.mark.parametrize(
    "space", [spaces.Discrete(3, start=1), spaces.MultiDiscrete([[2, 3], [2, 2]]), spaces.Tuple([DISCRETE, DISCRETE])], ids=str
)
def test_spaces_that_torchrl_has_no_spec_for_are_rejected(space):
    with pytest.raises(TypeError, match="space: expected a space with a TorchRL spec"):
        TorchRLEnv(terminating_world(space), 2)


def test_it_stays_on_the_device_of_its_world():
    env = TorchRLEnv(terminating_world(), 2)
    assert env.to("cpu") is env
    with pytest.raises(ValueError, match="device: expected the world's device, cpu, got 'meta'"):
        env.to("meta")


DEVICES = [
    "cpu",
    pytest.param("cuda", marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="GPU")]),
]


@pytest.mark.parametrize("device", DEVICES)
def test_rollouts_stay_on_the_device_of_the_world_without_synchronisation(device):
    env = TorchRLEnv(walk_world().to(device), 6, check_actions=False, temperature=(0.0, 1.0))
    check_env_specs(env)
    seen, actions = env.reset(), torch.full((6,), 2, device=device)
    if device == "cuda":
        env.step(seen.clone().set("action", actions))
        torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            seen = env.step(seen.set("action", actions))["next"]
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert {part.device.type for part in seen.values()} == {device}
    assert env.rollout(20, break_when_any_done=False).device.type == device


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchrl.envs", None)
    monkeypatch.delitem(sys.modules, "worldmodel.adapters.torchrl")
    message = r"torchrl: expected the extra torchrl, .* pip install 'worldmodel\[torchrl\]'"
    with pytest.raises(ImportError, match=message):
        importlib.import_module("worldmodel.adapters.torchrl")


# Learning


@pytest.mark.filterwarnings("ignore:The env passed to Collector is missing:FutureWarning")  # of a key for recurrent policies
def test_ppo_of_torchrl_learns_a_walk_in_its_dream():
    """The walk earns x at each step and terminates at x = 1; random actions hardly move it."""
    torch.manual_seed(0)
    env = TorchRLEnv(walk_world(), 64, temperature=0.0, horizon=10, observation="z")
    network = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.Tanh(), torch.nn.Linear(32, 3))
    actor = ProbabilisticTensorDictSequential(
        TensorDictModule(network, in_keys=["observation"], out_keys=["logits"]),
        ProbabilisticTensorDictModule(
            ["logits"], ["action"], distribution_class=torch.distributions.Categorical, return_log_prob=True
        ),
    )
    critic = ValueOperator(torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1)))
    advantage = GAE(gamma=0.9, lmbda=0.9, value_network=critic)
    loss_module = ClipPPOLoss(actor, critic)
    optimizer = torch.optim.Adam(loss_module.parameters(), lr=1e-2)
    env.set_seed(0)
    rewards = []
    for batch in Collector(env, actor, frames_per_batch=640, total_frames=640 * 15):
        rewards.append(batch["next", "reward"].mean().item())
        advantage(batch)
        for _ in range(5):
            losses = loss_module(batch.reshape(-1))
            loss = losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert rewards[-1] > rewards[0] + 0.2, rewards


@pytest.mark.parametrize("space", [spaces.Box(-1.0, 1.0, ()), spaces.Box(-1.0, 1.0, (2, 3))], ids=str)
def test_boxes_of_any_shape_have_a_spec(space):
    check_env_specs(TorchRLEnv(terminating_world(space), 3, horizon=5))
    check_env_specs(TorchRLEnv(terminating_world(observation_space=space), 3, observation="decoded", horizon=5))
