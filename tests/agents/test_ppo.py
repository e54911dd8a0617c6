"""PPO in short dreams: advantages against explicit sums, learning in an exact world, and limits of its arguments."""

import copy
import math
import signal
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from toy_worlds import random_world, same_bits, walk_world

from worldmodel.agents import PPO_FILE, Controller, PPOConfig
from worldmodel.agents import ppo as run_ppo
from worldmodel.agents.critic import Critic
from worldmodel.agents.ppo_learner import Learner
from worldmodel.data import collect
from worldmodel.dream import Dreams, LatentReward, LatentState, StartBank
from worldmodel.models import feature_size
from worldmodel.rng import PPO_TEST_STREAM, derive_seed
from worldmodel.runtime import RunConfig

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
PLACES = {"model": "world", "controller": "before", "data": "data", "out": "after"}
SHORT = PPOConfig(iterations=3, steps=4, horizon=6, critic_size=8, test_every=2, test_dreams=16)


def ppo(controller, dreams, starts, *, on_iteration=None, **arguments):
    run = RunConfig(progress=False, on_progress=on_iteration)
    return run_ppo(controller, dreams, starts, run=run, **arguments)


def make(world=None, *, num_dreams=32, features="z", temperature=1.0, termination="threshold", **kind):
    world = world or walk_world()
    dreams = Dreams(world, num_dreams, temperature=temperature, termination=termination)
    controller = Controller(feature_size(world, features), world.action_space, features=features, **kind)
    return controller, dreams, StartBank.of(world)


@pytest.mark.parametrize("kind", [{"ordered": True}, {"ordered": False}, {"hidden_size": 4, "features": "zhc"}])
def test_it_learns_to_walk(kind):
    controller, dreams, starts = make(temperature=0.0, **kind)
    if "hidden_size" in kind:
        torch.nn.init.normal_(controller.layers[0].weight, generator=torch.Generator().manual_seed(0))
    config = PPOConfig(iterations=60, steps=8, horizon=8, discount=0.9, learning_rate=3e-2, test_every=20, test_dreams=64)
    tests = []
    found = ppo(
        controller, dreams, starts, config=config, horizon=8, on_iteration=lambda i: tests.append(i.metrics.get("test"))
    )
    generator = dreams.generator(5)
    before, _ = dreams.score(controller, 8, generator=generator)
    after, _ = dreams.score(found, 8, generator=generator)
    assert after.mean() > before.mean() + 1.0  # the reward is the position, which did not change
    assert [number for number, test in enumerate(tests, 1) if test is not None] == [20, 40, 60]


def test_a_box_is_learned_too():
    world = random_world(spaces.Box(-1.0, 1.0, (2,)), termination_bias=-50.0, seed=3)
    controller, dreams, starts = make(world, temperature=0.0)
    config = PPOConfig(iterations=40, steps=8, horizon=8, learning_rate=3e-2, test_every=10, test_dreams=64)
    found = []
    ppo(controller, dreams, starts, config=config, horizon=8, on_iteration=found.append)
    start, _ = dreams.score(controller, 8, generator=dreams.generator(0))
    assert found[-1].metrics["best_test"] > start.mean() + 0.1 * start.std()


@pytest.mark.parametrize("space", [spaces.Box(-1.0, 1.0, (2,)), spaces.Discrete(3)], ids=["box", "discrete"])
def test_a_learned_spread_differs_by_state_and_stays_within_its_factor(space):
    world = random_world(space, termination_bias=-50.0, seed=3)
    controller, dreams, starts = make(world, temperature=0.0, features="zh")
    config = PPOConfig(iterations=1, steps=8, horizon=8, learning_rate=3e-2, spread="state", breadth=0.4, critic_size=8)
    learner = Learner(copy.deepcopy(controller), dreams, starts, config, 0)
    features = learner._features(learner._state)
    first = learner._choices_in(features)._breadth
    assert torch.equal(first, torch.full_like(first, 0.4))
    for _ in range(10):
        learner.iterate()
    breadth = learner._choices_in(features)._breadth
    assert breadth.shape == (len(features), 2 if isinstance(space, spaces.Box) else 1)
    assert breadth.std() > 1e-3
    assert 0.1 - 1e-6 <= breadth.min() < breadth.max() <= 1.6 + 1e-6


def test_a_test_from_starts_takes_the_return_of_dreams_from_there():
    world = walk_world()
    far = StartBank(torch.full_like(world.start_mean, 7.0), world.start_log_variance, world.mdnrnn.initial_state(7))
    controller, dreams, starts = make(world, temperature=0.0, termination="sample")
    tests = {}
    for test_from, bank in (("first", far), ("starts", far), ("starts", starts)):
        config = replace(SHORT, iterations=1, test_from=test_from)
        found = []
        ppo(controller, dreams, bank, config=config, horizon=4, on_iteration=found.append)
        tests[test_from, bank is far] = found[-1].metrics["best_test"]
    generator = dreams.generator(derive_seed(0, PPO_TEST_STREAM))
    variant = dreams.variant(num_dreams=16)
    expected = variant.expected_return(controller, 4, generator=generator, start=far.sample(16, generator)).mean().item()
    assert tests["starts", True] == pytest.approx(expected)  # far away no action changes anything in four steps
    assert tests["first", True] > expected + 1
    assert tests["starts", False] > expected + 1


def test_entropy_that_is_paid_for_is_kept():
    left = []
    for weight in (0.0, 1.0):
        controller, dreams, starts = make(temperature=0.0, ordered=True)
        config = PPOConfig(iterations=30, steps=8, horizon=8, discount=0.9, learning_rate=3e-2, entropy=weight, test_dreams=8)
        found = []
        ppo(controller, dreams, starts, config=config, horizon=8, on_iteration=found.append)
        left.append(found[-1].metrics["entropy"])
    assert left[0] < left[1] - 0.3  # the maximum is ln 3


def test_advantages_are_those_of_the_definition():
    controller, dreams, starts = make()
    config = PPOConfig(discount=0.9, gae_lambda=0.8)
    learner = Learner(controller, dreams, starts, config, 0)
    generator = torch.Generator().manual_seed(0)
    values, targets = (torch.randn(6, 5, generator=generator) for _ in range(2))
    over = torch.rand(6, 5, generator=generator) < 0.3
    found = learner._advantages(values, targets, over)
    for b in range(5):
        for t in range(6):
            expected, weight = 0.0, 1.0
            for k in range(t, 6):
                expected += weight * (targets[k, b] - values[k, b])
                weight *= 0.9 * 0.8 * (not over[k, b])
            assert found[t, b] == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize(("termination", "bias"), [("threshold", -50.0), ("sample", -2.0)])
def test_dreams_terminate_or_are_truncated_and_restart_from_the_starts(termination, bias):
    controller, dreams, starts = make(random_world(termination_bias=bias), termination=termination)
    learner = Learner(controller, dreams, starts, PPOConfig(steps=20, horizon=5), 0)
    steps, ends = learner._dream()
    z = (steps.features * learner._scale).unflatten(0, (20, 32))
    at_start = (z[:, :, None] - starts.mean).abs().amax(dim=-1).amin(dim=-1) < 1e-5  # (T, B); no noise in this V
    assert at_start[0].all()
    begun = [at_start[:, b].nonzero()[:, 0] for b in range(32)]
    assert all(steps[1] <= 5 for steps in begun)  # the dreams begin at different ages
    lasted = torch.cat([steps[1:].diff() for steps in begun])
    if termination == "threshold":
        assert ends == 0
        assert (lasted == 5).all()
    else:
        assert (lasted <= 5).all()
        early = (lasted < 5).sum().item()
        assert abs(early - ends) < 0.5 * ends  # the expected number of terminations occurred; not all lie between two starts


def test_weighted_returns_equal_the_mean_of_returns_with_sampled_terminations():
    world = random_world(termination_bias=-2.0)
    world.mdnrnn.reward_mean.fill_(3.0)
    controller, dreams, starts = make(world, num_dreams=32_768, termination="sample")
    learner = Learner(controller, dreams, starts, PPOConfig(steps=20, horizon=1000, discount=0.9, gae_lambda=1.0), 0)
    learner._age.zero_()
    state, generator = learner._state, dreams.generator(7)
    expected, weight = torch.zeros(32_768), torch.ones(32_768)
    for _ in range(20):
        action = learner._choices.features(learner._choices.draw(controller.outputs(learner._features(state)), generator))
        z, lstm, reward, logit = dreams.draw(state, action, generator=generator)
        expected += 0.1 * weight * reward
        weight *= 0.9 * torch.sigmoid(-logit)
        state = LatentState(z, lstm, state.alive)
    expected += weight * learner._value(learner._features(state))
    steps, _ = learner._dream()
    found = steps.returns[:32_768]  # of the first of 20 steps
    error = (found.std() / len(found) ** 0.5).item()
    assert 4 * error < 0.05 * expected.mean()
    assert found.mean().item() == pytest.approx(expected.mean().item(), abs=4 * error)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_returns_are_weighted_by_the_continuation_probability(precision):
    world = random_world(termination_bias=-2.0)
    controller, _, starts = make(world)
    dreams = Dreams(world, 8, termination="sample", precision=precision)
    learner = Learner(controller, dreams, starts, PPOConfig(steps=1, discount=0.9), 0)
    state, generator = learner._state, dreams.generator(7)
    learner._generator.set_state(generator.get_state())
    steps, ends = learner._dream()
    action = learner._choices.features(learner._choices.draw(controller.outputs(learner._features(state)), generator))
    z, lstm, reward, logit = dreams.draw(state, action, generator=generator)
    probability = torch.sigmoid(logit)
    later = learner._value(learner._features(LatentState(z, lstm, state.alive)))
    assert ends == pytest.approx(probability.sum().item(), rel=1e-5)
    assert torch.allclose(steps.returns, 0.1 * reward + 0.9 * (1 - probability) * later, atol=1e-6)


def test_the_critic_learns_what_steps_are_worth():
    controller, dreams, starts = make(random_world(termination_bias=-2.0), num_dreams=256)
    learner = Learner(controller, dreams, starts, PPOConfig(steps=16, critic_learning_rate=1e-2, discount=0.8), 0)
    explained = [learner.iterate()["explained"] for _ in range(30)]
    assert explained[-1] > max(0.5, explained[0])


def test_the_unit_of_rewards_does_not_change_what_is_learned():
    found = []
    for unit in (1.0, 2.0**-12):  # a power of two, so that no number is rounded differently
        controller, dreams, starts = make(random_world(termination_bias=-2.0), num_dreams=64)
        dreams = Dreams(dreams.world, 64, reward=LatentReward(lambda z, action, next_z, unit=unit: unit * next_z[:, 0]))
        found.append(ppo(controller, dreams, starts, config=replace(SHORT, iterations=8), horizon=6))
    assert found[0].layers[0].weight.abs().max() > 0
    torch.testing.assert_close(found[0].layers[0].weight, found[1].layers[0].weight)


def test_new_units_of_the_returns_change_no_value():
    critic = Critic(3, 8, 0.5, torch.Generator().manual_seed(0))
    features = torch.randn(20, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(critic(features), torch.full((20,), 0.5))
    torch.nn.init.normal_(critic.last.weight, generator=torch.Generator().manual_seed(2))
    before = critic(features)
    for returns in (torch.randn(50), 3 + 10 * torch.randn(50), torch.full((50,), 2.0)):
        critic.adapt(returns)
        torch.testing.assert_close(critic(features), before)
    assert critic.unit > 1.5


def test_constant_returns_have_a_finite_explained_variance():
    world = random_world(termination_head=False)
    for parameter in world.mdnrnn.reward_head.parameters():
        torch.nn.init.zeros_(parameter)
    controller, dreams, starts = make(world, num_dreams=8, temperature=0.0)
    learner = Learner(controller, dreams, starts, PPOConfig(steps=4), 0)
    assert math.isfinite(learner.iterate()["explained"])


def test_the_scaling_of_features_is_undone():
    controller, dreams, starts = make(bias=False, features="zhc", ordered=True)
    torch.nn.init.normal_(controller.layers[0].weight, std=0.1, generator=torch.Generator().manual_seed(0))
    learner = Learner(copy.deepcopy(controller), dreams, starts, SHORT, 0)
    assert torch.allclose(learner.agent().layers[0].weight, controller.layers[0].weight)


def test_features_are_scaled_by_what_the_agent_sees_of_them():
    controller, dreams, starts = make(random_world(starts=1000), features="zh")
    noisy = replace(starts, log_variance=torch.full_like(starts.mean, 6.0))  # e^3 of a latent, whose means are near 1
    scale = Learner(controller, dreams, noisy, SHORT, 0)._scale
    assert scale[:2].tolist() == pytest.approx([math.e**3] * 2, rel=0.1)
    assert (scale[2:] == 1.0).all()  # M's state, which is 0 in first frames


def test_a_controller_with_large_outputs_is_scaled_down():
    controller, dreams, starts = make(bias=True, ordered=False)
    torch.nn.init.normal_(controller.layers[0].weight, std=100.0, generator=torch.Generator().manual_seed(0))
    learner = Learner(copy.deepcopy(controller), dreams, starts, SHORT, 0)
    softened = learner.agent()
    seen = starts.mean
    assert softened.outputs(seen).std(correction=0).item() == pytest.approx(1.5, rel=1e-4)
    assert torch.equal(softened(seen), controller(seen))


def test_the_seed_decides_and_the_given_controller_stays():
    controller, dreams, starts = make(features="zh")
    before = copy.deepcopy(controller.state_dict())
    runs = [[], [], []]
    for run, seed in zip(runs, (0, 0, 1), strict=True):
        ppo(controller, dreams, starts, config=SHORT, horizon=8, seed=seed, on_iteration=run.append)
    facts = [[i.metrics for i in run] for run in runs]
    assert facts[0] == facts[1] != facts[2]
    assert same_bits(before, controller.state_dict())
    assert [i.done for i in runs[0]] == [1, 2, 3]
    assert ["test" not in i.metrics for i in runs[0]] == [True, False, False]  # every second, and the last


def test_the_result_is_never_worse_in_the_test_than_the_start():
    controller, dreams, starts = make(temperature=0.0)
    with torch.no_grad():
        controller.layers[0].bias.copy_(torch.tensor([0.0, 0.0, 9.0]))  # always forward
    reckless = PPOConfig(iterations=2, steps=2, horizon=2, learning_rate=1e3, test_every=1, test_dreams=16)
    found = []
    kept = ppo(controller, dreams, starts, config=reckless, horizon=8, on_iteration=found.append)
    tests = dreams.variant(num_dreams=16)

    def mean_return(one):
        return tests.score(one, 8, generator=tests.generator(derive_seed(0, PPO_TEST_STREAM)))[0].mean().item()

    assert (
        mean_return(kept) == found[-1].metrics["best_test"] == max(mean_return(controller), *(i.metrics["test"] for i in found))
    )


def test_ctrl_c_stops_between_iterations():
    controller, dreams, starts = make()

    def interrupt(iteration):
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="interrupted after 1 iterations"):
        ppo(controller, dreams, starts, config=SHORT, horizon=8, on_iteration=interrupt)


def test_a_temperature_for_each_dream():
    controller, dreams, starts = make(temperature=torch.linspace(0.0, 2.0, 32))
    assert isinstance(ppo(controller, dreams, starts, config=SHORT, horizon=8), Controller)


def test_dreams_unsuited_to_learning_are_rejected():
    controller, dreams, starts = make()
    with pytest.raises(ValueError, match=r"num_groups: expected 1 \(no common random numbers\), got 4"):
        ppo(controller, dreams.variant(num_groups=4), starts)
    other, _, _ = make(features="zh")
    other.features = "z"
    with pytest.raises(ValueError, match="controller: expected one on the world model's 2 features"):
        ppo(other, dreams, starts)
    without = random_world(reward_head=False)
    with pytest.raises(ValueError, match="without a reward head"):
        ppo(controller, Dreams(without, 4), StartBank.of(without))


@pytest.mark.parametrize(
    ("field", "value"),
    [("iterations", 0), ("steps", 1.5), ("breadth", 0.0), ("learning_rate", float("inf")), ("entropy", -1.0),
     ("discount", 1.0), ("gae_lambda", 1.1), ("minibatches", True)],
)  # fmt: skip
def test_numbers_out_of_range_are_named(field, value):
    with pytest.raises((TypeError, ValueError), match=f"{field}.*: expected"):
        PPOConfig(**{field: value})


def test_numbers_of_numpy_are_accepted():
    assert type(PPOConfig(iterations=np.int64(3)).iterations) is int


def test_the_command_improves_a_controller_and_says_so(tmp_path, run):
    env = gym.make("CartPole-v1")
    world = random_world(env.action_space, env.observation_space)
    world.save_pretrained(tmp_path / "world")
    collect("CartPole-v1", out=tmp_path / "data", num_episodes=4, seed=0)
    Controller(feature_size(world, "zh"), world.action_space).save_pretrained(tmp_path / "before")
    places = [f"--{name}={tmp_path / place}" for name, place in PLACES.items()]
    small = "--num-dreams 8 --iterations 2 --steps 3 --horizon 4 --critic-size 4 --minibatches 2 --test-every 1"
    small += " --test-dreams 4 --whole-horizon 10 --num-states 20 --nearest 1 --farthest 5 --device cpu"
    code, printed, said = run(["improve-controller", *places, *small.split()])
    assert code == 0, said
    assert "dream return before" in printed
    assert "dream return after" in printed
    assert Controller.from_pretrained(tmp_path / "after").size == 9


def test_the_command_resumes_to_the_same_bits(tmp_path, run, monkeypatch):
    env = gym.make("CartPole-v1")
    world = random_world(env.action_space, env.observation_space)
    world.save_pretrained(tmp_path / "world")
    collect("CartPole-v1", out=tmp_path / "data", num_episodes=4, seed=0)
    start = Controller(feature_size(world, "zh"), world.action_space)
    torch.nn.init.normal_(start.layers[0].weight, generator=torch.Generator().manual_seed(0))
    start.save_pretrained(tmp_path / "before")
    small = "--num-dreams 8 --iterations 3 --steps 3 --horizon 4 --critic-size 4 --minibatches 2 --test-every 1"
    small += " --test-dreams 4 --whole-horizon 10 --num-states 20 --nearest 1 --farthest 5 --device cpu"
    places = [f"--{name}={tmp_path / place}" for name, place in PLACES.items() if name != "out"]

    def improve(out, *more):
        code, printed, said = run(["improve-controller", *places, f"--out={tmp_path / out}", *small.split(), *more])
        return code, printed.splitlines()[:-2], said  # without the paths

    assert improve("whole")[0] == 0
    iterate, done = Learner.iterate, []

    def interrupting(self):
        done.append(1)
        if len(done) == 2:
            signal.raise_signal(signal.SIGINT)
        return iterate(self)

    monkeypatch.setattr(Learner, "iterate", interrupting)
    code, _, said = improve("after")
    assert code == 130
    assert "interrupted after 2 iterations" in said
    assert "The same command, without --overwrite, resumes the search." in said
    assert improve("after", "--resume", "--overwrite")[0] == 0  # --resume takes precedence
    assert len(done) == 3  # only the third iteration was left
    code, printed, _ = improve("after")  # complete: it prints the scores again
    assert (code, printed) == improve("whole")[:2]
    assert len(done) == 3
    logs = [(tmp_path / f"{out}.{PPO_FILE}").read_bytes() for out in ("whole", "after")]
    assert logs[0] == logs[1]
    code, _, said = improve("after", "--seed=1")
    assert code == 2
    assert "expected seed 0, as in the run that is there, got 1" in said
    assert improve("before")[0] == 2  # a controller without a search
