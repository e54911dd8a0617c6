"""Recurrent agents, modules and plain functions are accepted wherever a controller is."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn
from toy_controllers import random_controller, search_in, weights
from toy_worlds import WalkEnv, random_world, same_bits, walk_world

from worldmodel.agents import (
    AgentGroups,
    Controller,
    ControllerBatch,
    ControllerConfig,
    LatentPolicy,
    PPOConfig,
    RealPopulation,
    check_agent,
    evolve,
    has_agent,
    load_agent,
    ppo,
    register_agent,
)
from worldmodel.data import EnvConfig, collect, rollouts
from worldmodel.dream import (
    Agent,
    CyclicActions,
    Dreams,
    FeaturePolicy,
    RandomActions,
    Reality,
    RecordedActions,
    RepeatedActions,
    StartBank,
    as_agent,
    score,
)
from worldmodel.evaluation import EvaluationConfig, evaluate
from worldmodel.experiments import IterationConfig, iterate
from worldmodel.models import MDNRNNConfig, feature_size
from worldmodel.runtime import RunConfig
from worldmodel.training import DataConfig, TrainingConfig

QUIET = RunConfig(progress=False)

SHORT_WALK = EnvConfig(WalkEnv, max_steps=9)


@register_agent("pacer.json")
class Pacer:
    """A recurrent agent without weights: action ``(t + first) % 3`` at step t of an episode."""

    def __init__(self, first=0):
        self.first, self.t, self.episodes = first, None, []

    def reset(self, num_episodes):
        self.t = torch.zeros(num_episodes, dtype=torch.int64)
        self.episodes.append(num_episodes)

    def act(self, state):
        assert state.lstm.h.shape[:2] == (1, len(state.z))
        self.t, action = self.t + 1, (self.t + self.first) % 3
        return action

    def save_pretrained(self, path, *, overwrite=False):
        Path(path).mkdir(parents=True, exist_ok=overwrite)
        (Path(path) / "pacer.json").write_text(json.dumps({"first": self.first}))

    @classmethod
    def from_pretrained(cls, path, *, device="cpu"):
        return cls(**json.loads((Path(path) / "pacer.json").read_text()))


@register_agent("memory.pt")
class Memory(nn.Module):
    """A module with a state: logits from z and a decaying sum of past z."""

    def __init__(self, size=2, num_actions=3):
        super().__init__()
        self.linear = nn.utils.skip_init(nn.Linear, 2 * size, num_actions)
        for parameter in self.linear.parameters():
            nn.init.zeros_(parameter)
        self.trace = None

    def reset(self, num_episodes):
        self.trace = torch.zeros(num_episodes, self.linear.in_features // 2)

    def act(self, state):
        self.trace = 0.5 * self.trace + state.z
        return self.linear(torch.cat([state.z, self.trace], dim=1)).argmax(dim=1)

    def save_pretrained(self, path, *, overwrite=False):
        Path(path).mkdir(parents=True, exist_ok=overwrite)
        torch.save(self.state_dict(), Path(path) / "memory.pt")

    @classmethod
    def from_pretrained(cls, path, *, device="cpu"):
        agent = cls()
        agent.load_state_dict(torch.load(Path(path) / "memory.pt", weights_only=True))
        return agent.to(device)


class Logits(nn.Module):
    """A minimal differentiable agent for `ppo`."""

    features = "z"

    def __init__(self, world):
        super().__init__()
        self.action_features = world.action_features
        self.network = nn.Linear(2, 3)
        for parameter in self.network.parameters():
            nn.init.zeros_(parameter)

    def outputs(self, features):
        return self.network(features)

    def reset(self, num_episodes):
        pass

    def act(self, state):
        return self.action_features.unflatten(self.action_features.squash(self.outputs(state.features("z"))))

    def save_pretrained(self, path, *, overwrite=False):
        raise NotImplementedError


def right(features):
    return torch.full((len(features),), 2)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_everything_built_in_is_an_agent():
    world = random_world()
    made = [RandomActions(world, generator=generator()), CyclicActions([0]), RepeatedActions(world, generator=generator())]
    for agent in (*made, RecordedActions(np.zeros(3, dtype=int)), random_controller(world), as_agent(right)):
        assert isinstance(agent, Agent)
        assert as_agent(agent) is agent


def test_a_controller_acts_as_it_does_on_features():
    world = random_world()
    controller, state = random_controller(world, features="zhc"), Dreams(world, 5).start(generator=generator())
    assert same_bits(controller.act(state), controller(state.features("zhc")))
    assert same_bits(FeaturePolicy(controller).act(state), controller.act(state))


def test_an_agent_is_reset_with_the_number_of_episodes_and_sees_all_layers():
    agent, world = Pacer(), walk_world()
    rollout = Dreams(world, 4, temperature=0.0).rollout(agent, 5, generator=generator())
    assert rollout.actions[0].tolist()[:4] == [0, 1, 2, 0]
    Reality(world, WalkEnv, 3, seed=0).score(agent, 5, generator=generator())
    Dreams(world, 2).expected_return(agent, 5, generator=generator())
    assert agent.episodes == [4, 3, 2]


def test_recorded_cyclic_and_repeated_actions_begin_again_with_every_rollout():
    world = random_world(termination_bias=-50.0)
    agents = [RecordedActions(np.array([2, 0, 1])), CyclicActions([0, 2], hold=2)]
    for agent, expected in zip(agents, ([2, 0, 1], [0, 0, 2]), strict=True):
        for _ in range(2):
            assert Dreams(world, 2).rollout(agent, 3, generator=generator()).actions.tolist() == [expected] * 2
    repeated = RepeatedActions(world, generator=generator())
    for size in (4, 2):
        assert Dreams(world, size).rollout(repeated, 3, generator=generator()).actions.shape == (size, 3)


@pytest.mark.parametrize("agent", [Pacer(), Memory(), right], ids=["recurrent", "module", "function"])
def test_any_agent_is_evaluated_and_collects(tmp_path, agent):
    world = walk_world()
    result = evaluate(agent, world, env=SHORT_WALK, config=EvaluationConfig(num_episodes=4, num_dreams=8))
    assert len(result.real.returns) == 4
    policy = LatentPolicy(world, agent, description="toy")
    store = collect(SHORT_WALK, out=tmp_path / "data", num_episodes=3, policy=policy, seed=0)
    rollout = Reality(world, SHORT_WALK, 3, seed=0).rollout(agent, 9, generator=generator())
    for k, episode in enumerate(store):
        assert episode.actions.tolist() == rollout.actions[k][rollout.mask[k]].tolist()


def test_a_latent_policy_resets_the_agent_with_each_episode_and_shows_it_explored_steps():
    agent = Pacer()
    policy = LatentPolicy(walk_world(), agent, exploration=0.5)
    episodes = list(rollouts(SHORT_WALK, policy, episode_ids=range(3), seed=0))
    assert agent.episodes == [1, 1, 1]
    followed = [action == t % 3 for episode in episodes for t, action in enumerate(episode.actions)]
    assert 0.3 < np.mean(followed) < 1.0  # it counts the steps at which its action was replaced


def test_the_recipe_of_an_agent_names_what_it_computes_with():
    world = walk_world()
    name = LatentPolicy(world, Pacer(1)).description
    assert name == LatentPolicy(world, Pacer(1)).description != LatentPolicy(world, Pacer(2)).description
    module = Memory()
    before = LatentPolicy(world, module).description
    nn.init.ones_(module.linear.bias)
    assert LatentPolicy(world, module).description != before
    assert LatentPolicy(world, right).description == LatentPolicy(world, FeaturePolicy(right)).description


@pytest.mark.parametrize("method", ["cma", "openai-es"])
def test_evolve_searches_the_weights_of_any_module(method):
    world, start = walk_world(), Memory()
    numbers = {"generations": 12, "population": 8, "horizon": 12, "test_dreams": 16, "sigma": 0.5, "method": method}
    found = search_in(Dreams(world, 32, temperature=0.0), start, **numbers)
    assert isinstance(found, Memory)
    assert not weights(start).any()
    scores = [score(Dreams(world, 50, temperature=0.0), one, horizon=12, seed=1).mean for one in (start, found)]
    assert scores[1] > scores[0] + 5


def test_a_search_of_a_module_resumes_to_the_same_bits(tmp_path):
    numbers = {"population": 4, "horizon": 8, "test_dreams": 8, "generations": 4, "test_every": 2}

    def stop(progress):
        if progress.done == 2:
            raise KeyboardInterrupt

    dreams = Dreams(walk_world(), 8)
    with pytest.raises(KeyboardInterrupt):
        search_in(dreams, Memory(), log=tmp_path / "log", on_generation=stop, **numbers)
    found = search_in(dreams, Memory(), log=tmp_path / "log", **numbers)
    assert torch.equal(weights(found), weights(search_in(dreams, Memory(), **numbers)))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_module_is_searched_in_the_real_environment(workers):
    world = walk_world()
    real = RealPopulation(world, EnvConfig(WalkEnv, max_steps=12), rollouts=2, workers=workers)
    found = search_in(real, Memory(), generations=2, population=4, test_dreams=4, sigma=0.5, horizon=12)
    assert isinstance(found, Memory)
    played = real.score(Pacer(), episodes=3, horizon=12, seed=0, name="test")  # an agent without weights is scored too
    assert len(played.returns) == 3


def test_copies_of_a_controller_act_as_the_batched_controllers_do():
    world = random_world(spaces.Dict({"push": spaces.Box(-1, 1, (2,)), "kind": spaces.Discrete(3)}))
    controller, state = random_controller(world), Dreams(world, 12).start(generator=generator())
    candidates = torch.randn(4, controller.num_parameters, generator=generator(1))
    groups, batch = AgentGroups(controller, candidates), ControllerBatch(controller, candidates)
    groups.reset(12)
    one, two = groups.act(state), batch(state.features("zh"))
    torch.testing.assert_close(one, two)
    assert isinstance(groups, Agent)
    with pytest.raises(TypeError, match="a population"):
        groups.save_pretrained("nowhere")


def test_ppo_learns_with_any_differentiable_agent():
    world = walk_world()
    dreams, start = Dreams(world, 32, temperature=0.0, termination="threshold"), Logits(world)
    config = PPOConfig(iterations=40, steps=8, horizon=8, discount=0.9, learning_rate=3e-2, test_every=20, test_dreams=64)
    found = ppo(start, dreams, StartBank.of(world), config=config, horizon=8, run=QUIET)
    assert isinstance(found, Logits)
    before, after = (dreams.score(one, 8, generator=generator(5))[0].mean() for one in (start, found))
    assert after > before + 1.0


def test_ppo_names_what_an_agent_lacks():
    world = walk_world()
    dreams, starts = Dreams(world, 8), StartBank.of(world)
    with pytest.raises(TypeError, match=r"got Memory without features, action_features, outputs; search it with evolve"):
        ppo(Memory(), dreams, starts)
    with pytest.raises(TypeError, match=r"got Pacer without torch\.nn\.Module as base class, features"):
        ppo(Pacer(), dreams, starts)


def test_iterate_takes_any_agent(tmp_path):
    seen = []

    def train_agent(world, before, seed):
        seen.append(before)
        return Pacer(len(seen))

    config = IterationConfig(
        max_rounds=2,
        patience_rounds=None,
        first_episodes=8,
        controller_episodes=3,
        mdnrnn=MDNRNNConfig(hidden_size=4, num_components=2),
        data_config=DataConfig(window=4, batch_size=4, test_fraction=0.2),
        training_config=TrainingConfig(num_updates=4),
        validation_episodes=2,
        test_episodes=2,
    )
    rounds = iterate(SHORT_WALK, out=tmp_path / "loop", config=config, train_agent=train_agent)
    assert len(rounds) == 2
    assert isinstance(seen[1], Pacer)
    assert load_agent(rounds[1].directory / "controller").first == 2


def test_load_agent_opens_what_any_registered_class_saved(tmp_path):
    world = random_world()
    controller = random_controller(world, features="zhc")
    for name, agent in {"controller": controller, "pacer": Pacer(7), "memory": Memory()}.items():
        assert not has_agent(tmp_path / name)
        agent.save_pretrained(tmp_path / name)
        assert has_agent(tmp_path / name)
        assert type(load_agent(tmp_path / name)) is type(agent)
    assert load_agent(tmp_path / "pacer").first == 7
    assert torch.equal(weights(load_agent(tmp_path / "controller")), weights(controller))


def test_a_directory_without_an_agent_is_rejected(tmp_path):
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(
            FileNotFoundError, match=r"expected an agent \(.*\bcontroller\.json or .*found none; for an agent of your own"
        ):
            load_agent(path)


def test_a_class_that_cannot_be_registered_is_rejected():
    with pytest.raises(
        ValueError, match=r"marker: expected a file name of its own for Logits, got 'controller.json' of Controller"
    ):
        register_agent("controller.json")(Logits)
    with pytest.raises(TypeError, match="Logits: expected a classmethod from_pretrained"):
        register_agent("logits.json")(Logits)


class Half:
    """An agent that lacks a method."""

    def act(self, state):
        return state.z

    def save_pretrained(self, path, *, overwrite=False):
        pass


def test_an_object_that_is_no_agent_raises_with_the_missing_methods():
    world = random_world()
    with pytest.raises(TypeError, match="got int without reset, act, save_pretrained"):
        check_agent(3, world)
    with pytest.raises(TypeError, match="got Half without reset"):
        evaluate(Half(), world, env=WalkEnv)
    with pytest.raises(TypeError, match="got Half without reset"):
        Dreams(world, 2).score(Half(), 3, generator=generator())
    with pytest.raises(ValueError, match="controller: expected one on the world model's 7 features"):
        check_agent(Controller(5, world.action_space), world)
    with pytest.raises(ValueError, match="controller: expected one on the world model's 7 features"):
        check_agent(FeaturePolicy(Controller(5, world.action_space)), world)
    with pytest.raises(TypeError, match="expected one that can be saved, got right"):
        as_agent(right).save_pretrained("nowhere")
    with pytest.raises(ValueError, match="features: expected 'z', 'zh' or 'zhc', got 'q'"):
        FeaturePolicy(right, "q")
    with pytest.raises(TypeError, match=r"agent: expected an agent that is an nn.Module with parameters to search, got Pacer"):
        evolve(Dreams(walk_world(), 64), Pacer())


def test_the_kind_of_a_controller_is_a_configuration():
    world = random_world()
    controller = Controller.for_world(
        world, ControllerConfig(features="zhc", hidden_size=np.int64(4), bias=False, ordered=True)
    )
    assert (controller.size, controller.hidden_size, controller.ordered) == (feature_size(world, "zhc"), 4, True)
    assert Controller.for_world(world).features == "zh"
    with pytest.raises(ValueError, match="features: expected 'z', 'zh' or 'zhc'"):
        ControllerConfig(features="h")
    with pytest.raises(TypeError, match="hidden_size: expected an integer >= 1, got True"):
        ControllerConfig(hidden_size=True)
