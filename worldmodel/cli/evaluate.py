"""``worldmodel evaluate``."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import tyro
from typing_extensions import Self
from tyro.conf import OmitArgPrefixes as Flat

import worldmodel as wm
from worldmodel.agents import load_agent
from worldmodel.cli.options import (
    Command,
    DeviceOutput,
    DreamRules,
    EnvironmentOptions,
    Flag,
    PresetName,
    Result,
    check_free,
    write_json_file,
)
from worldmodel.cli.plots import PlotOptions
from worldmodel.cli.workers import pool
from worldmodel.evaluation import Evaluation, EvaluationConfig, Probe
from worldmodel.experiments import Preset
from worldmodel.runtime import WorkerConfig


@dataclass(frozen=True, kw_only=True)
class Evaluate(Command):
    """Score a controller in the real environment, in dreams, and against random play; or score fixed policies (--probe).

    Args:
        model: world model directory.
        env: Gymnasium id.
        preset: use the numbers of an experiment as defaults; explicit options take precedence.
        controller: controller directory.
        probe: score fixed policies instead: do dreams rank them as the real environment does?
        episodes: number of real episodes.
        workers: worker processes for the real episodes; 0: none.
        step_timeout: seconds after which a step counts as hanging and ends the evaluation with an error that names the episode;
            needs --workers; None: no limit.
        scheduler: address of a Dask scheduler, such as tcp://10.0.0.1:8786, whose workers play the episodes (extra: dask).
        num_dreams: number of dreams.
        temperature: of the dreams; several with --probe.
        out: JSON file to write, with each episode's return and length.
        overwrite: replace an existing file.
        seed: seed of the episodes, which differ from those of any collection, and of the dreams.
        kind: end, precision and rewards of dreams.
        environment: arguments of the environment.
        output: device and output.
        plots: picture next to --out, if that is given.
    """

    RESUME = "Nothing was written; the same command starts again."

    model: str
    env: str
    preset: PresetName | None = None
    controller: str | None = None
    probe: Flag = False
    episodes: int = 100
    workers: int = 0
    step_timeout: float | None = None
    scheduler: str | None = None
    num_dreams: int = 1024
    temperature: tuple[float, ...] = (1.0,)
    out: str | None = None
    overwrite: Flag = False
    seed: int = 0
    kind: Flat[DreamRules] = field(default_factory=DreamRules)
    environment: Flat[EnvironmentOptions] = field(default_factory=EnvironmentOptions)
    output: Flat[DeviceOutput] = field(default_factory=DeviceOutput)
    plots: Flat[PlotOptions] = field(default_factory=PlotOptions)

    @classmethod
    def of_preset(cls, preset: Preset) -> Self:
        """Return the command with the numbers of a preset."""
        return cls(
            model=tyro.MISSING,
            env=str(preset.env),
            kind=DreamRules(termination=preset.termination, precision=preset.dream_precision),
            environment=EnvironmentOptions(max_steps=preset.max_steps),
        )

    def run(self) -> Result:
        """Evaluate."""
        if self.out:
            check_free(self.out, overwrite=self.overwrite)
        world = wm.WorldModel.from_pretrained(self.model, device=self.output.choose_device())
        if self.out:
            Path(self.out).parent.mkdir(parents=True, exist_ok=True)  # fail now, not after playing
        found: Evaluation | Probe
        with pool(WorkerConfig(num_workers=self.workers, step_timeout=self.step_timeout), self.scheduler) as workers:
            found, content = (self.score_fixed_policies if self.probe else self.score_controller)(world, workers)
        text = str(found)
        if self.out:
            write_json_file(self.out, content)
            drawing = "draw_probe" if self.probe else "draw_evaluation"
            text += "\n".join(["", f"scores: {self.out}", *self.plots.draw(Path(self.out).with_suffix(".png"), drawing, found)])
        return Result(text, content)

    def score_controller(self, world: wm.WorldModel, workers: WorkerConfig) -> tuple[Evaluation, dict[str, Any]]:
        """Score ``--controller``; return its scores and the content of ``--out``."""
        if self.controller is None or len(self.temperature) != 1:
            raise ValueError("--controller, --temperature: expected a controller and one temperature, or --probe")
        agent = load_agent(self.controller, device=world.device)
        env = self.environment.of(self.env)
        evaluation = wm.evaluate(agent, world, env=env, config=self.config(), seed=self.seed, workers=workers)
        content = {name: getattr(evaluation, name).to_json() for name in ("real", "dream", "random")}
        return evaluation, {"temperature": self.temperature[0], "seed": self.seed, **content}

    def score_fixed_policies(self, world: wm.WorldModel, workers: WorkerConfig) -> tuple[Probe, dict[str, Any]]:
        """Score fixed policies; return their scores and the content of ``--out``."""
        found = wm.probe(
            world,
            env=self.environment.of(self.env),
            temperatures=self.temperature,
            config=self.config(),
            seed=self.seed,
            workers=workers,
        )
        return found, {"seed": self.seed, **found.to_json()}

    def config(self) -> EvaluationConfig:
        """Build the configuration that both kinds of scores share."""
        if not self.temperature:
            raise ValueError("--temperature: expected at least one number, got none")
        return EvaluationConfig(
            num_episodes=self.episodes,
            num_dreams=self.num_dreams,
            temperature=self.temperature[0],
            **asdict(self.kind),
        )
