"""Reproduce an experiment of the paper: data, V, M, probe, a controller for each temperature, tests, table.

Each stage writes its result to ``out``, and is not run again. So an interrupted experiment resumes, also within a stage::

    out/experiment.json          the preset and the seed
    out/episodes                 a store of random episodes
    out/vae                      V
    out/encoded                  the episodes, encoded by V
    out/world                    V and M
    out/probe.json               fixed policies in dream and reality, at each temperature
    out/temperature-1.15         the search, its log, the controller (after PPO, if the preset has it), its scores
    out/temperature-1.15-seed-1  the same with another seed, at the temperature that was best in reality
    out/stages.json              seconds and commits of each stage
    out/results.json, table.md   every episode's score, and the table
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from worldmodel.agents import (
    CONTROLLER_FILE,
    PPO_FILE,
    SEARCH_FILE,
    LatentPolicy,
    RealPopulation,
    evolve,
    has_agent,
    load_agent,
    ppo,
)
from worldmodel.data import EnvConfig, Episode, EpisodeCollection, Runner, collect, rollouts, split_episodes
from worldmodel.dream import Agent, Dreams, Scores, StartBank, score
from worldmodel.evaluation import EvaluationConfig, probe
from worldmodel.experiments.presets import ImprovementPreset, Preset
from worldmodel.experiments.results import TABLE_FILE, Stages, read_scores, table, write_scores
from worldmodel.models import Vision, WorldModel
from worldmodel.rng import DREAM_TEST_STREAM, EVALUATION_STREAM, VIDEO_STREAM, derive_seed
from worldmodel.runtime import Progress, RunConfig, WorkerConfig, describe, files, keeps_threads, locked, runs
from worldmodel.training import MetricsLog, encode_store, fit, train_vae

EXPERIMENT_FORMAT, EXPERIMENT_VERSION = "worldmodel.experiment", 1
EXPERIMENT_FILE, RESULTS_FILE = "experiment.json", "results.json"
ALL_ROWS = 2**31  # a search that resumes does not write the rows of its log again
OUTPUTS = (  # pictures and films are the program's
    *(EXPERIMENT_FILE, "episodes", "vae", "encoded", "world", "probe.json", "probe.txt", "temperature-*", "stages.json"),
    *(RESULTS_FILE, TABLE_FILE, "*.png", "*.mp4", ".*.tmp"),
)


@dataclass(frozen=True)
class Reproduction:
    """An experiment in a directory. `run` runs all stages; a stage can be called alone once the earlier ones are complete.

    Args:
        preset: every number of it.
        out: the directory.
        seed: of everything.
        device: where models, dreams and trainings are; "auto": an NVIDIA GPU if there is one, else the CPU.
        workers: worker processes for the real environment in collection, probe and tests; 0 plays in this process.
        episodes: an earlier collection of the same recipe in place of ``out/episodes``; missing episodes are added to it.
        action_names: of a Discrete action space, for the probe's table.
        commit: of this code, recorded with the seconds of each stage.
        run_config: whether a run in ``out`` is resumed or replaced, and how progress is shown. The stages are "collect",
            "train V", "encode", "train M", "probe", and, at each temperature, "search at 1", "PPO at 1", "test at 1".
    """

    preset: Preset
    out: Path
    seed: int = 0
    device: torch.device | str = "cpu"
    workers: int | WorkerConfig = 0
    episodes: Path | None = None
    action_names: tuple[str, ...] | None = None
    commit: str = "unknown"
    run_config: RunConfig = field(default_factory=RunConfig)

    @keeps_threads
    def run(self, *, about: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Run the stages that are not complete.

        Args:
            about: written into the results, such as the command.

        Returns:
            The content of ``results.json``.

        Raises:
            ValueError: if ``out`` holds an experiment with other numbers.
            FileExistsError: if it holds something else, or a run that is not to be resumed.
            KeyboardInterrupt: on Ctrl-C; the same call resumes.
        """
        numbers = self.preset.identity() | {"env": describe(self.preset.env), "seed": self.seed}
        about_run: dict[str, Any] = {"marker": EXPERIMENT_FILE, "format": EXPERIMENT_FORMAT, "version": EXPERIMENT_VERSION}
        with contextlib.closing(Runner(self.env, self.preset.policy, seed=self.seed)) as runner:
            runner.spaces()  # raise now if the environment cannot be made, before anything is written
        self.preset.search.require_packages()
        with locked(self.out, break_lock=self.run_config.break_lock):
            runs.prepare_run(self.out, numbers, **about_run, replaces=OUTPUTS, run=self.run_config)
            return self._run_stages(about or {})

    def _run_stages(self, about: Mapping[str, Any]) -> dict[str, Any]:
        for stage in (self.collect, self.train_vae, self.encode, self.train_mdnrnn, self.probe):
            stage()
        for temperature in self.preset.temperatures:
            self.search(temperature)
            self.test(temperature)
        for repeat in range(1, self.preset.searches):
            self.search(self.best_temperature(), repeat)
            self.test(self.best_temperature(), repeat)
        return self.write_results(about)

    @property
    def env(self) -> EnvConfig:
        """The real environment."""
        return EnvConfig(self.preset.env, max_steps=self.preset.max_steps)

    @property
    def data(self) -> Path:
        """Directory of the random episodes."""
        return self.episodes or self.out / "episodes"

    def collect(self) -> None:
        """Collect random episodes.

        Raises:
            ValueError: if an earlier collection has more than the experiment asks for.
        """
        preset = self.preset
        with self.stages.timed("collect"), self.run_config.reporter() as report:
            store = collect(
                self.env,
                out=self.data,
                num_episodes=preset.num_episodes,
                policy=preset.policy,
                seed=self.seed,
                workers=self.workers,
                run=self.run_config.within(report),
            )
        if len(store) > preset.num_episodes:
            raise ValueError(f"episodes: expected {preset.num_episodes} at most, got {len(store)} in {self.data}")

    def train_vae(self) -> Vision:
        """Train V."""
        vision = self.preset.vision
        with self.stages.timed("train V"), self.run_config.reporter() as report:
            return train_vae(
                self.data,
                out=self.out / "vae",
                config=vision.config,
                frame_config=vision.frames,
                training_config=vision.training,
                seed=self.seed,
                device=self.device,
                run=self.run_config.within(report),
            )

    def encode(self) -> None:
        """Encode each frame as mean and log-variance."""
        vision = Vision.from_pretrained(self.out / "vae", device=self.device)
        with self.stages.timed("encode"), self.run_config.reporter() as report:
            encode_store(
                self.data,
                vision=vision,
                out=self.out / "encoded",
                precision=self.preset.vision.training.precision,
                run=self.run_config.within(report),
            )

    def train_mdnrnn(self) -> WorldModel:
        """Train M on the encoded episodes."""
        dynamics = self.preset.dynamics
        with self.stages.timed("train M"), self.run_config.reporter() as report:
            return fit(
                self.out / "encoded",
                vision=Vision.from_pretrained(self.out / "vae"),
                out=self.out / "world",
                config=dynamics.mdnrnn,
                data_config=replace(dynamics.data, resident=True),  # 1.7 GB; read from disk, updates take 10 % longer
                training_config=dynamics.training,
                seed=self.seed,
                device=self.device,
                run=self.run_config.within(report),
            )

    def probe(self) -> None:
        """Compare the ranking of fixed policies in dreams with their ranking in the real environment."""
        path, preset = self.out / "probe.json", self.preset
        if path.is_file():
            return
        config = EvaluationConfig(
            num_episodes=preset.test_episodes,
            num_dreams=preset.probe_dreams,
            termination=preset.termination,
            precision=preset.dream_precision,
        )
        with self.stages.timed("probe"), self.run_config.reporter() as report:
            found = probe(
                self.world(),
                env=self.env,
                temperatures=preset.temperatures,
                config=config,
                names=self.action_names,
                seed=self.seed,
                workers=self.workers,
                run=self.run_config.within(report),
            )
        files.write_bytes(self.out / "probe.txt", f"{found}\n".encode())
        write_scores(path, found.to_json())

    def search(self, temperature: float, repeat: int = 0) -> Agent:
        """Search an agent in dreams at a temperature; each ``repeat`` has its own seed."""
        directory = self._directory(temperature, repeat) / "controller"
        if has_agent(directory):
            return self.controller(temperature, repeat)
        files.discard_unfinished(directory, marker=CONTROLLER_FILE)
        controller = self._evolve(temperature, repeat)
        if self.preset.improvement is not None:
            controller = self._improve(controller, self.preset.improvement, temperature, repeat)
        controller.save_pretrained(directory)
        return controller

    @cached_property
    def starts(self) -> StartBank:
        """Start states of the short dreams of PPO."""
        config = None if self.preset.improvement is None else self.preset.improvement.starts
        with self.stages.timed("starts"):
            return StartBank.along(self.world(), self.out / "encoded", config=config, seed=self.seed)

    def _evolve(self, temperature: float, repeat: int) -> Any:
        """Search by evolution, in complete dreams."""
        directory, stage = self._directory(temperature, repeat), self._stage(temperature, repeat)
        if has_agent(directory / "evolved"):
            return load_agent(directory / "evolved", device=self.device)
        files.discard_unfinished(directory / "evolved", marker=CONTROLLER_FILE)
        directory.mkdir(exist_ok=True)
        dreams = self._dreams(temperature, self.preset.rollouts * self.preset.search.population)
        done = ALL_ROWS if (directory / SEARCH_FILE).is_file() else 0
        with (
            self.stages.timed(f"search {stage}"),
            MetricsLog(directory, done) as log,
            self.run_config.reporter() as report,
        ):

            def on_generation(found: Progress) -> None:
                metrics = found.metrics
                tested = {"test/return": metrics["test"]} if "test" in metrics else {}
                log.write(found.done, {"train/return": metrics["mean"], "best": metrics["best"], **tested})
                report(found)

            controller = evolve(
                dreams,
                self.preset.controller,
                config=self.preset.search,
                horizon=self.preset.max_steps,
                seed=self._seed(repeat),
                log=directory / SEARCH_FILE,
                run=self.run_config.within(on_generation, f"search at {stage}"),
            )
        controller.save_pretrained(directory / "evolved")
        return controller

    def _improve(self, controller: Any, preset: ImprovementPreset, temperature: float, repeat: int) -> Any:
        """Improve by PPO, in short dreams from real states."""
        dreams, starts = self._dreams(temperature, preset.num_dreams), self.starts
        directory, stage = self._directory(temperature, repeat) / "ppo", self._stage(temperature, repeat)
        directory.mkdir(exist_ok=True)
        done = ALL_ROWS if (directory / PPO_FILE).is_file() else 0
        with self.stages.timed(f"PPO {stage}"), MetricsLog(directory, done) as log, self.run_config.reporter() as report:

            def on_iteration(found: Progress) -> None:
                metrics = found.metrics
                tested = {"test/return": metrics["test"]} if "test" in metrics else {}
                numbers = {"entropy": metrics["entropy"], "explained": metrics["explained"]}
                log.write(found.done, {"train/terminations_per_1000": metrics["ends"], **numbers, **tested})
                report(found)

            return ppo(
                controller,
                dreams,
                starts,
                config=preset.ppo,
                horizon=self.preset.max_steps,
                seed=self._seed(repeat),
                log=directory / PPO_FILE,
                run=self.run_config.within(on_iteration, f"PPO at {stage}"),
            )

    def test(self, temperature: float, repeat: int = 0) -> None:
        """Score a controller in dreams and in reality, on episodes of no training; each ``repeat`` has its own."""
        path, stage = self._directory(temperature, repeat) / "scores.json", self._stage(temperature, repeat)
        if path.is_file():
            return
        controller, seed = self.controller(temperature, repeat), self._seed(repeat)
        dreams = self._dreams(temperature, self.preset.test_dreams)
        with self.stages.timed(f"test {stage}"):
            dreamed = score(dreams, controller, horizon=self.preset.max_steps, seed=derive_seed(seed, DREAM_TEST_STREAM))
            real = self._score_in_reality(controller, seed, f"test at {stage}")
        found = {"temperature": temperature, "seed": seed, "dream": dreamed.to_json(), "real": real.to_json()}
        write_scores(path, found)

    def best_temperature(self) -> float:
        """Return the temperature whose first controller scored highest in reality; this does not bias its repeats."""
        return max(self.preset.temperatures, key=lambda tau: self._scores(tau)["real"]["mean"])

    def world(self) -> WorldModel:
        """Open the world model."""
        return WorldModel.from_pretrained(self.out / "world", device=self.device)

    def controller(self, temperature: float, repeat: int = 0) -> Agent:
        """Open the agent that was searched at a temperature."""
        return load_agent(self._directory(temperature, repeat) / "controller", device=self.device)

    def agent_episode(self, temperature: float) -> Episode:
        """Play one real episode with the controller, not one of the test episodes."""
        policy = LatentPolicy(self.world(), self.controller(temperature))
        seed = derive_seed(self.seed, VIDEO_STREAM)
        (result,) = rollouts(self.env, policy, episode_ids=[0], seed=seed)
        if not isinstance(result, Episode):
            raise RuntimeError(f"env: expected to play an episode (seed {result.seed}): {result.error}")
        return result

    def held_out_episodes(self, most: int) -> list[Episode]:
        """Return the first random episodes that were held out from V's training."""
        frames = self.preset.vision.frames
        episodes = EpisodeCollection.open(self.data, min_length=frames.min_length)
        _, held_out = split_episodes(len(episodes), test_fraction=frames.test_fraction, seed=self.seed)
        return [episodes.read(int(index)) for index in held_out[:most]]

    def write_results(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """Write ``results.json`` and ``table.md`` and return the former's content."""
        best, world = self.best_temperature(), self.world()
        vision = Vision.from_pretrained(self.out / "vae")
        probed = read_scores(self.out / "probe.json")
        content = {
            **about,
            "seed": self.seed,
            "episodes_seed": derive_seed(self.seed, EVALUATION_STREAM),
            "stages": self.stages.read(),
            "vision": _held_out(vision.provenance) | {"latents": vision.provenance["latents"]},
            "mdnrnn": _held_out(world.provenance),
            "calibration": world.provenance.get("calibration"),
            "random": probed["real"]["uniform"],
            "temperatures": [self._scores(temperature) for temperature in self.preset.temperatures],
            "best_temperature": best,
            "repeats": [self._scores(best, repeat) for repeat in range(1, self.preset.searches)],
            "probe": probed,
        }
        files.write_bytes(self.out / RESULTS_FILE, (json.dumps(content, indent=1) + "\n").encode())
        files.write_bytes(self.out / TABLE_FILE, table(content, self.preset).encode())
        return content

    @property
    def stages(self) -> Stages:
        """Seconds and commits of each stage."""
        return Stages(self.out, self.commit)

    def _stage(self, temperature: float, repeat: int) -> str:
        return f"{temperature:g}" + (f"-seed-{self._seed(repeat)}" if repeat else "")

    def _directory(self, temperature: float, repeat: int = 0) -> Path:
        return self.out / f"temperature-{self._stage(temperature, repeat)}"

    def _seed(self, repeat: int) -> int:
        return self.seed + repeat

    def _scores(self, temperature: float, repeat: int = 0) -> dict[str, Any]:
        return read_scores(self._directory(temperature, repeat) / "scores.json")

    def _dreams(self, temperature: float, num_dreams: int) -> Dreams:
        rules: dict[str, Any] = {"termination": self.preset.termination, "precision": self.preset.dream_precision}
        return Dreams(self.world(), num_dreams, temperature=temperature, **rules)

    def _score_in_reality(self, controller: Agent, seed: int, stage: str) -> Scores:
        """Play the test episodes, on the CPU."""
        reality = RealPopulation(self.world(), self.env, workers=self.workers)
        with self.run_config.reporter() as report:
            return reality.score(
                controller,
                episodes=self.preset.test_episodes,
                horizon=self.preset.max_steps,
                seed=derive_seed(seed, EVALUATION_STREAM),
                name=stage,
                on_progress=report,
            )


def _held_out(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return the best held-out metrics of a training."""
    return dict(provenance["training"]["best_metrics"])
