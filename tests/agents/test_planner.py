"""Planners find the best plan of a known world, respect limits and time, and save what they need."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from gymnasium import spaces

from tests.toy_worlds import WalkEnv, random_world, walk_world
from worldmodel.agents import LatentPolicy, PlannedStep, Planner, PlannerConfig, load_agent
from worldmodel.agents.plan_distribution import ActionColumns, PlanDistribution, coloured_noise
from worldmodel.agents.plan_scores import PlanScorer
from worldmodel.data import EnvConfig, rollouts
from worldmodel.dream import Dreams, LatentReward, LatentState, LatentTracker
from worldmodel.runtime import InvalidFileError
from worldmodel.spaces import FlatSpace

METHODS = ("shooting", "cem", "icem", "mppi")
BOX = spaces.Box(-2.0, 2.0, (2,), np.float32)


def rewrite_json(path, change):
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    del content["sha256"]
    path.write_text(json.dumps(content), encoding="utf-8")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def state_of(world, batch):
    return Dreams(world, batch).start(generator=generator())


def target_cost(step: PlannedStep) -> torch.Tensor:
    """Squared distance of the action from (1, -0.5)."""
    return (step.action - torch.tensor([1.0, -0.5])).square().sum(dim=-1)


def nan_cost(step):
    return step.reward * math.nan


class TestDistribution:
    @pytest.mark.parametrize("steps", [1, 2, 7, 8])
    @pytest.mark.parametrize("exponent", [0.0, 1.0, 2.5])
    def test_noise_has_unit_variance_whatever_its_colour(self, steps, exponent):
        noise = coloured_noise((40_000, steps, 2), exponent, generator(), torch.device("cpu"))
        np.testing.assert_allclose(noise.var(dim=0).numpy(), 1.0, atol=0.04)
        np.testing.assert_allclose(noise.mean(dim=0).numpy(), 0.0, atol=0.03)

    def test_the_power_of_the_noise_falls_with_the_frequency_to_the_exponent(self):
        noise = coloured_noise((20_000, 16, 1), 2.0, generator(), torch.device("cpu"))[..., 0]
        power = torch.fft.rfft(noise, dim=-1).abs().square().mean(dim=0)
        np.testing.assert_allclose((power[2] / power[4]).item(), 4.0, rtol=0.06)

    def test_samples_follow_the_probabilities_and_stay_in_the_bounds(self):
        space = FlatSpace(spaces.Dict({"a": spaces.MultiDiscrete([2, 3]), "b": BOX, "c": spaces.MultiBinary(2)}))
        columns = ActionColumns.of(space)
        plan = PlanDistribution.initial(columns, 1, 1, breadth=3.0)
        weights = torch.tensor([[0.8, 0.2, 0.1, 0.3, 0.6, 0.0, 0.0, 0.25, 0.9]])
        plan = PlanDistribution(columns, torch.where(columns.box, plan.mean, weights), plan.std)
        plans = plan.sample(40_000, 0.0, generator())[:, 0, 0]
        choice = ~columns.box
        np.testing.assert_allclose(plans.mean(dim=0)[choice], weights[0, choice], atol=0.01)
        assert plans[:, :2].sum(dim=1).eq(1).all()
        assert plans[:, 2:5].sum(dim=1).eq(1).all()
        assert plans[:, columns.box].abs().max() == 1.0

    def test_refit_equals_the_weighted_moments(self):
        columns = ActionColumns.of(FlatSpace(BOX))
        plan = PlanDistribution.initial(columns, 2, 3, breadth=0.5)
        plans, weights = plan.sample(50, 1.0, generator()), torch.rand(50, 2, generator=generator(1)).softmax(dim=0)
        refitted = plan.refit(plans, weights, momentum=0.25, smallest_std=0.0)
        for b in range(2):
            mean = np.average(plans[:, b], axis=0, weights=weights[:, b])
            std = np.sqrt(np.average((plans[:, b].numpy() - mean) ** 2, axis=0, weights=weights[:, b]))
            np.testing.assert_allclose(refitted.mean[b], 0.75 * mean, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(refitted.std[b], 0.75 * std + 0.25 * plan.std[b].numpy(), rtol=1e-4)

    def test_no_choice_is_ruled_out(self):
        columns = ActionColumns.of(FlatSpace(spaces.Discrete(4)))
        plan = PlanDistribution.initial(columns, 1, 2, breadth=1.0)
        plans = torch.zeros(5, 1, 2, 4)
        plans[..., 3] = 1.0
        mean = plan.refit(plans, torch.full((5, 1), 0.2), momentum=0.0, smallest_std=0.0).mean
        assert mean.min() > 0.004
        np.testing.assert_allclose(mean.sum(dim=-1), 1.0, rtol=1e-6)


class TestScores:
    def test_a_score_is_the_discounted_return_of_the_dream(self):
        world = walk_world()
        config = PlannerConfig(horizon=4, discount=0.5, temperature=0.0)
        plans = torch.zeros(2, 1, 4, 3)
        plans[0, ..., 0] = plans[1, ..., 2] = 1.0  # to the left, to the right
        z = torch.tensor([[(0.0 - 0.5) / 0.5, 0.0]])  # x = 0
        state = LatentState(z, world.mdnrnn.initial_state(1), torch.ones(1, dtype=torch.bool))
        score = PlanScorer(world, config)(state, plans, 0, generator())[:, 0]
        for k, sign in enumerate((-1, 1)):
            env, expected = WalkEnv(), 0.0
            env.reset(seed=0)
            env.x = 0.0
            for t in range(4):
                _, reward, terminated, *_ = env.step(1 + sign)
                expected += 0.5**t * reward
                if terminated:
                    break
            assert score[k].item() == pytest.approx(expected, abs=1e-5)

    def test_an_action_is_held_from_the_phase_on(self):
        world, seen = random_world(BOX), []

        def cost(step):
            seen.append(step.action_features[0, 0].item())
            return step.reward * 0

        config = PlannerConfig(horizon=5, hold=2)
        plans = torch.arange(config.actions).float().reshape(1, 1, -1, 1).expand(1, 1, -1, 2) / 10
        PlanScorer(world, config, cost=cost)(state_of(world, 1), plans, 1, generator())
        np.testing.assert_allclose(seen, [0.0, 0.1, 0.1, 0.2, 0.2], atol=1e-6)

    def test_cvar_is_the_mean_of_the_worst_particles(self):
        world = random_world(BOX)
        plans = torch.zeros(1, 1, 3, 2)
        config = PlannerConfig(horizon=3, particles=8, cvar=0.25)
        scorer = PlanScorer(world, config)
        returns = scorer._returns(state_of(world, 1), plans, 0, generator(), math.inf)
        worst = returns.sort(dim=-1).values[..., :2].mean(dim=-1)
        torch.testing.assert_close(scorer(state_of(world, 1), plans, 0, generator()), worst)

    def test_the_value_of_the_last_state_is_added(self):
        world = random_world(BOX)
        config = PlannerConfig(horizon=2, temperature=0.0, discount=0.5)
        plans, state = torch.zeros(1, 1, 2, 2), state_of(world, 1)
        without = PlanScorer(world, config)(state, plans, 0, generator())
        value = PlanScorer(world, config, terminal_value=lambda end: torch.full_like(end.z[:, 0], 8.0))
        now, weight, dreams = state, 1.0, Dreams(world, 1, temperature=0.0)
        for t in range(2):
            drawn = dreams.draw(now, plans[0, :, t], generator=generator())
            weight *= 0.5 * dreams.continuation(drawn.termination_logit).item()
            now = LatentState(drawn.z, drawn.lstm, now.alive)
        assert (value(state, plans, 0, generator()) - without).item() == pytest.approx(8 * weight, rel=1e-4)


class TestPlanner:
    @pytest.mark.parametrize("method", METHODS)
    def test_every_method_finds_the_best_action_of_a_box(self, method):
        config = PlannerConfig(method=method, horizon=2, candidates=400, iterations=6, mppi_temperature=0.05, temperature=0.0)
        planner = Planner(random_world(BOX), config, cost=target_cost)
        planner.reset(3)
        action = planner.act(state_of(planner.world, 3))
        assert action.shape == (3, 2)
        np.testing.assert_allclose(action, np.tile([1.0, -0.5], (3, 1)), atol={"shooting": 0.8, "mppi": 0.3}.get(method, 0.15))

    @pytest.mark.parametrize("method", METHODS)
    def test_every_method_plans_choices(self, method):
        space = spaces.MultiDiscrete([3, 4])

        def cost(step):
            return (step.action != torch.tensor([2, 1])).float().sum(dim=-1)

        planner = Planner(random_world(space), PlannerConfig(method=method, horizon=1, candidates=64), cost=cost)
        planner.reset(2)
        np.testing.assert_array_equal(planner.act(state_of(planner.world, 2)), [[2, 1], [2, 1]])

    def test_a_planner_finds_the_plan_of_an_exhaustive_search(self):
        world, steps = walk_world(), 4
        planner = Planner(world, PlannerConfig(horizon=steps, candidates=200, iterations=4, temperature=0.0))
        planner.reset(3)
        state = state_of(world, 3)
        planner.act(state)
        plans = torch.tensor(list(itertools.product(range(3), repeat=steps)))
        every = torch.nn.functional.one_hot(plans, 3).float().unsqueeze(1).expand(-1, 3, -1, -1)
        best = PlanScorer(world, planner.config)(state, every, 0, generator()).amax(dim=0)
        torch.testing.assert_close(planner.report.score, best)

    def test_ended_episodes_are_not_planned_for(self):
        planner = Planner(random_world(BOX), PlannerConfig(horizon=2, candidates=8), cost=target_cost)
        planner.reset(2)
        state = state_of(planner.world, 2)
        ended = LatentState(state.z, state.lstm, torch.tensor([False, True]))
        action = planner.act(ended)
        np.testing.assert_allclose(action[0], 0.0)
        assert planner.report.score[0].isnan()
        assert planner.report.score[1].isfinite()
        assert planner.act(ended).shape == (2, 2)

    def test_episodes_of_a_batch_get_plans_of_their_own(self):
        def cost(step):
            return (step.action[:, 0] - step.z[:, 0].clamp(-2, 2)).square()

        config = PlannerConfig(horizon=1, candidates=500, iterations=5, temperature=0.0)
        planner = Planner(random_world(BOX), config, cost=cost)
        planner.reset(4)
        state = state_of(planner.world, 4)
        np.testing.assert_allclose(planner.act(state)[:, 0], state.z[:, 0].clamp(-2, 2), atol=0.1)

    def test_limits_bound_the_actions_and_their_change(self):
        world = random_world(BOX)
        limits = (np.array([-1.0, -2.0]), np.array([0.5, 2.0]))
        planner = Planner(
            world, PlannerConfig(horizon=3, candidates=64), cost=lambda s: -s.action.sum(-1), limits=limits, max_change=0.25
        )
        planner.reset(1)
        state, before = state_of(world, 1), None
        for _ in range(6):
            action = planner.act(state)
            assert action[0, 0] <= 0.5 + 1e-6
            if before is not None:
                assert (action - before).abs().max() <= 0.25 + 1e-5
            before = action
        assert action[0, 0] == pytest.approx(0.5, abs=0.05)

    def test_smoothness_makes_actions_change_less(self):
        world, state = random_world(BOX), None
        changes = []
        for smoothness in (0.0, 100.0):
            planner = Planner(world, PlannerConfig(horizon=4, candidates=64, smoothness=smoothness, colour=0.0))
            planner.reset(1)
            state = state_of(world, 1)
            actions = torch.stack([planner.act(state) for _ in range(8)])
            changes.append(actions.diff(dim=0).abs().mean().item())
        assert changes[1] < changes[0] / 2

    def test_the_same_seed_gives_the_same_actions_after_each_reset(self):
        planner = Planner(random_world(BOX), PlannerConfig(horizon=3, candidates=16), seed=3)
        state = state_of(planner.world, 2)
        runs = []
        for seed in (3, 3, 4):
            planner.seed(seed)
            planner.reset(2)
            runs.append(torch.stack([planner.act(state) for _ in range(3)]))
        assert torch.equal(runs[0], runs[1])
        assert not torch.equal(runs[0], runs[2])

    def test_a_budget_that_is_too_short_repeats_the_last_plan(self):
        config = PlannerConfig(horizon=3, candidates=64, iterations=2)
        planner = Planner(random_world(BOX), config, cost=target_cost)
        state = state_of(planner.world, 1)
        planner.act(state)
        expected = planner._plan.mean[:, 0]
        hurried = Planner(planner.world, PlannerConfig(horizon=3, candidates=64, time_budget=1e-9), cost=target_cost)
        hurried._plan, hurried._last_action = planner._plan, planner._last_action
        action = hurried.act(state)
        assert hurried.report.fell_back
        assert hurried.report.iterations == 0
        torch.testing.assert_close(action, planner.world.action_features.unflatten(expected))

    def test_a_world_without_rewards_needs_a_cost(self):
        world = random_world(BOX, reward_head=False)
        with pytest.raises(ValueError, match="expected a world model that predicts rewards"):
            Planner(world)
        Planner(world, PlannerConfig(horizon=1, candidates=4), cost=target_cost).act(state_of(world, 1))

    @pytest.mark.parametrize(
        ("function", "message"),
        [
            (nan_cost, "cost: expected finite numbers, got nan at index 0 from nan_cost"),
            (lambda step: step.reward[:1], r"cost: expected a function that returns shape \(8,\), got \(1,\)"),
            (lambda step: 1.0, r"cost: expected a function that returns shape \(8,\), got \(\)"),
            (lambda step: step.next_z.mul_(0)[:, 0], r"leaves the step as it is, got changed next_z from .*<lambda>"),
        ],
    )
    def test_a_wrong_cost_is_named(self, function, message):
        planner = Planner(random_world(BOX), PlannerConfig(horizon=1, candidates=8), cost=function)
        with pytest.raises(ValueError, match=message):
            planner.act(state_of(planner.world, 1))

    @pytest.mark.parametrize("result", [None, "high", {"cost": torch.zeros(8)}, torch.zeros(8) * 1j])
    @pytest.mark.parametrize("name", ["cost", "terminal_value"])
    def test_a_function_that_returns_no_numbers_is_named_on_one_line(self, name, result):
        def useless(step):
            return result

        functions = {"cost": target_cost, name: useless}
        planner = Planner(random_world(BOX), PlannerConfig(horizon=1, candidates=8), **functions)
        with pytest.raises(
            TypeError, match=rf"^{name}: expected a function that returns numbers \(8,\), got .*useless"
        ) as raised:
            planner.act(state_of(planner.world, 1))
        assert "\n" not in str(raised.value)

    @pytest.mark.parametrize("name", ["cost", "terminal_value"])
    def test_what_is_no_function_is_refused_at_once(self, name):
        with pytest.raises(TypeError, match=rf"^{name}: expected a function, got 'module:cost'"):
            Planner(random_world(BOX), **({"cost": target_cost} | {name: "module:cost"}))

    def test_a_configuration_of_another_kind_is_refused(self):
        with pytest.raises(TypeError, match=r"^config: expected a PlannerConfig, got dict"):
            Planner(random_world(BOX), {"horizon": 3}, cost=target_cost)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"limits": (np.ones(2), -np.ones(2))}, "limits: expected a smallest and a largest action"),
            ({"limits": (np.ones(2),)}, "limits: expected a smallest and a largest action"),
            ({"limits": 3}, "limits: expected a smallest and a largest action"),
            ({"limits": (np.full(2, np.nan), np.ones(2))}, "limits: expected a smallest and a largest action"),
            ({"limits": (np.zeros(3), np.ones(3))}, "limits: expected a smallest and a largest action"),
            ({"max_change": 0.0}, "max_change: expected a positive finite number, got 0.0"),
        ],
    )
    def test_wrong_limits_are_refused(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            Planner(random_world(BOX), **arguments)

    @pytest.mark.parametrize(
        "fields", [{"method": "dream"}, {"horizon": 0}, {"cvar": 0.0}, {"momentum": 1.0}, {"time_budget": -1}, {"elites": 2}]
    )
    def test_wrong_fields_are_refused(self, fields):
        (name,) = fields
        with pytest.raises(ValueError, match=f"^{name}: expected"):
            PlannerConfig(**fields)


class TestSaving:
    def test_a_saved_planner_plans_the_same(self, tmp_path):
        limits = (np.array([-1.0, -1.0]), np.array([1.5, 1.0]))
        planner = Planner(
            random_world(BOX), PlannerConfig(horizon=2, candidates=16), cost=target_cost, limits=limits, max_change=1.0, seed=5
        )
        planner.save_pretrained(tmp_path / "planner")
        opened = load_agent(tmp_path / "planner")
        state = state_of(planner.world, 2)
        for agent in (planner, opened):
            agent.reset(2)
        assert torch.equal(planner.act(state), opened.act(state))
        assert opened.config == planner.config

    def test_a_planner_whose_world_model_was_replaced_is_refused(self, tmp_path):
        planner = Planner(random_world(BOX), cost=target_cost)
        planner.save_pretrained(tmp_path / "planner")
        (world,) = (tmp_path / "planner").glob("world-*")
        random_world(BOX, seed=1).save_pretrained(world, overwrite=True)
        with pytest.raises(InvalidFileError, match=r"expected the world model .* that the planner was saved with"):
            load_agent(tmp_path / "planner")

    def test_a_planner_of_another_directory_of_its_world_model_opens(self, tmp_path):
        planner = Planner(random_world(BOX), cost=target_cost)
        planner.save_pretrained(tmp_path / "planner")
        (world,) = (tmp_path / "planner").glob("world-*")
        world.rename(tmp_path / "planner" / "world")  # as it was called at first
        rewrite_json(tmp_path / "planner" / "planner.json", lambda content: content.pop("directory"))
        assert load_agent(tmp_path / "planner").world.fingerprint == planner.world.fingerprint
        planner.save_pretrained(tmp_path / "planner", overwrite=True)
        assert not (tmp_path / "planner" / "world").exists()
        load_agent(tmp_path / "planner")

    @pytest.mark.parametrize("name", ["../planner/world", "/", "world-../..", 7, ["world"]])
    def test_a_world_model_outside_of_the_directory_is_refused(self, tmp_path, name):
        Planner(random_world(BOX), cost=target_cost).save_pretrained(tmp_path / "planner")
        rewrite_json(tmp_path / "planner" / "planner.json", lambda content: content.update(directory=name))
        with pytest.raises(InvalidFileError, match="expected the name of a world model in this directory"):
            load_agent(tmp_path / "planner")

    @pytest.mark.parametrize(
        "name", ["no_such_module:cost", "os:system", "shutil:rmtree", "math:sin", "builtins:exec", "torch:nothing", ":"]
    )
    def test_opening_a_planner_imports_nothing_and_calls_nothing_of_python_itself(self, tmp_path, name):
        Planner(random_world(BOX), cost=target_cost).save_pretrained(tmp_path / "planner")
        rewrite_json(tmp_path / "planner" / "planner.json", lambda content: content["functions"].update(cost=name))
        with pytest.raises(ValueError, match=r"in a module that is imported|defined in a module of yours"):
            load_agent(tmp_path / "planner")

    def test_a_module_is_not_imported_by_a_file(self, tmp_path, monkeypatch):
        (tmp_path / "stranger.py").write_text("raise SystemExit('this ran')\n")
        monkeypatch.syspath_prepend(tmp_path)
        Planner(random_world(BOX), cost=target_cost).save_pretrained(tmp_path / "planner")
        rewrite_json(tmp_path / "planner" / "planner.json", lambda content: content["functions"].update(cost="stranger:cost"))
        with pytest.raises(ValueError, match="opening a file imports nothing, so import stranger first"):
            load_agent(tmp_path / "planner")

    def test_a_reward_of_latents_is_not_saved_as_one_of_observations(self, tmp_path):
        planner = Planner(random_world(BOX), reward=LatentReward(target_cost))
        with pytest.raises(TypeError, match="reward: expected a function of observations to save, got a LatentReward"):
            planner.save_pretrained(tmp_path / "planner")

    def test_a_file_is_no_planner(self, tmp_path):
        (tmp_path / "planner").write_text("mine", encoding="utf-8")
        with pytest.raises(FileExistsError, match="expected a directory or nothing"):
            Planner(random_world(BOX), cost=target_cost).save_pretrained(tmp_path / "planner", overwrite=True)

    @pytest.mark.parametrize(
        ("value", "error"), [(True, TypeError), ("1", TypeError), (np.inf, ValueError), (np.nan, ValueError)]
    )
    def test_a_largest_change_that_is_no_number_is_named(self, value, error):
        with pytest.raises(error, match="max_change: expected a positive finite number"):
            Planner(random_world(BOX), cost=target_cost, max_change=value)

    def test_a_largest_change_of_numpy_can_be_saved(self, tmp_path):
        Planner(random_world(BOX), cost=target_cost, max_change=np.float32(0.5)).save_pretrained(tmp_path / "planner")
        assert load_agent(tmp_path / "planner")._max_change == 0.5

    def test_a_planner_is_refused_in_another_world(self):
        planner = Planner(random_world(BOX), cost=target_cost)
        with pytest.raises(ValueError, match="planner: expected the world model"):
            planner.check_world(random_world(BOX, seed=1))

    def test_a_function_without_a_name_cannot_be_saved(self, tmp_path):
        planner = Planner(random_world(BOX), cost=lambda step: step.reward)
        with pytest.raises(TypeError, match="cost: expected a function of a module"):
            planner.save_pretrained(tmp_path / "planner")
        assert not (tmp_path / "planner").exists()

    def test_episodes_are_the_same_in_any_order(self):
        world, env = walk_world(), EnvConfig(env=WalkEnv, max_steps=5)
        policy = LatentPolicy(world, Planner(world, PlannerConfig(horizon=3, candidates=4)))
        _first, second = rollouts(env, policy, episode_ids=[0, 1], seed=0)
        (alone,) = rollouts(env, policy, episode_ids=[1], seed=0)
        np.testing.assert_array_equal(second.actions, alone.actions)


def test_a_planner_runs_without_an_environment():
    world = random_world(BOX)
    tracker, planner = LatentTracker(world), Planner(world, PlannerConfig(horizon=2, candidates=8))
    tracker.reset(seed=0)
    planner.reset(1)
    state = tracker.observe(np.zeros((1, 2)))
    for _ in range(3):
        action = planner.act(state)
        state = tracker.observe(np.zeros((1, 2)), action)
    assert action.shape == (1, 2)
