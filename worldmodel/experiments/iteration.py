"""Iterative procedure of the paper: collect, train M, search a controller in dreams, evaluate it, and repeat with its data.

Round 1 collects with a random policy; each later round adds episodes of the latest controller, so that M learns the states
that the controller visits. Every round trains M from scratch on all data. The loop ends when the real score on validation
episodes reaches the target, or has not improved for `IterationConfig.patience_rounds` rounds.

Each stage writes its result to ``out``, and a complete stage is not run again. So an interrupted loop resumes::

    out/iteration.json         the configuration
    out/round-1/data           a store of episodes
    out/round-1/world          a world model directory, with its training log
    out/round-1/search.safetensors   the state of the controller's search
    out/round-1/controller     a controller directory
    out/round-1/scores.json    real, dreamed and random returns, seconds per stage
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldmodel.agents import (
    CONTROLLER_FILE,
    SEARCH_FILE,
    LatentPolicy,
    copy_for_training,
    evolve,
    has_agent,
    load_agent,
)
from worldmodel.data import EnvConfig, EnvMaker, Runner, collect
from worldmodel.dream import Agent, Dreams, Reality, Scores, score, time_limit
from worldmodel.evaluation import Evaluation, EvaluationConfig, evaluate
from worldmodel.experiments.iteration_config import SCORES, IterationConfig, Round, has_stalled
from worldmodel.models import WORLD_FILE, WorldModel
from worldmodel.rng import AGENT_STREAM, COLLECT_STREAM, VALIDATE_STREAM, derive_seed
from worldmodel.runtime import (
    Listener,
    Progress,
    RunConfig,
    check_integer,
    choose_device,
    describe,
    explains_keywords,
    files,
    jsonable,
    keeps_threads,
    runs,
    single_writer,
)
from worldmodel.training import fit

ITERATION_FORMAT, SCORES_FORMAT, ITERATION_VERSION = "worldmodel.iteration", "worldmodel.scores", 1
ITERATION_FILE, SCORES_FILE = "iteration.json", "scores.json"
OUTPUTS = (ITERATION_FILE, "round-*", "report.png", "summary.json", ".*.tmp")  # the program's two files too

AgentTrainer = Callable[[WorldModel, Agent | None, int], Agent]  # world, the agent of the round before, seed


@explains_keywords
@keeps_threads
@single_writer()
def iterate(
    env: str | EnvMaker | EnvConfig,
    *,
    out: str | Path,
    target: float | None = None,
    config: IterationConfig | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    train_agent: AgentTrainer | None = None,
    run: RunConfig | None = None,
) -> list[Round]:
    """Run the loop until the mean real return reaches ``target``, stops improving, or the rounds are used up.

    Args:
        env: id, constructor, or `EnvConfig` of the environment.
        out: directory for everything.
        target: mean real return at which to stop; None never stops early.
        config: sizes and budgets of a round.
        seed: seed of everything.
        device: where M and the dreams are; "auto": an NVIDIA GPU if there is one, else the CPU.
        train_agent: returns a round's agent in place of `evolve`: called with the world model (on ``device``), the agent of the
            round before (None in round 1) and a seed. The record of the run holds its name. The class of the agent must be
            registered; see `worldmodel.agents.register_agent`.
        run: whether a run in ``out`` is resumed or replaced, and how progress is shown. The stages are "round N: collect",
            "round N: train M", "round N: search" (or "round N: train agent") and "round N: evaluate".

    Returns:
        The rounds, in order.

    Raises:
        FileExistsError: if ``out`` holds something else, a run with other arguments, or one that ``run`` does not resume.
        TypeError: if ``train_agent`` returns no agent, or one whose class is not registered.
        ValueError: if its agent was not made for this world, or, before ``out`` is touched, if there is no such environment.
    """
    config, run, environment = config or IterationConfig(), run or RunConfig(), EnvConfig.of(env)
    seed = check_integer(seed, "seed", least=0)
    device = choose_device(device)
    _check(environment, config, seed)
    about: dict[str, Any] = {"marker": ITERATION_FILE, "format": ITERATION_FORMAT, "version": ITERATION_VERSION}
    arguments = _arguments(environment, config, target, seed, train_agent)
    directory = runs.prepare_run(out, arguments, **about, replaces=OUTPUTS, run=run, error=FileExistsError)
    rounds: list[Round] = []
    with run.reporter() as report:
        loop = _Loop(environment, directory, config, seed, device, train_agent, run, report)
        while len(rounds) < config.max_rounds and not has_stalled(rounds, config.patience_rounds):
            rounds.append(loop.round(len(rounds) + 1))
            if target is not None and rounds[-1].validation.mean >= target:
                break
    return rounds


def _arguments(
    env: EnvConfig, config: IterationConfig, target: float | None, seed: int, train_agent: AgentTrainer | None
) -> dict[str, Any]:
    """Record of the arguments that a resumed run must share with the one it continues."""
    recipe = env.recipe()
    if not recipe["wrappers"]:
        del recipe["wrappers"]  # so that runs that were started before there were wrappers can be resumed
    trainer = describe(train_agent or evolve)
    return jsonable({**recipe, "target": target, "seed": seed, "train_agent": trainer, "config": config.identity()})


def _check(env: EnvConfig, config: IterationConfig, seed: int) -> None:
    """Raise the errors of the stages now, before an earlier run is overwritten."""
    with contextlib.closing(Runner(env, config.first_policy, seed=derive_seed(seed, COLLECT_STREAM, 1))) as runner:
        runner.spaces()
    config.search.require_packages()


@dataclass(frozen=True)
class _Loop:
    """Arguments and stages of one run; a stage whose result is complete is not run again."""

    env: EnvConfig
    out: Path
    config: IterationConfig
    seed: int
    device: torch.device
    train_agent: AgentTrainer | None
    run: RunConfig
    report: Listener

    def round(self, number: int) -> Round:
        """Run the incomplete stages of a round."""
        directory = self.out / f"round-{number}"
        if not (directory / SCORES_FILE).is_file():
            times = [time.monotonic()]
            self._collect(number)
            times.append(time.monotonic())
            world = self._train(number)
            times.append(time.monotonic())
            controller = self._dream(number, world)
            times.append(time.monotonic())
            validation, result = self._evaluate(number, world, controller)
            times.append(time.monotonic())
            content = {"validation": validation.to_json()}
            content |= {name: getattr(result, name).to_json() for name in ("real", "dream", "random")}
            seconds = dict(zip(("collect", "train", "dream", "evaluate"), np.diff(times).tolist(), strict=True))
            files.write_json(
                directory / SCORES_FILE, {**content, "seconds": seconds}, format=SCORES_FORMAT, version=ITERATION_VERSION
            )
        content = files.read_json(directory / SCORES_FILE, format=SCORES_FORMAT, version=ITERATION_VERSION)
        scores = {name: Scores.from_json(content[name]) for name in SCORES}
        return Round(number=number, directory=directory, seconds=content["seconds"], **scores)

    def _collect(self, number: int) -> None:
        """Collect episodes with the first policy or, in later rounds, with the latest controller."""
        before = self.out / f"round-{number - 1}"
        policy: str | LatentPolicy = self.config.first_policy
        if number > 1:
            world = WorldModel.from_pretrained(before / "world")
            controller = load_agent(before / "controller")
            name = f"controller of round {number - 1}"
            policy = LatentPolicy(world, controller, exploration=self.config.exploration, description=name)
        collect(
            self.env,
            out=self.out / f"round-{number}" / "data",
            num_episodes=self.config.first_episodes if number == 1 else self.config.controller_episodes,
            policy=policy,
            seed=derive_seed(self.seed, COLLECT_STREAM, number),
            run=self._within(number),
        )

    def _train(self, number: int) -> WorldModel:
        """Train M from scratch on the episodes of all rounds so far."""
        path = self.out / f"round-{number}" / "world"
        if (path / WORLD_FILE).is_file():
            return WorldModel.from_pretrained(path, device=self.device)
        return fit(
            [self.out / f"round-{earlier}" / "data" for earlier in range(1, number + 1)],
            out=path,
            config=self.config.mdnrnn,
            data_config=self.config.data_config,
            training_config=self.config.training_config,
            seed=self.seed,
            device=self.device,
            run=self._within(number),
        )

    def _dream(self, number: int, world: WorldModel) -> Agent:
        """Search or train the round's agent, in dreams only."""
        path = self.out / f"round-{number}" / "controller"
        if has_agent(path):
            return load_agent(path, device=self.device)
        files.discard_unfinished(path, marker=CONTROLLER_FILE)
        controller = self._search(number, world) if self.train_agent is None else self._call(self.train_agent, number, world)
        controller.save_pretrained(path)
        if not has_agent(path):
            raise TypeError(
                f"train_agent: expected an agent that load_agent opens again, got {type(controller).__name__}; register its "
                "class (worldmodel.agents.register_agent)"
            )
        return controller

    def _search(self, number: int, world: WorldModel) -> Agent:
        config = self.config
        found: Agent = evolve(
            Dreams(world, config.search.population * config.rollouts, temperature=config.temperature, reward=config.reward),
            config.controller,
            config=config.search,
            horizon=time_limit(self.env),
            seed=self.seed,
            log=self.out / f"round-{number}" / SEARCH_FILE,
            run=self._within(number),
        )
        return found

    def _call(self, train_agent: AgentTrainer, number: int, world: WorldModel) -> Agent:
        before = None
        if number > 1:
            before = load_agent(self.out / f"round-{number - 1}" / "controller", device=self.device)
        stage = self._stage(number, "train agent")
        self.report(Progress(stage, 0, 1, "agent"))
        controller = train_agent(world, before, derive_seed(self.seed, AGENT_STREAM, number))
        controller = copy_for_training(controller, world)  # it belongs to this world, also if it started as the one before
        self.report(Progress(stage, 1, 1, "agent"))
        return controller

    def _evaluate(self, number: int, world: WorldModel, controller: Agent) -> tuple[Scores, Evaluation]:
        """Score the controller on validation episodes, and on others in reality and in dreams; no store holds any of them."""
        seed = derive_seed(self.seed, VALIDATE_STREAM)
        reality = Reality(world, self.env, self.config.validation_episodes, seed=seed, reward=self.config.reward)
        with contextlib.closing(reality):
            validation = score(reality, controller, horizon=time_limit(self.env), seed=seed)
        config = EvaluationConfig(
            num_episodes=self.config.test_episodes, temperature=self.config.temperature, reward=self.config.reward
        )
        run = self._within(number)
        return validation, evaluate(controller, world, env=self.env, config=config, seed=self.seed, run=run)

    def _within(self, number: int) -> RunConfig:
        return self.run.within(self.report, self._stage(number, "{}"))

    def _stage(self, number: int, name: str) -> str:
        return f"round {number}: {name}"
