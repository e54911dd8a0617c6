"""The paper's iterative procedure: collect, train M, search a controller in the dream, look at reality, collect with it, again.

Round 1 collects with a random policy; each later round adds episodes of the latest controller, so that M learns what that
controller makes of the world. Every round trains M anew on all data. The loop ends when the real score on validation episodes
reaches the target, or has not improved for so many rounds.

Each stage leaves its result in ``out``, and a stage that is complete is not run again, so an interrupted loop goes on where it
stood::

    out/iteration.json         the configuration
    out/round-1/data           a store of episodes
    out/round-1/world          a world model directory, with its training log
    out/round-1/search.safetensors   the state of the controller's search, which goes on from there
    out/round-1/controller     a controller directory
    out/round-1/scores.json    real, dreamed and random returns, seconds per stage
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldmodel.agents import (
    CONTROLLER_FILE,
    SEARCH_FILE,
    ControllerConfig,
    LatentPolicy,
    SearchConfig,
    check_agent,
    evolve,
    has_agent,
    load_agent,
)
from worldmodel.data import EnvMaker, Runner, collect
from worldmodel.dream import Agent, Dreams, Reality, Scores, score, time_limit
from worldmodel.evaluation import Evaluation, evaluate
from worldmodel.experiments.iteration_config import SCORES, IterationConfig, Round, StageProgress, has_stalled
from worldmodel.models import WORLD_FILE, WorldModel
from worldmodel.rng import AGENT_STREAM, COLLECT_STREAM, VALIDATE_STREAM, derive_seed
from worldmodel.runtime import RunConfig, check_device, describe, files, jsonable, runs
from worldmodel.training import fit

ITERATION_FORMAT, SCORES_FORMAT, ITERATION_VERSION = "worldmodel.iteration", "worldmodel.scores", 1
ITERATION_FILE, SCORES_FILE = "iteration.json", "scores.json"
OUTPUTS = (ITERATION_FILE, "round-*", "report.png", "summary.json", ".*.tmp")  # the script's two files too


Listener = Callable[[StageProgress], None]
AgentTrainer = Callable[[WorldModel, Agent | None, int], Agent]  # world, the agent of the round before, seed


def iterate(
    env: str | EnvMaker,
    *,
    out: str | Path,
    target: float | None = None,
    config: IterationConfig | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    max_steps: int | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    train_agent: AgentTrainer | None = None,
    overwrite: bool = False,
    on_progress: Listener | None = None,
) -> list[Round]:
    """Run the loop until the mean real return reaches ``target``, stops improving, or the rounds are used up.

    Args:
        env: id or constructor of the environment.
        out: directory for everything; an interrupted loop with the same arguments goes on.
        target: mean real return at which to stop; None goes on.
        config: how much of everything.
        seed: seed of everything.
        device: where M and the dreams are.
        max_steps: truncates longer episodes.
        env_kwargs: arguments of the environment.
        train_agent: returns a round's agent in place of `evolve`: called with the world model (on ``device``), the agent of the
            round before (None in round 1) and a seed. The loop records its name. The class of the agent must be registered; see
            `worldmodel.agents.register_agent`.
        overwrite: start anew where ``out`` holds an earlier loop.
        on_progress: called often, in every stage.

    Returns:
        The rounds, in order.

    Raises:
        FileExistsError: if ``out`` holds something else, or a loop with other arguments.
        TypeError: if ``train_agent`` returns no agent, or one whose class is not registered.
        ValueError: if its agent was not made for this world, or, before ``out`` is touched, if there is no such environment.
    """
    config = config or IterationConfig()
    arguments = {"env": describe(env), "env_kwargs": jsonable(env_kwargs or {}), "target": target, "seed": seed}
    arguments |= {"max_steps": max_steps, "train_agent": describe(train_agent or evolve), "config": asdict(config)}
    limits = {"max_steps": max_steps, "env_kwargs": dict(env_kwargs or {})}
    _check(env, config, seed, limits, device)
    directory = _prepare(Path(out), jsonable(arguments), overwrite)
    loop = _Loop(
        env=env,
        out=directory,
        config=config,
        seed=seed,
        device=torch.device(device),
        limits=limits,
        train_agent=train_agent,
        on_progress=on_progress or (lambda progress: None),
    )
    rounds: list[Round] = []
    while len(rounds) < config.max_rounds and not has_stalled(rounds, config.patience_rounds):
        rounds.append(loop.round(len(rounds) + 1))
        if target is not None and rounds[-1].validation.mean >= target:
            break
    return rounds


def _check(env: str | EnvMaker, config: IterationConfig, seed: int, limits: dict[str, Any], device: str | torch.device) -> None:
    """Raise what the stages would, before an earlier loop is overwritten."""
    check_device(device)
    derived = derive_seed(seed, COLLECT_STREAM, 1)
    with contextlib.closing(Runner(env, config.first_policy, seed=derived, wrappers=(), **limits)) as runner:
        runner.spaces()


def _prepare(out: Path, arguments: dict[str, Any], overwrite: bool) -> Path:
    """Make the output directory, or check that the loop in it had the same arguments."""
    if (out / ITERATION_FILE).is_file() and not overwrite:
        earlier = files.read_json(out / ITERATION_FILE, format=ITERATION_FORMAT, version=ITERATION_VERSION)
        for name, value in json.loads(json.dumps(arguments)).items():
            if earlier.get(name) != value:
                expected, found = runs.difference(value, earlier.get(name))
                raise FileExistsError(
                    f"{out}: expected an earlier loop with {name} {expected}, got {found}; "
                    "choose another directory, or overwrite (--overwrite) to start anew"
                )
        return out
    files.prepare_directory(out, marker=ITERATION_FILE, format=ITERATION_FORMAT, overwrite=overwrite, replaces=OUTPUTS)
    files.write_json(out / ITERATION_FILE, arguments, format=ITERATION_FORMAT, version=ITERATION_VERSION)
    return out


@dataclass(frozen=True)
class _Loop:
    """One loop's arguments, and its stages; a stage whose result lies there is not run again."""

    env: str | EnvMaker
    out: Path
    config: IterationConfig
    seed: int
    device: torch.device
    limits: dict[str, Any]  # max_steps and env_kwargs
    train_agent: AgentTrainer | None
    on_progress: Listener

    def round(self, number: int) -> Round:
        """Run what is not yet complete of a round."""
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
        """Episodes of the first policy, then those of the controller before."""
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
            **self.limits,
            on_progress=lambda p: self._report(number, "collect", p.episodes, p.total, steps=p.steps),
        )

    def _train(self, number: int) -> WorldModel:
        """M, anew, on the episodes of all rounds so far."""
        path = self.out / f"round-{number}" / "world"
        if (path / WORLD_FILE).is_file():
            return WorldModel.from_pretrained(path, device=self.device)
        return fit(
            [self.out / f"round-{earlier}" / "data" for earlier in range(1, number + 1)],
            out=path,
            config=self.config.mdnrnn,
            seed=self.seed,
            device=self.device,
            data_config=self.config.data_config,
            training_config=self.config.training_config,
            resume=True,
            on_progress=lambda p: self._report(number, "train", p.update, p.num_updates, nll_per_dim=p.metrics["nll_per_dim"]),
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
        search = SearchConfig(
            generations=config.generations,
            population=config.population,
            sigma=config.sigma,
            method=config.method,
            openai_es=config.openai_es,
            patience=config.patience,
            test_dreams=config.test_dreams,
        )
        found: Agent = evolve(
            Dreams(world, config.population * config.rollouts, temperature=config.temperature),
            ControllerConfig(features=config.features, hidden_size=config.controller_hidden_size),
            config=search,
            horizon=time_limit(self.env, **self.limits),
            seed=self.seed,
            log=self.out / f"round-{number}" / SEARCH_FILE,
            run=RunConfig(
                progress=False,
                on_progress=lambda p: self._report(
                    number, "dream", p.done, p.total or p.done, best=p.metrics["best"], test=p.metrics["best_test"]
                ),
            ),
        )
        return found

    def _call(self, train_agent: AgentTrainer, number: int, world: WorldModel) -> Agent:
        before = None
        if number > 1:
            before = load_agent(self.out / f"round-{number - 1}" / "controller", device=self.device)
        self._report(number, "dream", 0, 1)
        controller = train_agent(world, before, derive_seed(self.seed, AGENT_STREAM, number))
        controller = check_agent(controller, world)
        self._report(number, "dream", 1, 1)
        return controller

    def _evaluate(self, number: int, world: WorldModel, controller: Agent) -> tuple[Scores, Evaluation]:
        """The controller on validation episodes; and on others in reality and in the dream. No data set holds any of them."""
        limit = time_limit(self.env, **self.limits)
        seed = derive_seed(self.seed, VALIDATE_STREAM)
        reality = Reality(world, self.env, self.config.validation_episodes, seed=seed, **self.limits)
        with contextlib.closing(reality):
            validation = score(reality, controller, horizon=limit, seed=seed)
        result = evaluate(
            controller,
            world,
            env=self.env,
            num_episodes=self.config.test_episodes,
            seed=self.seed,
            **self.limits,
            temperature=self.config.temperature,
            on_step=lambda done, alive: self._report(number, "evaluate", done, limit, alive=alive),
        )
        return validation, result

    def _report(self, number: int, stage: str, done: int, total: int, **facts: float) -> None:
        self.on_progress(StageProgress(number, stage, done, total, facts))
