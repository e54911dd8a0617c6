"""``worldmodel train-controller``."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import tyro
from typing_extensions import Self
from tyro.conf import OmitArgPrefixes as Flat

import worldmodel as wm
from worldmodel.agents import SEARCH_FILE, ControllerConfig, RealPopulation, load_agent
from worldmodel.cli.options import DreamKind, EnvironmentOptions, Result, SearchCommand, SearchRun, given
from worldmodel.cli.plots import Curve, PlotOptions
from worldmodel.cli.workers import pool
from worldmodel.dream import score, time_limit, usual_horizon
from worldmodel.evaluation import EvaluationConfig
from worldmodel.experiments import Preset
from worldmodel.runtime import Ranks, WorkerConfig

REAL_TESTS = 64  # real episodes in a test, unless --test-dreams says otherwise
SCORED_DREAMS = 1024
SEARCH = wm.SearchConfig(population=32, generations=50, patience=3, test_dreams=SCORED_DREAMS)


@dataclass(frozen=True, kw_only=True)
class TrainController(SearchCommand):
    """Search a controller by evolution, in dreams or in the real environment (--env), and write it as a directory.

    Args:
        env: Gymnasium id; search in this real environment instead of dreams.
        workers: worker processes for --env; 0: none; the result is the same.
        step_timeout: seconds after which a step of --env counts as hanging and ends the search with an error that names the
            episode; needs --workers; None: no limit.
        scheduler: address of a Dask scheduler, such as tcp://10.0.0.1:8786, whose workers play the episodes of --env (extra:
            dask).
        rollouts: dreams, or real episodes, per candidate.
        initial: directory of a controller to start from; its architecture is kept.
        horizon: longest episode, in steps; None: the limit of the environment.
        search: numbers of the search. The tests choose the best controller; the output then scores it on 1,024 other dreams,
            whatever --test-dreams is. With --env a test has 64 real episodes by default.
        controller: kind of controller.
        kind: end, precision and rewards of dreams.
        environment: arguments of the environment.
        output: device, earlier runs and output.
        plots: picture of the search: OUT.search.png.
    """

    env: str | None = None
    workers: int = 0
    step_timeout: float | None = None
    scheduler: str | None = None
    rollouts: int = 8
    initial: str | None = None
    horizon: int | None = None
    search: Flat[wm.SearchConfig] = SEARCH
    controller: Flat[ControllerConfig] = field(default_factory=ControllerConfig)
    kind: Flat[DreamKind] = field(default_factory=DreamKind)
    environment: Flat[EnvironmentOptions] = field(default_factory=EnvironmentOptions)
    output: Flat[SearchRun] = field(default_factory=SearchRun)
    plots: Flat[PlotOptions] = field(default_factory=PlotOptions)

    @classmethod
    def defaults(cls, words: Sequence[str]) -> Self | None:
        """Return the defaults: in the real environment, a test has fewer episodes."""
        chosen = super().defaults(words)
        if chosen is None and given(words, "--env") is not None:
            chosen = cls(model=tyro.MISSING, out=tyro.MISSING, search=replace(SEARCH, test_dreams=REAL_TESTS))
        return chosen

    @classmethod
    def of_preset(cls, preset: Preset) -> Self:
        """Return the command with the numbers of a preset."""
        return cls(
            model=tyro.MISSING,
            out=tyro.MISSING,
            rollouts=preset.rollouts,
            search=preset.search,
            controller=preset.controller,
            kind=DreamKind(termination=preset.termination, precision=preset.dream_precision),
        )

    def run(self) -> Result:
        """Search."""
        self.search.require_packages()
        device = self.output.choose_device()
        world = wm.WorldModel.from_pretrained(self.model, device=device)
        dreams = self.kind.dreams(world, self.search.population * self.rollouts, temperature=self.temperature)
        worlds: wm.Dreams | RealPopulation = dreams
        env = self.environment.of(self.env) if self.env else None
        horizon = self.horizon
        if horizon is None:
            horizon = usual_horizon(world) if env is None else time_limit(env)
        start = load_agent(self.initial, device=device) if self.initial else self.controller
        with contextlib.ExitStack() as stack:
            if env is not None:
                config = WorkerConfig(num_workers=self.workers, step_timeout=self.step_timeout)
                workers = stack.enter_context(pool(config, self.scheduler))
                worlds = RealPopulation(world, env, rollouts=self.rollouts, workers=workers, reward=self.kind.reward)
            if not Ranks.current().leads:
                wm.evolve(worlds, start, config=self.search, horizon=horizon, seed=self.seed)
                return Result("", {})
            stack.enter_context(self.output.writing(self.out))
            log = self.output.start(self.out, SEARCH_FILE)
            curve = Curve.beside(log, self.output)
            run = self.output.saving(self.out, curve)
            found = wm.evolve(worlds, start, config=self.search, horizon=horizon, seed=self.seed, log=log, run=run)
            found.save_pretrained(self.out, overwrite=True)
        result = self.report(found, world, dreams, horizon)
        drawn = self.plots.draw(log.with_suffix(".png"), "draw_search", curve.rows, unit="generation")
        return replace(result, text="\n".join([result.text, *drawn]))

    def report(self, found: wm.Controller, world: wm.WorldModel, dreams: wm.Dreams, horizon: int) -> Result:
        """Score the controller."""
        lines = [f"parameters    {found.num_parameters}"]
        data: dict[str, Any] = {"parameters": found.num_parameters}
        if self.env:
            tested, env = EvaluationConfig(num_episodes=REAL_TESTS, reward=self.kind.reward), self.environment.of(self.env)
            evaluation = wm.evaluate(found, world, env=env, config=tested, seed=self.seed)
            lines.append(str(evaluation))
            data |= {name: getattr(evaluation, name).to_json() for name in ("real", "dream", "random")}
        elif world.mdnrnn.reward_head is not None or self.kind.reward is not None:
            scores = score(dreams.variant(num_dreams=SCORED_DREAMS), found, horizon=horizon, seed=self.seed)
            lines.append(f"dream return  {scores} at temperature {self.temperature:g}")
            data["dream"] = scores.to_json()
        return Result("\n".join([*lines, f"controller: {self.out}"]), data | {"controller": self.out})
