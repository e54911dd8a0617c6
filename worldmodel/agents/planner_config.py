"""Configuration of `Planner`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from worldmodel.dream import MemberPer
from worldmodel.runtime import check_integers, check_numbers

PlanMethod = Literal["shooting", "cem", "icem", "mppi"]
PLAN_METHODS: tuple[PlanMethod, ...] = ("shooting", "cem", "icem", "mppi")


@dataclass(frozen=True, kw_only=True)
class PlannerConfig:
    """How a `Planner` searches.

    Args:
        method: "shooting" takes the best of random plans; "cem" refits a distribution to the best plans (Rubinstein 1999);
            "icem" adds coloured noise, keeps plans from one iteration and decision to the next and takes the best plan (Pinneri
            et al. 2020); "mppi" weights all plans by the exponential of their score (Williams et al. 2017).
        horizon: steps that a plan is dreamed for.
        hold: steps that each action of a plan is held for in dreams; a new action is still chosen at every real step.
        candidates: plans in the first iteration, for each episode; "icem" needs fewer in later ones.
        iterations: rounds of sampling and refitting; "shooting" makes one.
        elites: share of the plans that "cem" and "icem" refit to.
        particles: dreams of each plan, which sample M's mixture.
        temperature: tau >= 0 of the dreams; 0 follows the mode of each mixture, for which one particle is enough.
        cvar: the score of a plan is the mean of this share of its worst particles; 1 is the mean of all.
        discount: discount of rewards, per step.
        breadth: standard deviation of actions before the first iteration, relative to half the range of each number.
        smallest_std: lower bound of the standard deviation, in units of half the range.
        momentum: share of the old distribution after a refit, in [0, 1).
        colour: exponent beta of the power of the noise of "icem" and "mppi"; see `worldmodel.agents.plan_distribution`.
        mppi_temperature: temperature of the weights of "mppi", relative to the standard deviation of the scores.
        member_per: which member of an ensemble a dream follows; see `worldmodel.dream.Dreams`. Particles follow several.
        penalty: weight of the penalty for where the members of an ensemble disagree, see `worldmodel.dream.Penalty`.
        smoothness: cost of the squared change of an action from one step to the next, in features, summed over Box numbers.
        time_budget: seconds for a decision. Searching stops before it is exceeded; if no iteration is complete by then, the
            action is that of the last plan. None: no limit.

    Raises:
        ValueError: naming the field that is out of range.
        TypeError: naming the field of another type.
    """

    method: PlanMethod = "icem"
    horizon: int = 20
    hold: int = 1
    candidates: int = 256
    iterations: int = 3
    elites: float = 0.1
    particles: int = 1
    temperature: float = 1.0
    cvar: float = 1.0
    discount: float = 1.0
    breadth: float = 0.7
    smallest_std: float = 0.05
    momentum: float = 0.1
    colour: float = 2.0
    mppi_temperature: float = 0.3
    member_per: MemberPer = "dream"
    penalty: float = 0.0
    smoothness: float = 0.0
    time_budget: float | None = None

    def __post_init__(self) -> None:
        """Check every field."""
        if self.method not in PLAN_METHODS:
            raise ValueError(f"method: expected one of {', '.join(PLAN_METHODS)}, got {self.method!r}")
        check_integers(self, {"horizon": 1, "hold": 1, "candidates": 2, "iterations": 1, "particles": 1})
        positive = dict.fromkeys(("breadth", "mppi_temperature"), "(0, inf)")
        shares = dict.fromkeys(("elites", "cvar", "discount"), "(0, 1]")
        nonnegative = dict.fromkeys(("temperature", "smallest_std", "colour", "smoothness", "penalty"), "[0, inf)")
        check_numbers(self, {**positive, **shares, **nonnegative, "momentum": "[0, 1)"})
        check_numbers(self, {"time_budget": "(0, inf)"}, optional=("time_budget",))

    @property
    def num_elites(self) -> int:
        """Number of plans that a distribution is refitted to, at least two."""
        return max(2, round(self.elites * self.candidates))

    @property
    def actions(self) -> int:
        """Number of actions in a plan, K: enough for the horizon if the first is held for one more step only."""
        return -(-(self.horizon - 1) // self.hold) + 1

    def plans_in(self, iteration: int) -> int:
        """Return the number of plans that an iteration samples."""
        shrunk = int(self.candidates * 1.25**-iteration) if self.method == "icem" else self.candidates
        return max(shrunk, min(self.candidates, 2 * self.num_elites))
