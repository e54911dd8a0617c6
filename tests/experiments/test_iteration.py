"""`iterate`: stages, interruption, files and errors."""

import dataclasses
import json
import shutil
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from toy_envs import SpaceEnv
from toy_images import DotEnv
from toy_worlds import WalkEnv, random_world, walk_world

from worldmodel.agents import CONTROLLER_FILE, Controller, ControllerConfig, OpenAIESConfig, PPOConfig, SearchConfig, evolve
from worldmodel.data import ActionNoise, EnvConfig, EpisodeStore
from worldmodel.data import collect as wm_collect
from worldmodel.dream import Scores, StartConfig
from worldmodel.experiments import (
    SCORES_FILE,
    ImprovementPreset,
    IterationConfig,
    Round,
    RoundOptions,
    VisionPreset,
    best_round,
    iterate,
    iteration,
    summarize,
)
from worldmodel.experiments.early_checks import warn_unlearnt_rewards
from worldmodel.experiments.first_agent import first_agent
from worldmodel.models import MDNRNNConfig, VAEConfig, Vision, WorldModel, feature_size
from worldmodel.runtime import RunConfig, files, load_tensors
from worldmodel.training import DataConfig, FrameConfig, TrainingConfig

TINY = IterationConfig(
    max_rounds=2,
    first_policy="repeat",
    first_episodes=6,
    controller_episodes=3,
    mdnrnn=MDNRNNConfig(hidden_size=4, num_components=2),
    data_config=DataConfig(window=8, batch_size=8, test_fraction=0.2),
    training_config=TrainingConfig(num_updates=6, learning_rate=1e-2, evaluate_every=3),
    search=SearchConfig(population=4, generations=2, patience=2, test_dreams=256),
    rollouts=2,
    test_episodes=3,
)
SHORT = {"max_episode_steps": 15}


def run(out, **arguments):
    name, kwargs = arguments.pop("env", "CartPole-v1"), arguments.pop("env_kwargs", SHORT)
    env = EnvConfig(name, kwargs=kwargs, max_steps=arguments.pop("max_steps", None))
    return iterate(env, **{"out": out, "config": TINY, "seed": 3, **arguments})


def constant(before, action, after):
    return torch.full((len(action),), 7.0)


def outcome(rounds: list[Round]):
    """Return all results of the rounds except durations and paths."""
    return [{key: value for key, value in one.to_json().items() if key != "seconds"} for one in rounds]


def weights(directory):
    controller = Controller.from_pretrained(directory / "controller")
    world = WorldModel.from_pretrained(directory / "world")
    return torch.cat([value.double().flatten() for module in (controller, world) for value in module.state_dict().values()])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted loop, and the stages that it reported."""
    out, seen = tmp_path_factory.mktemp("loop") / "whole", []
    return out, run(out, run=RunConfig(on_progress=seen.append)), seen


def test_every_round_leaves_its_files(whole):
    out, rounds, _ = whole
    assert [one.number for one in rounds] == [1, 2]
    assert [one.directory for one in rounds] == [out / "round-1", out / "round-2"]
    for one, episodes in zip(rounds, (6, 3), strict=True):
        assert len(EpisodeStore.open(one.directory / "data")) == episodes
        assert WorldModel.from_pretrained(one.directory / "world").mdnrnn.config.hidden_size == 4
        assert len(one.real.returns) == len(one.random.returns) == 3


def test_later_rounds_train_on_all_data_and_collect_with_the_controller_before(whole):
    _, rounds, _ = whole
    provenance = WorldModel.from_pretrained(rounds[1].directory / "world").provenance
    assert provenance["num_episodes"] == 9
    policies = [recipe["policy"] for recipe in provenance["recipes"]]
    assert policies[0] == TINY.first_policy == "repeat"
    assert policies[1].startswith("controller of round 1 ")


def test_scores_json_is_readable_and_says_what_the_rounds_say(whole):
    _, rounds, _ = whole
    for one in rounds:
        content = json.loads((one.directory / SCORES_FILE).read_text())
        assert content["format"] == "worldmodel.scores"
        assert content["real"]["returns"] == one.real.returns.tolist()
        assert content["dream"]["mean"] == one.dream.mean
        assert set(content["seconds"]) == {"collect", "train", "dream", "evaluate"}
        assert min(content["seconds"].values()) >= 0


def test_progress_goes_through_every_stage_in_order(whole):
    _, _, seen = whole
    order = list(dict.fromkeys(p.stage for p in seen))
    assert order == [f"round {number}: {stage}" for number in (1, 2) for stage in ("collect", "train M", "search", "evaluate")]
    assert all(0 <= p.done <= p.total for p in seen)
    assert all(np.isfinite(value) for p in seen for value in p.metrics.values())


def test_dreams_are_as_long_as_the_environment_lets_episodes_be(tmp_path, monkeypatch):
    horizons = []

    def record(*arguments, horizon, **options):
        horizons.append(horizon)
        return evolve(*arguments, horizon=horizon, **options)

    monkeypatch.setattr(iteration, "evolve", record)
    (one,) = run(tmp_path / "loop", config=IterationConfig(**{**vars(TINY), "max_rounds": 1}))
    assert horizons == [15]
    assert one.dream.lengths.max() <= 15


def test_a_loop_that_is_complete_is_only_read(whole):
    out, rounds, _ = whole
    seen = []
    assert outcome(run(out, run=RunConfig(on_progress=seen.append))) == outcome(rounds)
    assert seen == []


@pytest.mark.parametrize("stage", ["collect", "train M", "search", "evaluate"])
def test_an_interrupted_loop_resumes_to_the_same_result(whole, tmp_path, stage):
    out, rounds, _ = whole

    def interrupt(progress):
        if progress.stage == f"round 2: {stage}":
            raise KeyboardInterrupt

    shutil.copytree(out / "round-1", tmp_path / "loop" / "round-1")
    shutil.copy(out / "iteration.json", tmp_path / "loop")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "loop", run=RunConfig(on_progress=interrupt))
    assert outcome(run(tmp_path / "loop")) == outcome(rounds)
    assert torch.equal(weights(tmp_path / "loop" / "round-2"), weights(out / "round-2"))


def test_a_controller_that_was_half_written_is_searched_again(whole, tmp_path):
    out, rounds, _ = whole
    shutil.copytree(out, tmp_path / "loop")
    (tmp_path / "loop" / "round-2" / "controller" / CONTROLLER_FILE).unlink()
    (tmp_path / "loop" / "round-2" / SCORES_FILE).unlink()
    assert outcome(run(tmp_path / "loop")) == outcome(rounds)


def test_another_directory_gives_the_same_result_whatever_the_global_seed(whole, tmp_path):
    _, rounds, _ = whole
    torch.manual_seed(77)
    np.random.seed(77)  # noqa: NPY002 (this is what must not matter)
    assert outcome(run(tmp_path / "again", target=-1.0)) == outcome(rounds[:1])  # and stops as the target is reached


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"seed": 4}, "seed"),
        ({"target": 10.0}, "target"),
        ({"env_kwargs": {"max_episode_steps": 16}}, "env_kwargs"),
        ({"config": IterationConfig(max_rounds=2)}, "config"),
    ],
)
def test_other_arguments_are_rejected(whole, arguments, name):
    out, rounds, _ = whole
    with pytest.raises(FileExistsError, match=f"expected {name} .* as in the run that is there, got "):
        run(out, **arguments)
    assert outcome(run(out)) == outcome(rounds)


def test_another_environment_is_rejected(whole):
    out, _, _ = whole
    with pytest.raises(FileExistsError, match=r"expected env CartPole-v1, .* got Acrobot-v1"):
        iterate(EnvConfig("Acrobot-v1", kwargs=SHORT), out=out, config=TINY, seed=3)


def test_overwrite_starts_again_and_never_removes_other_files(whole, tmp_path):
    out, _, _ = whole
    shutil.copytree(out, tmp_path / "loop")
    only = IterationConfig(**{**vars(TINY), "max_rounds": 1})
    assert len(run(tmp_path / "loop", config=only, run=RunConfig(overwrite=True))) == 1
    assert not (tmp_path / "loop" / "round-2").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("...")
    with pytest.raises(FileExistsError):
        run(tmp_path / "mine", run=RunConfig(overwrite=True))
    assert (tmp_path / "mine" / "thesis.tex").exists()


@pytest.mark.parametrize(
    "name", ["max_rounds", "first_episodes", "controller_episodes", "rollouts", "validation_episodes", "test_episodes"]
)
def test_numbers_out_of_range_are_rejected(name):
    with pytest.raises(ValueError, match=f"{name}: expected an integer >= 1, got 0"):
        IterationConfig(**{name: 0})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_rounds": 0}, "max_rounds: expected an integer >= 1, got 0"),
        ({"test_episodes": 2.5}, "test_episodes: expected an integer >= 1, got 2.5"),
        ({"temperature": -1.0}, "temperature: expected a finite number >= 0"),
        ({"exploration": 1.5}, "exploration: expected a number in .0, 1., got 1.5"),
        ({"patience_rounds": 0}, "patience_rounds: expected an integer >= 1, got 0"),
        ({"first_policy": "wise"}, r"first_policy: expected one of random, repeat, .*, slow-driver, got 'wise'"),
    ],
)
def test_numbers_out_of_range_are_rejected_before_anything_runs(fields, message):
    with pytest.raises((TypeError, ValueError), match=message):
        IterationConfig(**fields)


def test_validation_episodes_decide_and_others_are_reported(whole):
    _, rounds, _ = whole
    for one in rounds:
        assert len(one.validation.returns) == 30
        assert len(one.real.returns) == 3
    best = best_round(rounds)
    assert best.validation.mean == max(one.validation.mean for one in rounds)
    assert summarize(rounds, target=-1e9)["reached"]
    assert not summarize(rounds, target=1e9)["reached"]
    assert summarize(rounds)["best_round"] == best.number


def play(tmp_path, monkeypatch, validations, reals, **arguments):
    """Run a loop whose rounds have these validation and real scores."""

    def round_(self, number, _):
        validation, real = (Scores(np.full(3, scores[number - 1]), np.ones(3, int)) for scores in (validations, reals))
        return Round(number, tmp_path, validation, real, real, real, {})

    monkeypatch.setattr(iteration._Loop, "round", round_)
    return [one.number for one in iterate("CartPole-v1", out=tmp_path / "loop", **arguments)]


def test_the_loop_stops_by_the_validation_score(tmp_path, monkeypatch):
    config = IterationConfig(max_rounds=3)
    assert play(tmp_path, monkeypatch, [0.0, 9.0, 9.0], [9.0, 0.0, 9.0], target=5.0, config=config) == [1, 2]


def test_the_loop_stops_after_patience_rounds_without_a_better_validation_score(tmp_path, monkeypatch):
    validations, reals = [1.0, 3.0, 2.0, 3.0, 9.0], [5.0, 4.0, 6.0, 7.0, 8.0]
    config = IterationConfig(max_rounds=5, patience_rounds=2)
    assert play(tmp_path, monkeypatch, validations, reals, config=config) == [1, 2, 3, 4]


def test_the_loop_continues_while_it_improves_within_its_patience(tmp_path, monkeypatch):
    validations = [1.0, 0.0, 2.0, 1.0, 3.0]
    config = IterationConfig(max_rounds=5, patience_rounds=2)
    assert play(tmp_path, monkeypatch, validations, validations, config=config) == [1, 2, 3, 4, 5]


def changed(**fields):
    return IterationConfig(**{**vars(TINY), **fields})


def test_the_search_uses_the_given_configuration(tmp_path):
    search = dataclasses.replace(TINY.search, method="openai-es", patience=None)
    chosen = changed(max_rounds=1, controller=ControllerConfig(features="z", hidden_size=3), search=search)
    slow = dataclasses.replace(chosen, search=dataclasses.replace(search, openai_es=OpenAIESConfig(learning_rate=1e-6)))
    found = []
    for name, config in (("loop", chosen), ("slow", slow)):
        run(tmp_path / name, config=config)
        found.append(Controller.from_pretrained(tmp_path / name / "round-1" / "controller"))
        assert (found[-1].features, found[-1].hidden_size) == ("z", 3)
        _, metadata = load_tensors(tmp_path / name / "round-1" / "search.safetensors")
        assert json.loads(metadata["log"])["search"]["method"] == "openai-es"
    rates = [
        json.loads((tmp_path / name / "iteration.json").read_text())["config"]["search"]["openai_es"]
        for name in ("loop", "slow")
    ]
    assert [rate["learning_rate"] for rate in rates] == [0.03, 1e-6]


def test_exploration_changes_the_data_of_later_rounds_alone(whole, tmp_path):
    out, _, _ = whole
    run(tmp_path / "loop", config=changed(exploration=0.5))
    for number, same in ((1, True), (2, False)):
        stores = [EpisodeStore.open(path / f"round-{number}" / "data") for path in (out, tmp_path / "loop")]
        assert (stores[0].fingerprint == stores[1].fingerprint) == same
    assert stores[1].recipe["policy"].endswith("0.5 of its actions random")


def test_longer_episodes_are_truncated_everywhere(tmp_path):
    config = dataclasses.replace(TINY, reward=constant)  # its own reward, 1 at every step, leaves nothing to search
    rounds = run(tmp_path / "loop", max_steps=7, config=config)
    for one in rounds:
        assert EpisodeStore.open(one.directory / "data").lengths.max() == 7
        assert max(scores.lengths.max() for scores in (one.validation, one.real, one.dream, one.random)) == 7


def test_another_trainer_takes_the_place_of_evolution_and_resumes(tmp_path):
    calls = []

    def train_agent(world, before, seed):
        calls.append((before, seed))
        controller = Controller(feature_size(world, "z"), world.action_space, features="z")
        with torch.no_grad():
            controller.layers[0].bias[1] = len(calls)
        return controller

    arguments = {"train_agent": train_agent, "config": changed(search=dataclasses.replace(TINY.search, generations=1))}
    first = run(tmp_path / "loop", **arguments)
    assert calls[0][0] is None
    assert calls[1][0].layers[0].bias[1] == 1.0  # the controller of the round before
    assert calls[0][1] != calls[1][1]
    assert Controller.from_pretrained(first[1].directory / "controller").layers[0].bias[1] == 2.0
    (first[1].directory / SCORES_FILE).unlink()
    assert outcome(run(tmp_path / "loop", **arguments)) == outcome(first)
    assert len(calls) == 2
    with pytest.raises(FileExistsError, match="expected train_agent "):
        run(tmp_path / "loop", config=changed(search=dataclasses.replace(TINY.search, generations=1)))


def test_an_agent_that_cannot_be_opened_again_is_rejected(tmp_path):
    class Unregistered(Controller):
        def save_pretrained(self, path, *, overwrite=False):
            Path(path).mkdir()

    def train_agent(world, before, seed):
        return Unregistered(feature_size(world, "z"), world.action_space, features="z")

    with pytest.raises(
        TypeError, match="train_agent: expected an agent that load_agent opens again, got Unregistered; register"
    ):
        run(tmp_path / "loop", train_agent=train_agent)


def test_a_trainer_that_returns_something_else_is_rejected(tmp_path):
    with pytest.raises(TypeError, match=r"agent: expected an agent with .* got int without reset, act, save_pretrained"):
        run(tmp_path / "loop", train_agent=lambda world, before, seed: 3)
    with pytest.raises(ValueError, match="controller: expected one on the world model's 8 features"):
        run(tmp_path / "loop2", train_agent=lambda world, before, seed: Controller(5, world.action_space))


@pytest.mark.parametrize(
    "arguments",
    [{"env_kwargs": {"nonsense": 1}}, {"max_steps": 0}, {"seed": -1}, {"device": "gpu"}, {"env": "CartPol-v1"}],
)
def test_invalid_arguments_leave_the_loop_to_be_overwritten(tmp_path, arguments):
    out = tmp_path / "loop"
    (out / "round-1").mkdir(parents=True)
    (out / "iteration.json").write_text('{"format": "worldmodel.iteration", "version": 1}')
    options = {"config": TINY, "run": RunConfig(overwrite=True), **arguments}
    with pytest.raises((ValueError, TypeError)):
        run(out, **options)
    assert (out / "round-1").is_dir()


IMAGES = dataclasses.replace(
    TINY,
    vision=VisionPreset(
        config=VAEConfig(latent_size=4), frames=FrameConfig(batch_size=8), training=TrainingConfig(num_updates=2)
    ),
)
PPO = PPOConfig(iterations=2, steps=3, horizon=4, critic_size=4, test_every=1, test_dreams=8, test_from="starts")
IMPROVED = RoundOptions(
    first_max_steps=5,
    keep_best=True,
    continue_m=True,
    training=TrainingConfig(num_updates=3),
    improve=True,
    improvement=ImprovementPreset(ppo=PPO, num_dreams=8, starts=StartConfig(num_states=20)),
    start_rounds=1,
    test_horizon=4,
)
UNLEARNT = pytest.mark.filterwarnings("ignore:world. expected dreamed rewards that follow:RuntimeWarning")
CONTINUED_V = RoundOptions(continue_v=True, vision_training=TrainingConfig(num_updates=2))


class ColumnEnv(DotEnv):
    """The same with the column of the dot as reward."""

    def step(self, action):
        observation, _, *rest = super().step(action)
        return (observation, float(self.column), *rest)


def play_dots(out, rounds, **arguments):
    config = dataclasses.replace(IMAGES, rounds=rounds, **arguments)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "world: expected dreamed rewards that follow", RuntimeWarning)  # M hardly trains here
        return iterate(EnvConfig(ColumnEnv, max_steps=15), out=out, config=config, seed=3)


@pytest.fixture(scope="module")
def dots(tmp_path_factory):
    """A loop on images whose M and agents continue from round to round."""
    out = tmp_path_factory.mktemp("dots") / "loop"
    return out, play_dots(out, IMPROVED)


def test_images_are_encoded_by_the_v_of_the_first_round_and_m_continues(dots):
    out, rounds = dots
    assert [one.number for one in rounds] == [1, 2]
    vision = Vision.from_pretrained(out / "round-1" / "vision")
    assert not (out / "round-2" / "vision").exists()
    worlds = [WorldModel.from_pretrained(one.directory / "world") for one in rounds]
    assert all(world.vision.fingerprint == vision.fingerprint for world in worlds)
    assert worlds[1].provenance["initial"] == worlds[0].fingerprint
    assert worlds[1].provenance["training"]["updates"] == 3
    assert [len(EpisodeStore.open(out / f"round-{k}" / f"encoded-{k}")) for k in (1, 2)] == [6, 3]
    lengths = [EpisodeStore.open(out / f"round-{k}" / "data").lengths for k in (1, 2)]
    assert lengths[0].max() <= 5 < lengths[1].max()


@UNLEARNT
def test_later_rounds_collect_with_the_best_agent_so_far_and_improve_it(dots, tmp_path, monkeypatch):
    out, _ = dots
    shutil.copytree(out, tmp_path / "loop")
    for number, validation in ((1, [8.0]), (2, [3.0])):  # the second agent is worse
        path = tmp_path / "loop" / f"round-{number}" / SCORES_FILE
        about = {"format": iteration.SCORES_FORMAT, "version": iteration.ITERATION_VERSION}
        content = files.read_json(path, format=about["format"], version=about["version"])
        content["validation"] = Scores(np.array(validation), np.array([1])).to_json()
        files.write_json(path, {key: value for key, value in content.items() if key not in about}, **about)
    learn, seen = iteration.ppo, []
    monkeypatch.setattr(iteration, "ppo", lambda agent, *rest, **named: seen.append(agent) or learn(agent, *rest, **named))
    config = dataclasses.replace(IMAGES, rounds=IMPROVED)
    env = EnvConfig(ColumnEnv, max_steps=15)
    loop = iteration._Loop(env, tmp_path / "loop", config, 3, torch.device("cpu"), None, RunConfig(), print)
    rounds = [loop.round(1, [])]
    rounds.append(loop.round(2, rounds))
    loop.round(3, rounds)
    first = Controller.from_pretrained(out / "round-1" / "controller")
    assert torch.equal(first.layers[0].weight, seen[0].layers[0].weight)
    assert EpisodeStore.open(tmp_path / "loop" / "round-3" / "data").recipe["policy"].startswith("controller of round 1 ")


def test_an_interrupted_round_on_images_resumes_to_the_same_result(dots, tmp_path):
    out, rounds = dots
    shutil.copytree(out, tmp_path / "loop")
    for name in ("round-2/encoded-2", "round-2/world", "round-2/controller"):
        shutil.rmtree(tmp_path / "loop" / name)
    (tmp_path / "loop" / "round-2" / "scores.json").unlink()
    assert outcome(play_dots(tmp_path / "loop", IMPROVED)) == outcome(rounds)


def test_a_v_that_continues_encodes_all_data_again(tmp_path):
    rounds = play_dots(tmp_path / "loop", CONTINUED_V)
    visions = [Vision.from_pretrained(one.directory / "vision") for one in rounds]
    assert visions[0].fingerprint != visions[1].fingerprint
    assert visions[1].provenance["initial"] == visions[0].fingerprint
    world = WorldModel.from_pretrained(rounds[1].directory / "world")
    assert world.vision.fingerprint == visions[1].fingerprint
    assert world.provenance["num_episodes"] == 9
    assert {path.name for path in rounds[1].directory.glob("encoded-*")} == {"encoded-1", "encoded-2"}


@pytest.mark.parametrize("env", [EnvConfig(DotEnv, max_steps=3), EnvConfig("CartPole-v1", max_steps=3)], ids=["dots", "cart"])
def test_rewards_without_any_difference_stop_the_loop_before_it_trains(env, tmp_path):
    with pytest.raises(ValueError, match="got 1 at every step of the 6 episodes of round 1; use another first policy"):
        iterate(env, out=tmp_path / "loop", config=IMAGES, seed=3)
    assert {path.name for path in (tmp_path / "loop" / "round-1").iterdir()} == {"data"}


def test_an_m_that_does_not_follow_the_rewards_is_warned_about(tmp_path):
    class Noise(WalkEnv):
        """A walk whose rewards have nothing to do with it."""

        def step(self, action):
            observation, _, *ends = super().step(action)
            return (observation, self.np_random.standard_normal(), *ends)

    data = []
    for kind in (WalkEnv, Noise):
        env = EnvConfig(kind, max_steps=12)
        data.append(wm_collect(env, out=tmp_path / kind.__name__, num_episodes=60, seed=1).path)
    with pytest.warns(RuntimeWarning, match="expected dreamed rewards that follow the real ones under recorded actions"):
        warn_unlearnt_rewards(walk_world(), data[1:])
    warn_unlearnt_rewards(walk_world(), data[:1])  # warnings are errors


def test_the_first_agent_acts_as_the_data_in_the_mean(tmp_path):
    space = gym.spaces.Box(np.float32([-1, 0, 5]), np.float32([1, 1, 9]))
    world = random_world(space)
    env = EnvConfig(lambda: SpaceEnv(gym.spaces.Box(-np.inf, np.inf, (2,), np.float64), space), max_steps=50)

    def policy(observation):
        return np.float32([0.5, 0.25, 9.0])

    path = wm_collect(env, out=tmp_path / "data", num_episodes=2, policy=policy).path
    agent = first_agent(world, ControllerConfig(hidden_size=4), [path], 0)
    state = random_world(space).start_mean
    features = torch.cat([state, torch.zeros(len(state), 5)], dim=1)
    expected = torch.tensor([0.5, 0.25, 8.9])  # within 0.95 of the range
    torch.testing.assert_close(agent(features), expected.expand(len(state), 3))
    assert agent.layers[0].weight.std() > 0.1
    unbiased = first_agent(world, ControllerConfig(bias=False), [path], 0)
    torch.testing.assert_close(unbiased(features)[0], torch.tensor([0.0, 0.5, 7.0]))


def test_v_and_m_cannot_both_continue():
    with pytest.raises(ValueError, match="continue_m, continue_v: expected one"):
        RoundOptions(continue_m=True, continue_v=True)


def test_noise_needs_a_box_of_actions_before_anything_is_written(tmp_path):
    config = dataclasses.replace(TINY, rounds=RoundOptions(noise=ActionNoise(scale=0.1)))
    with pytest.raises(TypeError, match="noise: expected a Box of floats"):
        run(tmp_path / "loop", config=config)
    assert not (tmp_path / "loop").exists()


def test_the_record_of_a_loop_without_the_new_options_is_that_of_earlier_versions():
    assert not {"vision", "rounds"} & set(TINY.identity())
    assert {"vision", "rounds"} <= set(dataclasses.replace(IMAGES, rounds=IMPROVED).identity())


def test_numpy_numbers_are_the_same_loop(whole):
    out, rounds, _ = whole
    assert outcome(run(out, seed=np.int64(3))) == outcome(rounds)


def test_a_reward_function_replaces_dreamed_and_real_rewards(tmp_path):
    config = dataclasses.replace(TINY, max_rounds=1, reward=constant)
    (one,) = run(tmp_path / "loop", config=config)
    np.testing.assert_array_equal(one.validation.returns, 7 * one.validation.lengths)
    np.testing.assert_array_equal(one.dream.returns, 7 * one.dream.lengths)
    recorded = json.loads((tmp_path / "loop" / "iteration.json").read_text())["config"]["reward"]
    assert recorded == "test_iteration:constant"
    assert "reward" not in TINY.identity()
    assert not {"reward_atoms", "reward_components", "layer_norm_eps"} & set(TINY.identity()["mdnrnn"])
