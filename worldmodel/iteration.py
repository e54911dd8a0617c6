"""The paper's iterative procedure: collect, train M, search a controller in the dream, look at reality, collect with it, again.

Round 1 collects with a random policy; each later round adds episodes of the latest controller, so that M learns what that
controller makes of the world. Every round trains M anew on all data. The loop ends when the
real score on validation episodes reaches the target.

Each stage leaves its result in ``out``, and a stage that is complete is not run again, so an interrupted loop goes on where it
stood::

    out/iteration.json         the configuration
    out/round-1/data           a store of episodes
    out/round-1/world          a world model directory, with its training log
    out/round-1/controller     a controller directory
    out/round-1/scores.json    real, dreamed and random returns, seconds per stage
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldmodel import checkpoint
from worldmodel.collect import collect
from worldmodel.controller import CONTROLLER_FILE, Controller, LatentPolicy
from worldmodel.dream import Dreams
from worldmodel.evaluation import Evaluation, Scores, evaluate, score, time_limit
from worldmodel.evolution import evolve
from worldmodel.fit import DataConfig, fit
from worldmodel.mdnrnn import MDNRNNConfig
from worldmodel.mixture import check_temperature
from worldmodel.policies import POLICIES
from worldmodel.reality import Reality
from worldmodel.rollouts import EnvMaker, derive_seed, describe, jsonable
from worldmodel.training import TrainingConfig
from worldmodel.world import WORLD_FILE, WorldModel

ITERATION_FORMAT, SCORES_FORMAT, ITERATION_VERSION = "worldmodel.iteration", "worldmodel.scores", 1
ITERATION_FILE, SCORES_FILE = "iteration.json", "scores.json"
OUTPUTS = (ITERATION_FILE, "round-*", "report.png", "summary.json", ".*.tmp")  # the script's two files too
SCORES = ("validation", "real", "dream", "random")
COLLECT_STREAM, VALIDATE_STREAM = 2, 3  # of seeds; evaluations have a stream of their own


@dataclass(frozen=True, kw_only=True)
class IterationConfig:
    """How much of everything a round takes.

    Args:
        max_rounds: rounds at most.
        first_policy: policy of round 1; "random", or "repeat" where single random actions get nowhere (as in Acrobot-v1).
        first_episodes: its episodes.
        controller_episodes: episodes of the latest controller, in each later round.
        mdnrnn: fields of `MDNRNNConfig`.
        data_config: windows and batches.
        training_config: how to train M.
        temperature: tau of the dreams in which the controller is searched.
        population: candidates of a generation.
        rollouts: dreams of each candidate.
        generations: generations at most.
        sigma: initial standard deviation of the controller's weights.
        patience: the search ends after so many tests in a row without an improvement of 1 %.
        test_dreams: dreams of each such test.
        validation_episodes: real episodes by which the loop decides whether to stop and which round was best.
        test_episodes: other real episodes, by which each round's score is reported.

    Raises:
        ValueError: naming the field that is out of range.
    """

    max_rounds: int = 5
    first_policy: str = "random"
    first_episodes: int = 1000
    controller_episodes: int = 100
    mdnrnn: Mapping[str, Any] = field(default_factory=lambda: {"hidden_size": 64})
    data_config: DataConfig = field(default_factory=DataConfig)
    training_config: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(num_updates=800, learning_rate=1e-2, clip_norm=10.0)
    )
    temperature: float = 1.0
    population: int = 24
    rollouts: int = 8
    generations: int = 30
    sigma: float = 0.1
    patience: int = 2
    test_dreams: int = 256
    validation_episodes: int = 30
    test_episodes: int = 100

    def __post_init__(self) -> None:
        """Check what the stages do not check themselves before their turn comes."""
        for spec in fields(self):
            value, least = getattr(self, spec.name), 2 if spec.name == "population" else 1
            if spec.type == "int" and (type(value) is not int or value < least):
                raise ValueError(f"{spec.name}: expected an integer >= {least}, got {value}")
        check_temperature(self.temperature)
        if not 0 < self.sigma < float("inf"):
            raise ValueError(f"sigma: expected a positive finite number, got {self.sigma}")
        MDNRNNConfig(latent_size=1, action_size=1, **self.mdnrnn)
        if self.first_policy not in POLICIES:
            raise ValueError(f"first_policy: expected one of {', '.join(POLICIES)}, got {self.first_policy!r}")


@dataclass(frozen=True)
class StageProgress:
    """Where the loop stands.

    Args:
        round: number of the round, from 1.
        stage: "collect", "train", "dream" or "evaluate".
        done: units of the stage done: episodes, updates, generations, steps.
        total: units of the stage.
        facts: numbers to show beside the bar.
    """

    round: int
    stage: str
    done: int
    total: int
    facts: dict[str, float]


@dataclass(frozen=True)
class Round:
    """What a round reached.

    Args:
        number: from 1.
        directory: where its data, world, controller and scores are.
        validation: the controller in the real environment, on the episodes that decide when to stop.
        real: the controller in the real environment, on episodes that decide nothing.
        dream: the controller in the dream.
        random: random play in the real environment.
        seconds: duration of each stage, in the run that completed the round.
    """

    number: int
    directory: Path
    validation: Scores
    real: Scores
    dream: Scores
    random: Scores
    seconds: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON-able data."""
        scores = {name: getattr(self, name).to_json() for name in SCORES}
        return {"number": self.number, **scores, "seconds": self.seconds}


Listener = Callable[[StageProgress], None]


def iterate(
    env: str | EnvMaker,
    *,
    out: str | Path,
    target: float | None = None,
    config: IterationConfig | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    env_kwargs: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    on_progress: Listener | None = None,
) -> list[Round]:
    """Run the loop until the mean real return reaches ``target`` or the rounds are used up.

    Args:
        env: id or constructor of the environment.
        out: directory for everything; an interrupted loop with the same arguments goes on.
        target: mean real return at which to stop; None runs all rounds.
        config: how much of everything.
        seed: seed of everything.
        device: where M and the dreams are.
        env_kwargs: arguments of the environment.
        overwrite: start anew where ``out`` holds an earlier loop.
        on_progress: called often, in every stage.

    Returns:
        The rounds, in order.

    Raises:
        FileExistsError: if ``out`` holds something else, or a loop with other arguments.
    """
    config = config or IterationConfig()
    arguments = {"env": describe(env), "env_kwargs": jsonable(env_kwargs or {}), "target": target, "seed": seed}
    directory = _prepare(Path(out), {**arguments, "config": asdict(config)}, overwrite)
    loop = _Loop(
        env,
        directory,
        config,
        target,
        seed,
        torch.device(device),
        dict(env_kwargs or {}),
        on_progress or (lambda progress: None),
    )
    rounds: list[Round] = []
    while len(rounds) < config.max_rounds and not (rounds and target is not None and rounds[-1].validation.mean >= target):
        rounds.append(loop.round(len(rounds) + 1))
    return rounds


def best_round(rounds: Sequence[Round]) -> Round:
    """The round with the best validation score, the earliest of equals; its ``real`` score is then no lucky one."""
    return max(rounds, key=lambda round_: round_.validation.mean)


def summarize(rounds: Sequence[Round], *, target: float | None = None) -> dict[str, Any]:
    """Say as JSON-able data what a loop reached: the best round's paths, whether the target was met, and every round's scores.

    Raises:
        ValueError: if there is no round.
    """
    if not rounds:
        raise ValueError("rounds: expected at least one, got none")
    best = best_round(rounds)
    return {
        "target": target,
        "reached": target is not None and best.real.mean >= target,
        "best_round": best.number,
        "world_model": str(best.directory / "world"),
        "controller": str(best.directory / "controller"),
        "rounds": [round_.to_json() for round_ in rounds],
    }


def _prepare(out: Path, arguments: dict[str, Any], overwrite: bool) -> Path:
    """Make the output directory, or check that the loop in it had the same arguments."""
    if (out / ITERATION_FILE).is_file() and not overwrite:
        earlier = checkpoint.read_json(out / ITERATION_FILE, format=ITERATION_FORMAT, version=ITERATION_VERSION)
        for name, value in json.loads(json.dumps(arguments)).items():
            if earlier.get(name) != value:
                raise FileExistsError(
                    f"{out}: expected an earlier loop with {name} {value}, got {earlier.get(name)}; "
                    "choose another directory, or overwrite (--overwrite) to start anew"
                )
        return out
    checkpoint.prepare_directory(out, marker=ITERATION_FILE, format=ITERATION_FORMAT, overwrite=overwrite, replaces=OUTPUTS)
    checkpoint.write_json(out / ITERATION_FILE, arguments, format=ITERATION_FORMAT, version=ITERATION_VERSION)
    return out


@dataclass(frozen=True)
class _Loop:
    """One loop's arguments, and its stages; a stage whose result lies there is not run again."""

    env: str | EnvMaker
    out: Path
    config: IterationConfig
    target: float | None
    seed: int
    device: torch.device
    env_kwargs: dict[str, Any]
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
            controller = self._search(number, world)
            times.append(time.monotonic())
            validation, result = self._evaluate(number, world, controller)
            times.append(time.monotonic())
            content = {"validation": validation.to_json()}
            content |= {name: getattr(result, name).to_json() for name in ("real", "dream", "random")}
            seconds = dict(zip(("collect", "train", "dream", "evaluate"), np.diff(times).tolist(), strict=True))
            checkpoint.write_json(
                directory / SCORES_FILE, {**content, "seconds": seconds}, format=SCORES_FORMAT, version=ITERATION_VERSION
            )
        content = checkpoint.read_json(directory / SCORES_FILE, format=SCORES_FORMAT, version=ITERATION_VERSION)
        scores = {name: Scores.from_json(content[name]) for name in SCORES}
        return Round(number=number, directory=directory, seconds=content["seconds"], **scores)

    def _collect(self, number: int) -> None:
        """Episodes of the first policy, then those of the controller before."""
        before = self.out / f"round-{number - 1}"
        policy: str | LatentPolicy = self.config.first_policy
        if number > 1:
            world = WorldModel.from_pretrained(before / "world")
            controller = Controller.from_pretrained(before / "controller")
            policy = LatentPolicy(world, controller, description=f"controller of round {number - 1}")
        collect(
            self.env,
            out=self.out / f"round-{number}" / "data",
            num_episodes=self.config.first_episodes if number == 1 else self.config.controller_episodes,
            policy=policy,
            seed=derive_seed(self.seed, COLLECT_STREAM, number),
            env_kwargs=self.env_kwargs,
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
            seed=self.seed,
            device=self.device,
            data_config=self.config.data_config,
            training_config=self.config.training_config,
            resume=True,
            on_progress=lambda p: self._report(number, "train", p.update, p.num_updates, nll_per_dim=p.metrics["nll_per_dim"]),
            **self.config.mdnrnn,
        )

    def _search(self, number: int, world: WorldModel) -> Controller:
        """A controller, in dreams only."""
        path = self.out / f"round-{number}" / "controller"
        if (path / CONTROLLER_FILE).is_file():
            return Controller.from_pretrained(path, device=self.device)
        if path.is_dir():  # a search that was killed while it wrote
            shutil.rmtree(path)
        config = self.config
        controller = evolve(
            Dreams(world, config.population * config.rollouts, temperature=config.temperature),
            generations=config.generations,
            population=config.population,
            horizon=time_limit(self.env, env_kwargs=self.env_kwargs),
            sigma=config.sigma,
            patience=config.patience,
            test_dreams=config.test_dreams,
            seed=self.seed,
            on_generation=lambda g: self._report(number, "dream", g.number, g.total, best=g.best, test=g.best_test),
        )
        controller.save_pretrained(path)
        return controller

    def _evaluate(self, number: int, world: WorldModel, controller: Controller) -> tuple[Scores, Evaluation]:
        """The controller on validation episodes; and on others in reality and in the dream. No data set holds any of them."""
        limit = time_limit(self.env, env_kwargs=self.env_kwargs)
        seed = derive_seed(self.seed, VALIDATE_STREAM)
        reality = Reality(world, self.env, self.config.validation_episodes, seed=seed, env_kwargs=self.env_kwargs)
        with contextlib.closing(reality):
            validation = score(reality, controller, horizon=limit, seed=seed)
        result = evaluate(
            controller,
            world,
            env=self.env,
            num_episodes=self.config.test_episodes,
            seed=self.seed,
            env_kwargs=self.env_kwargs,
            temperature=self.config.temperature,
            on_step=lambda done, alive: self._report(number, "evaluate", done, limit, alive=alive),
        )
        return validation, result

    def _report(self, number: int, stage: str, done: int, total: int, **facts: float) -> None:
        self.on_progress(StageProgress(number, stage, done, total, facts))
