"""Iterative procedure of the paper: collect, train M, search a controller in dreams, evaluate it, and repeat with its data.

Round 1 collects with a random policy; each later round adds episodes of a controller, so that M learns the states that the
controller visits. Every round trains M on all data. For images it also trains V, in the first round or in all, and M learns
from encoded episodes. `RoundOptions` says what V, M and the controller keep from round to round. The loop ends when the real
score on validation episodes reaches the target, or has not improved for `IterationConfig.patience_rounds` rounds.

Each stage writes its result to ``out``, and a complete stage is not run again. So an interrupted loop resumes::

    out/iteration.json         the configuration
    out/round-1/data           a store of episodes
    out/round-1/vision         V, for images
    out/round-1/encoded-1      the episodes of round 1, encoded by the V of round 1
    out/round-1/world          a world model directory, with its training log
    out/round-1/search.safetensors   the state of the controller's search
    out/round-1/controller     a controller directory
    out/round-1/scores.json    real, dreamed and random returns, seconds per stage
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldmodel.agents import (
    CONTROLLER_FILE,
    PPO_FILE,
    SEARCH_FILE,
    LatentPolicy,
    copy_for_training,
    evolve,
    has_agent,
    load_agent,
    ppo,
)
from worldmodel.data import EnvConfig, EnvMaker, EpisodeStore, Runner, collect
from worldmodel.dream import Agent, DreamPrecision, Dreams, Reality, Scores, StartBank, score, time_limit
from worldmodel.evaluation import Evaluation, EvaluationConfig, evaluate
from worldmodel.experiments.early_checks import check_data, warn_unlearnt_rewards
from worldmodel.experiments.first_agent import first_agent
from worldmodel.experiments.iteration_config import SCORES, IterationConfig, Round, best_round, has_stalled
from worldmodel.models import VISION_FILE, WORLD_FILE, ConvVAE, MDNRNNConfig, Vision, WorldModel
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
from worldmodel.spaces import find_images
from worldmodel.training import REWARD_COMPONENTS, encode_store, fit, train_vae

ITERATION_FORMAT, SCORES_FORMAT, ITERATION_VERSION = "worldmodel.iteration", "worldmodel.scores", 1
ITERATION_FILE, SCORES_FILE = "iteration.json", "scores.json"
OUTPUTS = (ITERATION_FILE, "round-*", "report.png", "summary.json", ".*.tmp")  # the program's two files too

DREAM_PRECISION: DreamPrecision = "auto"  # of the short dreams of PPO

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
        train_agent: returns a round's agent in place of `evolve` or `ppo`: called with the world model (on ``device``), the
            agent of the round before, or of the best one with `RoundOptions.keep_best` (None in round 1), and a seed. The
            record of the run holds its name. The class of the agent must be registered; see
            `worldmodel.agents.register_agent`.
        run: whether a run in ``out`` is resumed or replaced, and how progress is shown. The stages are "round N: collect",
            "round N: train M", "round N: search" (or "round N: train agent") and "round N: evaluate".

    Returns:
        The rounds, in order.

    Raises:
        FileExistsError: if ``out`` holds something else, a run with other arguments, or one that ``run`` does not resume.
        TypeError: if ``train_agent`` returns no agent, or one whose class is not registered.
        ValueError: if its agent was not made for this world, or, before ``out`` is touched, if there is no such environment, or
            the options do not fit it.
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
            rounds.append(loop.round(len(rounds) + 1, rounds))
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
        spaces = runner.spaces()
    if config.rounds.noise.scale:
        config.rounds.noise.check(spaces["action_space"])
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

    def round(self, number: int, rounds: Sequence[Round]) -> Round:
        """Run the incomplete stages of a round, after the given ones."""
        before = None
        if rounds:
            before = best_round(rounds).number if self.config.rounds.keep_best else rounds[-1].number
        directory = self.out / f"round-{number}"
        if not (directory / SCORES_FILE).is_file():
            times = [time.monotonic()]
            self._collect(number, before)
            if number == 1 and self.train_agent is None and self.config.reward is None:
                check_data(self.out / "round-1" / "data", termination_head=self.config.mdnrnn.termination_head)
            times.append(time.monotonic())
            world = self._train(number)
            times.append(time.monotonic())
            controller = self._dream(number, world, before)
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

    def _collect(self, number: int, before: int | None) -> None:
        """Collect episodes with the first policy or, in later rounds, with the controller of round ``before``."""
        env, options = self.env, self.config.rounds
        policy: str | LatentPolicy = self.config.first_policy
        if before is None:
            env = replace(env, max_steps=min(filter(None, (options.first_max_steps, env.max_steps)), default=None))
        else:
            directory = self.out / f"round-{before}"
            policy = LatentPolicy(
                WorldModel.from_pretrained(directory / "world"),
                load_agent(directory / "controller"),
                exploration=self.config.exploration,
                noise=options.noise if options.noise.scale else None,
                description=f"controller of round {before}",
            )
        collect(
            env,
            out=self.out / f"round-{number}" / "data",
            num_episodes=self.config.first_episodes if number == 1 else self.config.controller_episodes,
            policy=policy,
            seed=derive_seed(self.seed, COLLECT_STREAM, number),
            run=self._within(number),
        )

    def _train(self, number: int) -> WorldModel:
        """Train M on the episodes of all rounds so far, for images also V."""
        path, options = self.out / f"round-{number}" / "world", self.config.rounds
        if (path / WORLD_FILE).is_file():
            return WorldModel.from_pretrained(path, device=self.device)
        vision = self._vision(number) if self._has_images(number) else None
        if vision is not None:
            self._encode(number, vision)
        continued = number > 1 and options.continue_m
        initial = WorldModel.from_pretrained(self.out / f"round-{number - 1}" / "world") if continued else None
        world = fit(
            self._stores(number),
            out=path,
            config=None if continued else self._mdnrnn,
            data_config=self.config.data_config,
            training_config=options.training if continued else self.config.training_config,
            vision=vision,
            initial=initial,
            seed=self.seed,
            device=self.device,
            run=self._within(number),
        )
        if number == 1 and options.improve and self.config.reward is None:
            warn_unlearnt_rewards(world, self._stores(number))
        return world

    @property
    def _mdnrnn(self) -> MDNRNNConfig:
        """M's configuration; one that later rounds continue gets a density for rewards that round 1 has not seen."""
        config = self.config.mdnrnn
        if not self.config.rounds.continue_m or config.reward_components is not None:
            return config
        return replace(config, reward_components=REWARD_COMPONENTS)

    def _has_images(self, number: int) -> bool:
        return bool(find_images(EpisodeStore.open(self.out / f"round-{number}" / "data").observation_space))

    def _vision(self, number: int) -> Vision:
        """Train V in round 1, and in later ones if it continues."""
        preset, options = self.config.vision, self.config.rounds
        trained = number if options.continue_v else 1
        path = self.out / f"round-{trained}" / "vision"
        if (path / VISION_FILE).is_file():
            return Vision.from_pretrained(path, device=self.device)
        initial = None if trained == 1 else ConvVAE.from_pretrained(self.out / f"round-{trained - 1}" / "vision")
        return train_vae(
            [self.out / f"round-{earlier}" / "data" for earlier in range(1, number + 1)],
            out=path,
            config=preset.config if initial is None else None,
            frame_config=preset.frames,
            training_config=preset.training if initial is None else options.vision_training,
            initial=initial,
            seed=self.seed,
            device=self.device,
            run=self._within(number),
        )

    def _encode(self, number: int, vision: Vision) -> None:
        """Encode what M learns from, except what an earlier round has encoded by the same V."""
        for earlier, store in enumerate(self._stores(number), start=1):
            data, precision = self.out / f"round-{earlier}" / "data", self.config.vision.training.precision
            encode_store(data, vision=vision, out=store, precision=precision, run=self._within(number))

    def _stores(self, number: int) -> list[Path]:
        """Return the stores that M of a round learns from, by round: of frames encoded by its V, or of the observations."""
        rounds = range(1, number + 1)
        if not self._has_images(number):
            return [self.out / f"round-{earlier}" / "data" for earlier in rounds]
        encoding = number if self.config.rounds.continue_v else None  # the round of the V
        return [self.out / f"round-{encoding or earlier}" / f"encoded-{earlier}" for earlier in rounds]

    def _dream(self, number: int, world: WorldModel, before: int | None) -> Agent:
        """Search or train the round's agent, in dreams only; ``before`` is the round of the agent that it may start from."""
        path = self.out / f"round-{number}" / "controller"
        if has_agent(path):
            return load_agent(path, device=self.device)
        files.discard_unfinished(path, marker=CONTROLLER_FILE)
        if self.train_agent is not None:
            controller = self._call(self.train_agent, number, world, before)
        elif self.config.rounds.improve:
            controller = self._improve(number, world, before)
        else:
            controller = self._search(number, world)
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

    def _improve(self, number: int, world: WorldModel, before: int | None) -> Agent:
        """Improve the agent of an earlier round, or one with random weights, by PPO in short dreams from real states."""
        options, seed = self.config.rounds, derive_seed(self.seed, AGENT_STREAM, number)
        preset = options.improvement
        agent = self._agent_of(before)
        if agent is None:
            agent = first_agent(world, self.config.controller, self._stores(number), seed).to(self.device)
        starts = StartBank.along(world, self._stores(number)[-options.start_rounds :], config=preset.starts, seed=seed)
        temperature, reward = self.config.temperature, self.config.reward
        improved: Agent = ppo(
            agent,  # type: ignore[arg-type]
            Dreams(world, preset.num_dreams, temperature=temperature, precision=DREAM_PRECISION, reward=reward),
            starts,
            config=preset.ppo,
            horizon=options.test_horizon or time_limit(self.env),
            seed=seed,
            log=self.out / f"round-{number}" / PPO_FILE,
            run=self._within(number),
        )
        return improved

    def _agent_of(self, number: int | None) -> Agent | None:
        return None if number is None else load_agent(self.out / f"round-{number}" / "controller", device=self.device)

    def _call(self, train_agent: AgentTrainer, number: int, world: WorldModel, before: int | None) -> Agent:
        stage = self._stage(number, "train agent")
        self.report(Progress(stage, 0, 1, "agent"))
        controller = train_agent(world, self._agent_of(before), derive_seed(self.seed, AGENT_STREAM, number))
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
