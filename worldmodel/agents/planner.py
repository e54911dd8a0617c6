"""Plan with a world model: choose each action by dreaming thousands of plans from the present state, on any device.

    planner = Planner(world, PlannerConfig(horizon=20, candidates=256))
    evaluate(planner, world, env="Pendulum-v1", config=EvaluationConfig(num_episodes=20, num_dreams=20))

A planner is an agent like any other: it plays in `evaluate`, `collect` and `iterate`, and on a robot with `LatentTracker`.
"""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldmodel.agents.latent_value import LatentValue
from worldmodel.agents.plan_distribution import ActionColumns, PlanDistribution
from worldmodel.agents.plan_scores import Cost, OutOfTimeError, PlanScorer, TerminalValue
from worldmodel.agents.planner_config import PlannerConfig
from worldmodel.agents.planner_files import PLANNER_FILE, WORLD_DIRECTORY, read_planner, save_planner
from worldmodel.agents.ppo_learner import named as named_parts
from worldmodel.agents.registry import register_agent
from worldmodel.dream import LatentReward, LatentState, Reward, check_rewards, reward_name
from worldmodel.models import State, WorldModel
from worldmodel.runtime import check_integer, check_number, file_errors, imported_function
from worldmodel.spaces import Value


@dataclass(frozen=True)
class PlanReport:
    """How the last decision was made.

    Args:
        iterations: complete iterations.
        seconds: time that it took.
        fell_back: whether no iteration was complete in the time budget, so that the action is that of the last plan.
        score: (B,) best score of the plans, NaN for episodes that have ended or if it fell back.
    """

    iterations: int
    seconds: float
    fell_back: bool
    score: Tensor


@register_agent(PLANNER_FILE)
class Planner:
    """An agent that searches a plan at every step and takes its first action.

    Args:
        world: V and M.
        config: method and sizes.
        cost: a function of `PlannedStep` (decoded observations, actions, rewards, latents) that returns costs (N,), which are
            minimised instead of maximising the rewards of M.
        reward: a function that replaces M's reward head, as in `Dreams`.
        terminal_value: a function of `LatentState` that returns values (N,) of the states at the end of plans, in rewards, such
            as `fit_value` learns.
        limits: smallest and largest action, values of the action space; they narrow its bounds.
        max_change: largest change of a Box number from one step to the next, in units of the action space.
        seed: seed of the plans and dreams. `reset` starts its random numbers again, so equal episodes get equal plans.

    Raises:
        ValueError: if there is nothing to maximise, ``limits`` leave no action, or ``max_change`` is not positive.

    Attributes:
        report: `PlanReport` of the last decision; None before the first.
    """

    def __init__(
        self,
        world: WorldModel,
        config: PlannerConfig | None = None,
        *,
        cost: Cost | None = None,
        reward: Reward | None = None,
        terminal_value: TerminalValue | None = None,
        limits: tuple[Value, Value] | None = None,
        max_change: float | None = None,
        seed: int = 0,
    ):
        self.world, self.config = world, config or PlannerConfig()
        if not isinstance(self.config, PlannerConfig):
            raise TypeError(f"config: expected a PlannerConfig, got {type(config).__name__}")
        self._functions = {"cost": cost, "reward": reward, "terminal_value": terminal_value}
        self._scorer = PlanScorer(world, self.config, cost=cost, reward=reward, terminal_value=terminal_value)
        if cost is None:
            check_rewards(world, self._scorer.user_reward)
        if max_change is not None:
            max_change = check_number(max_change, "max_change", "(0, inf)")
        self._columns = ActionColumns.of(world.action_features, limits)
        self._max_change = max_change
        self._seed, self._generator = check_integer(seed, "seed", least=0), torch.Generator(world.device)
        self.report: PlanReport | None = None
        self.reset(1)

    def seed(self, seed: int) -> None:
        """Set the seed of the next episodes."""
        self._seed = check_integer(seed, "seed", least=0)

    def reset(self, num_episodes: int) -> None:
        """Begin B episodes without a plan; the random numbers start again from the seed."""
        self._generator.manual_seed(self._seed)
        config = self.config
        self._initial = PlanDistribution.initial(self._columns, num_episodes, config.actions, config.breadth)
        self._plan, self._phase = self._initial, 0
        self._kept: Tensor | None = None  # (N, B, K, A) elites of the last decision
        self._last_action: Tensor | None = None  # (B, A) features

    @torch.no_grad()
    def act(self, state: LatentState) -> Value:
        """Plan for B states and return the first actions (B, ...). Ended episodes are not planned for.

        Raises:
            ValueError: if a user's function returns another shape or a number that is not finite, or ``state`` is of another
                number of episodes than `reset` was given.
        """
        start = time.perf_counter()
        if len(state.z) != len(self._plan.mean):
            raise ValueError(f"state: expected {len(self._plan.mean)} episodes, got {len(state.z)}; call reset first")
        index = state.alive.nonzero()[:, 0]
        action = self._next_actions(self._plan.mean, self._last_action)
        iterations, score = 0, torch.full_like(state.z[:, 0], math.nan)
        if len(index):
            search = _Search(self, _rows_of(state, index), index, start)
            iterations = search.run()
            if iterations:
                action = action.index_copy(0, index, search.action)
                score = score.index_copy(0, index, search.score)
                self._plan = self._plan.with_rows(index, search.plan)
                self._kept = search.elites(len(state.z), index)
        fell_back = len(index) > 0 and iterations == 0
        self.report = PlanReport(iterations, time.perf_counter() - start, fell_back, score)
        self._advance(action)
        return self.world.action_features.unflatten(action)

    def check_world(self, world: WorldModel) -> None:
        """Raise unless the planner was made with this world model.

        Raises:
            ValueError: if it plans with another one.
        """
        if world is not self.world and world.fingerprint != self.world.fingerprint:
            raise ValueError(
                f"planner: expected the world model {self.world.fingerprint} that it plans with, got {world.fingerprint}; "
                "make a planner for each world model"
            )

    def save_pretrained(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the planner and its world model as a directory, which holds the old planner or the new one at every moment.

        Raises:
            TypeError: if a function has no name by which it can be imported.
            FileExistsError: if ``path`` holds something that may not be replaced.
            LockedError: if another process writes to it.
        """
        value = self._functions["terminal_value"]
        learnt = value if isinstance(value, LatentValue) else None
        named = self._functions if learnt is None else self._functions | {"terminal_value": None}
        functions = {name: None if part is None else _function_name(name, part) for name, part in named.items()}
        content = {
            "config": dataclasses.asdict(self.config),
            "functions": functions,
            "max_change": self._max_change,
            "seed": self._seed,
            "world": self.world.fingerprint,
            "directory": f"{WORLD_DIRECTORY}-{self.world.fingerprint[:16]}",
        }
        weights = {"low": self._columns.low, "high": self._columns.high}
        if learnt is not None:
            content["value"] = learnt.describe()
            weights |= {f"value.{name}": part for name, part in learnt.state_dict().items()}
        save_planner(Path(path), content, weights, self.world, overwrite=overwrite)

    @classmethod
    def from_pretrained(cls, path: str | Path, *, device: str | torch.device = "cpu") -> Planner:
        """Open a directory that `save_pretrained` wrote; the modules of its functions must be imported already.

        Raises:
            FileNotFoundError: if there is no planner in ``path``.
            ValueError: if it is damaged, of a newer version, or names a function of a module that is not imported.
        """
        path = Path(path)
        saved, world = read_planner(path, device)
        with file_errors(path, "an undamaged planner"):
            content = saved.content
            named = content["functions"]
            functions: dict[str, Any] = {
                part: name and imported_function(name, f"planner {path}") for part, name in named.items()
            }
            config = PlannerConfig(**content["config"])
            bounds = {name: part.to(world.device) for name, part in saved.weights().items()}
            if "value" in content:
                functions["terminal_value"] = LatentValue.restored(content["value"], named_parts(bounds, "value"))
            planner = cls(world, config, max_change=content["max_change"], seed=content["seed"], **functions)
            planner._columns = dataclasses.replace(planner._columns, low=bounds["low"], high=bounds["high"])
            planner.reset(1)
        return planner

    def _next_actions(self, plans: Tensor, last: Tensor | None) -> Tensor:
        """First actions (B, A) of means or plans (B, K, A), within the limits of their change."""
        return self._limited(plans[:, :1], last)[:, 0]

    def _limited(self, plans: Tensor, last: Tensor | None) -> Tensor:
        """Limit the change from each action to the next in plans (..., B, K, A), the first from ``last`` (B, A)."""
        if self._max_change is None:
            return plans
        most = torch.where(self._columns.box, self._max_change / self._columns.half_range, math.inf)
        before, limited = last, []
        for action in plans.unbind(dim=-2):
            before = action if before is None else action.clamp(before - most, before + most)
            limited.append(before)
        return torch.stack(limited, dim=-2)

    def _advance(self, action: Tensor) -> None:
        """Move the plan one real step forward."""
        self._last_action = action
        self._phase += 1
        if self._phase == self.config.hold:
            self._phase = 0
            self._plan = self._plan.shifted(self._initial)
            if self._kept is not None:
                self._kept = torch.cat([self._kept[:, :, 1:], self._kept[:, :, -1:]], dim=2)
        else:
            self._plan = dataclasses.replace(self._plan, std=self._initial.std)


class _Search:
    """The search of one decision, for the running episodes."""

    def __init__(self, planner: Planner, state: LatentState, index: Tensor, start: float):
        self._planner, self._config, self._state, self._index = planner, planner.config, state, index
        self.plan = planner._plan.rows(index)
        self._last = None if planner._last_action is None else planner._last_action[index]
        self._elites: Tensor | None = None if planner._kept is None else planner._kept[:, index]
        self._deadline = math.inf if self._config.time_budget is None else start + self._config.time_budget
        self.action, self.score = self.plan.mean[:, 0], torch.full_like(state.z[:, 0], -math.inf)

    def run(self) -> int:
        """Iterate, at most until the time budget is used; return the number of complete iterations."""
        count = 1 if self._config.method == "shooting" else self._config.iterations
        longest = 0.0
        for iteration in range(count):
            before = time.perf_counter()
            if iteration and before + longest > self._deadline:
                return iteration
            try:
                self._iterate(iteration, last=iteration == count - 1)
            except OutOfTimeError:
                return iteration
            longest = max(longest, time.perf_counter() - before)
        return count

    def elites(self, num_episodes: int, index: Tensor) -> Tensor | None:
        """Plans that the next decision starts with: (N, B, K, A), with zeros for episodes that have ended."""
        if self._config.method != "icem" or self._elites is None:
            return None
        kept = self._elites.new_zeros(len(self._elites), num_episodes, *self._elites.shape[2:])
        return kept.index_copy(1, index, self._elites)

    def _iterate(self, iteration: int, *, last: bool) -> None:
        """Sample plans, score them, refit the distribution, and choose the action."""
        config, planner = self._config, self._planner
        colour = config.colour if config.method in ("icem", "mppi") else 0.0
        source = planner._initial.rows(self._index) if config.method == "shooting" else self.plan
        plans = self._with_kept(source.sample(config.plans_in(iteration), colour, planner._generator), last=last)
        plans = planner._limited(plans, self._last)
        score = planner._scorer(self._state, plans, planner._phase, planner._generator, self._deadline)
        score = score - self._roughness(plans)
        best = score.argmax(dim=0)
        if config.method == "mppi":
            spread = score.std(dim=0).clamp(min=1e-12)
            weights = ((score - score.amax(dim=0)) / (config.mppi_temperature * spread)).softmax(dim=0)
            refitted = self.plan.refit(plans, weights, momentum=0.0, smallest_std=0.0)
            self.plan = dataclasses.replace(refitted, std=self.plan.std)
        elif config.method != "shooting":
            elite = score.topk(min(config.num_elites, len(score)), dim=0).indices
            weights = torch.zeros_like(score).scatter_(0, elite, 1 / len(elite))
            self._elites = _gather(plans, elite)
            smallest = config.smallest_std * self._half_ranges()
            self.plan = self.plan.refit(plans, weights, momentum=config.momentum, smallest_std=smallest)
        self._choose(_gather(plans, best.unsqueeze(0))[0], score.amax(dim=0))

    def _choose(self, best: Tensor, score: Tensor) -> None:
        """Take the best plan so far, or the mean of the distribution, by the method."""
        if self._config.method in ("shooting", "icem"):
            better = score > self.score
            self.action = torch.where(better.unsqueeze(-1), best[:, 0], self.action)
            if self._config.method == "shooting":
                self.plan = dataclasses.replace(self.plan, mean=best)
        else:
            self.action = self._planner._next_actions(self.plan.mean, self._last)
        self.score = self.score.maximum(score)

    def _with_kept(self, plans: Tensor, *, last: bool) -> Tensor:
        """Replace the first samples: "shooting" keeps its last plan, "icem" a share of the elites, and at last the mean."""
        kept: list[Tensor] = []
        if self._config.method == "shooting" and self._last is not None:
            kept.append(self.plan.mean.unsqueeze(0))
        elif self._config.method == "icem":
            if self._elites is not None:
                kept.append(self._elites[: max(1, round(0.3 * len(self._elites)))])
            if last and not self._planner._columns.choices and not bool(self._planner._columns.bits.any()):
                kept.append(self.plan.mean.unsqueeze(0))
        return torch.cat([*kept, plans[sum(map(len, kept)) :]])

    def _roughness(self, plans: Tensor) -> Tensor | float:
        """Cost of the changes from action to action: (N, B)."""
        if self._config.smoothness == 0:
            return 0.0
        numbers = plans[..., self._planner._columns.box]
        if self._last is not None:
            first = self._last[:, self._planner._columns.box].expand(len(plans), -1, -1).unsqueeze(2)
            numbers = torch.cat([first, numbers], dim=2)
        return self._config.smoothness * numbers.diff(dim=2).square().sum(dim=(2, 3))

    def _half_ranges(self) -> Tensor:
        """Half the range of each number in features, which ``breadth`` and ``smallest_std`` are relative to: (A,)."""
        return self._planner._initial.std[0, 0] / self._config.breadth


def _rows_of(state: LatentState, index: Tensor) -> LatentState:
    if len(index) == len(state.z):
        return state
    return LatentState(state.z[index], State(*(part[:, index] for part in state.lstm)), state.alive[index])


def _gather(plans: Tensor, index: Tensor) -> Tensor:
    """Select plans (N, B, K, A) by an index (M, B): (M, B, K, A)."""
    return plans.gather(0, index[..., None, None].expand(*index.shape, *plans.shape[2:]))


def _function_name(argument: str, function: Any) -> str:
    name = reward_name(function)
    if isinstance(function, LatentReward):
        raise TypeError(f"{argument}: expected a function of observations to save, got a LatentReward of {name}")
    if "<" in name:
        raise TypeError(f"{argument}: expected a function of a module, which can be saved by its name, got {name}")
    return name
