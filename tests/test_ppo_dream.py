"""The PPO example: its advantages, no copies to the host, and learning."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from toy_worlds import random_world, walk_world

import worldmodel as wm
from worldmodel.dream import RandomActions
from worldmodel.envs import dream_env

PATH = Path(__file__).parent.parent / "examples" / "ppo_dream.py"


@pytest.fixture
def example(monkeypatch):
    """Return the example module with smaller numbers."""
    spec = importlib.util.spec_from_file_location("ppo_dream", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, value in {"NUM_DREAMS": 32, "ROLLOUT": 16, "TOTAL_STEPS": 32 * 16 * 2, "HORIZON": 5}.items():
        monkeypatch.setattr(module, name, value)
    return module


def test_the_example_is_short():
    assert len(PATH.read_text().splitlines()) < 150


def test_advantages_are_those_of_each_episode_by_itself(example):
    """Recompute them backwards over single episodes from the recorded steps: sum of (gamma lambda)^k delta_{t+k}."""
    world = random_world(termination_bias=-1.0)
    dreams, twin = (
        wm.DreamVectorEnv(world, 32, autoreset_mode="SameStep", tensors=True, observation="zh", horizon=5) for _ in range(2)
    )
    agent = example.Agent(7, 3)
    observation, _ = dreams.reset(seed=3)
    (observations, actions, log_probs, advantages, returns), _, ends = example.collect(
        agent, dreams, observation, torch.Generator().manual_seed(0)
    )
    twin.reset(seed=3)
    terminated, truncated = 0, 0
    trajectory = []
    for t in range(16):
        _, reward, *flags, infos = twin.step(actions.view(16, 32)[t])
        trajectory.append((reward, *flags, infos["final_obs"]))
        terminated, truncated = terminated + flags[0].sum(), truncated + flags[1].sum()
    assert min(terminated, truncated) > 10
    assert ends.sum() == terminated + truncated
    with torch.no_grad():
        values, chosen = agent.critic(observations)[:, 0].view(16, 32), agent.actor(observations).log_softmax(dim=-1)
        for k in range(32):
            following = 0.0
            for t in reversed(range(16)):
                reward, died, cut, led_to = (part[k] for part in trajectory[t])
                delta = reward - values[t, k] + (0 if died else example.GAMMA * agent.critic(led_to)[0])
                following = delta + (0 if died or cut else example.GAMMA * example.GAE_LAMBDA * following)
                assert advantages.view(16, 32)[t, k] == pytest.approx(following.item(), abs=1e-4)
    assert torch.allclose(returns, advantages + values.flatten(), atol=1e-5)
    assert torch.allclose(log_probs, chosen[torch.arange(len(actions)), actions], atol=1e-6)


class NoHostCopies(TorchDispatchMode):
    """Raises on operations that synchronise a GPU: Python numbers, sizes that depend on values, other devices."""

    refused = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function.overloadpacket.__name__ not in self.refused, function
        if function.overloadpacket.__name__ == "index":
            assert all(index is None or index.dtype != torch.bool for index in args[1]), function
        return function(*args, **(kwargs or {}))


def test_the_loop_copies_nothing_to_the_host(example, monkeypatch):
    rows = dream_env.Rows
    monkeypatch.setattr(dream_env, "Rows", lambda mask: rows(mask, dense=True))  # as on a GPU
    refused, collect = [], example.collect

    def watched(agent, dreams, observation, generator):
        with NoHostCopies():
            batch, *others = collect(agent, dreams, observation, generator)
            example.loss_of(agent, *batch).backward()
            torch.nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
        refused.append(dreams)
        return batch, *others

    monkeypatch.setattr(example, "collect", watched)
    example.train(random_world(), seed=0)
    assert len(refused) == 2
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoHostCopies():
        torch.ones(()).item()


def test_it_learns_a_walk_and_the_same_seed_learns_the_same(example, monkeypatch):
    """A walk pays x at each step: at a horizon of 12, going left first would be worse than staying right of 0."""
    world = walk_world()
    for name, value in {"TOTAL_STEPS": 32 * 16 * 25, "HORIZON": 12, "TEMPERATURE": 0.0}.items():
        monkeypatch.setattr(example, name, value)
    dreams = wm.Dreams(world, 200, temperature=0.0)
    agents = [example.train(world, seed=0)[0] for _ in range(2)]
    trained, again = (dreams.score(agent, 12, generator=dreams.generator(0))[0].mean().item() for agent in agents)
    by_chance = RandomActions(world, generator=dreams.generator(1))
    assert trained == again
    assert trained > dreams.score(by_chance, 12, generator=dreams.generator(0))[0].mean().item() + 1


def test_the_command_makes_a_world_learns_and_adds_a_line_of_scores(example, monkeypatch, tmp_path, capsys):
    small = {"EPISODES": 20, "MODEL": wm.MDNRNNConfig(hidden_size=8), "TRAINING": wm.TrainingConfig(num_updates=3)}
    for name, value in small.items():
        monkeypatch.setattr(example, name, value)
    for seed in (3, 4):
        monkeypatch.setattr(sys, "argv", ["ppo_dream.py", "--seed", str(seed), "--out", str(tmp_path / "scores.jsonl")])
        example.main()
    assert "random in reality" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [line["seed"] for line in lines] == [3, 4]
    assert [len(line["real"]["returns"]) for line in lines] == [100, 100]
