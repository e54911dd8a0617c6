"""``worldmodel iterate``."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from typing_extensions import Self
from tyro.conf import OmitArgPrefixes as Flat

import worldmodel as wm
from worldmodel.agents import ControllerConfig, OpenAIESConfig
from worldmodel.cli.options import Command, EnvironmentOptions, Result, Run, given, write_json_file
from worldmodel.cli.plots import PlotOptions
from worldmodel.dream import format_spread
from worldmodel.experiments import LOOPS, Round, summarize

STAGES = ("collect", "train", "dream", "evaluate")


@dataclass(frozen=True, kw_only=True)
class Iterate(Command):
    """Run the loop of the paper: collect with the latest controller, train M, train a controller in its dreams, evaluate it.

    Args:
        env: Gymnasium id, or "module:Id-v0" of another package.
        out: output directory; the same command resumes an interrupted run.
        preset: use the numbers of an experiment as defaults; explicit options take precedence.
        target: mean real return at which to stop; None: run all rounds.
        seed: seed of the complete run.
        config: sizes and budgets of one round.
        environment: arguments of the environment.
        output: device, earlier runs and output.
        plots: picture of the rounds: OUT/report.png.
    """

    RESUME = "The same command, without --overwrite, resumes the run."

    env: str
    out: str
    preset: Literal["car-racing"] | None = None
    target: float | None = None
    seed: int = 0
    config: Annotated[wm.IterationConfig, tyro.conf.arg(name="")] = field(default_factory=wm.IterationConfig)
    environment: Flat[EnvironmentOptions] = field(default_factory=EnvironmentOptions)
    output: Flat[Run] = field(default_factory=Run)
    plots: Flat[PlotOptions] = field(default_factory=PlotOptions)

    @classmethod
    def translate(cls, words: Sequence[str]) -> list[str]:
        """Replace names of options without a prefix, which earlier versions had, by today's."""
        names = earlier_names()
        translated = []
        for word in super().translate(words):
            name, equals, value = word.partition("=")
            translated.append(names.get(name.replace("_", "-"), name) + equals + value if word.startswith("--") else word)
        return translated

    @classmethod
    def defaults(cls, words: Sequence[str]) -> Self | None:
        """Return the command with the numbers of ``--preset``; None for those of the class."""
        name = given(words, "--preset")
        if name is None:
            return None
        if name not in LOOPS:
            raise ValueError(f"--preset: expected {', '.join(sorted(LOOPS))}, got {name!r}")
        env = LOOPS[name].env
        options = EnvironmentOptions(
            max_steps=env.max_steps,
            env_kwargs=dict(env.kwargs),
            leave_out=env.leave_out,
            action_repeat=env.action_repeat,
        )
        return cls(env=str(env.env), out=tyro.MISSING, config=LOOPS[name].config, environment=options)

    def run(self) -> Result:
        """Run the loop."""
        began = time.monotonic()
        rounds = wm.iterate(
            self.environment.of(self.env),
            out=self.out,
            target=self.target,
            config=self.config,
            seed=self.seed,
            device=self.output.choose_device(threads=1),  # small matrices: a second thread gains little
            run=self.output.config(),
        )
        found = report(rounds, self.out, target=self.target, seed=self.seed, seconds=time.monotonic() - began)
        drawn = self.plots.draw(Path(self.out) / "report.png", "draw_loop", rounds, target=self.target)
        return replace(found, text="\n".join([found.text, *drawn]))


def earlier_names() -> dict[str, str]:
    """Return the option of today for each option name of earlier versions, which had no prefixes."""
    parts = (
        (wm.MDNRNNConfig, "", "mdnrnn", ()),
        (wm.DataConfig, "", "data-config", ()),
        (wm.TrainingConfig, "", "training-config", ("patience",)),
        (ControllerConfig, "", "controller", ("hidden_size",)),
        (ControllerConfig, "controller-", "controller", ("features", "bias", "ordered")),
        (wm.SearchConfig, "", "search", ("openai_es", "target")),
        (OpenAIESConfig, "es-", "search.openai-es", ()),
    )
    names = {}
    for config, prefix, group, left_out in parts:
        for one in dataclasses.fields(config):
            if one.name not in left_out:
                option = one.name.replace("_", "-")
                names[f"--{prefix}{option}"] = f"--{group}.{option}"
                names[f"--no-{prefix}{option}"] = f"--{group}.no-{option}"
    return names


def report(rounds: Sequence[Round], out: str | Path, *, target: float | None, seed: int, seconds: float) -> Result:
    """Write OUT/summary.json and describe the rounds."""
    summary = {"seed": seed, "seconds": seconds, **summarize(rounds, target=target)}
    path = Path(out) / "summary.json"
    write_json_file(str(path), summary)
    return Result(f"{_table(rounds, summary)}\nsummary      {path}", summary | {"summary": str(path)})


def _table(rounds: Sequence[Round], summary: dict[str, Any]) -> str:
    stages = "".join(f"{stage + ' s':>12}" for stage in STAGES)
    lines = [f"\n{'round':<6}{'dream score':>18}{'real score':>18}{'random':>18}{stages}"]
    for round_ in rounds:
        scores = [format_spread(scores.mean, scores.std) for scores in (round_.dream, round_.real, round_.random)]
        seconds = "".join(f"{round_.seconds[stage]:>12.1f}" for stage in STAGES)
        lines.append(f"{round_.number:<6}{scores[0]:>18}{scores[1]:>18}{scores[2]:>18}{seconds}")
    episodes, seconds = len(rounds[0].real.returns), summary["seconds"]
    lines += [
        f"mean +- standard deviation; real scores over {episodes} episodes; target {summary['target']}; {seconds:.0f} s in all",
        f"best round   {summary['best_round']}, by other episodes than those of the table",
        f"world model  {summary['world_model']}\ncontroller   {summary['controller']}",
    ]
    return "\n".join(lines)
