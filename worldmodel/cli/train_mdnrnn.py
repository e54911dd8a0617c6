"""``worldmodel train-mdnrnn``."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import tyro
from typing_extensions import Self
from tyro.conf import OmitArgPrefixes as Flat

import worldmodel as wm
from worldmodel.cli.options import Result, TrainingCommand, TrainingRun
from worldmodel.cli.plots import PlotOptions
from worldmodel.experiments import Preset
from worldmodel.mixtures import LIKELIHOODS
from worldmodel.models import Vision, members_of
from worldmodel.runtime import keep_freed_memory


@dataclass(frozen=True, kw_only=True)
class TrainMdnrnn(TrainingCommand):
    """Train M on one or several stores of episodes, also V if it is not a VAE, and write a world model directory.

    Args:
        vision: directory written by worldmodel train-vae; required for images.
        test_data: directories of episodes to test on, which are not trained on; none: a part of DATA.
        ensemble: number of models, trained on bootstrap samples of the episodes; their disagreement shows what M does not know.
        mdnrnn: architecture and loss of M.
        windows: windows and batches.
        training: updates and learning rate.
        output: device, earlier runs and output.
        plots: pictures: OUT/training/curves.png and components.png; of an ensemble also uncertainty.png.
    """

    vision: str | None = None
    test_data: tuple[str, ...] = ()
    ensemble: int | None = None
    mdnrnn: Flat[wm.MDNRNNConfig] = field(default_factory=wm.MDNRNNConfig)
    windows: Flat[wm.DataConfig] = field(default_factory=wm.DataConfig)
    training: Flat[wm.TrainingConfig] = field(default_factory=wm.TrainingConfig)
    output: Flat[TrainingRun] = field(default_factory=TrainingRun)
    plots: Flat[PlotOptions] = field(default_factory=PlotOptions)

    @classmethod
    def of_preset(cls, preset: Preset) -> Self:
        """Return the command with the numbers of a preset."""
        dynamics = preset.dynamics
        return cls(
            data=tyro.MISSING, out=tyro.MISSING, mdnrnn=dynamics.mdnrnn, windows=dynamics.data, training=dynamics.training
        )

    def run(self) -> Result:
        """Train M."""
        keep_freed_memory()
        device = self.output.choose_device()
        initial = wm.WorldModel.from_pretrained(self.initial, device=device) if self.initial else None
        world = wm.fit(
            self.data,
            out=self.out,
            config=None if initial else self.mdnrnn,
            data_config=self.windows,
            training_config=self.training,
            vision=Vision.from_pretrained(self.vision) if self.vision else None,
            initial=initial,
            test_data=self.test_data or None,
            ensemble=self.ensemble,
            seed=self.seed,
            device=device,
            run=self.output.config(),
        )
        found = report(world, self.out)
        return replace(found, text="\n".join([found.text, *self.draw(world)]))

    def draw(self, world: wm.WorldModel) -> list[str]:
        """Draw the training and the components; return lines of output."""
        folder, lines = Path(self.out) / "training", []
        members = len(members_of(world.mdnrnn))
        for each in [folder] if members == 1 else [folder / f"member-{number}" for number in range(1, members + 1)]:
            lines += self.plots.draw(each / "curves.png", "draw_training_run", each)
        lines += self.plots.draw(folder / "components.png", "draw_components", world)
        return (
            lines if members == 1 else [*lines, *self.plots.draw(folder / "uncertainty.png", "draw_dream_uncertainty", world)]
        )


def report(world: wm.WorldModel, out: str) -> Result:
    """Describe held-out losses, baselines and calibration."""
    training, baselines = world.provenance["training"], world.provenance["baselines"]
    calibration, floors = world.provenance.get("calibration") or {}, world.provenance.get("entropy_floor", {})
    lines = ["layout of z", *(f"  {line}" for line in str(world.layout).splitlines())]
    for metric, unit in LIKELIHOODS.items():
        rows = {"this model": training["best_metrics"].get(metric), **(baselines if metric == "nll_per_dim" else {})}
        rows |= {"entropy of V's z": floors[metric]} if metric in floors else {}
        if any(value is not None for value in rows.values()):
            lines.append(f"held-out negative log-likelihood, {unit}")
            for name, value in rows.items():
                lines.append(f"  {name.replace('_', ' '):<16}  {'-' if value is None else format(value, '.3f')}")
    for name, scores in calibration.items():
        lines.append(f"termination {name}: " + ", ".join(f"{key} {value:.4g}" for key, value in scores.items()))
    lines.append(f"updates {training['updates']}, best at {training['best_update']}, {training['seconds']:.1f} s")
    lines.append(f"world model: {out}")
    data = {"training": training, "baselines": baselines, "calibration": calibration, "world_model": out}
    return Result("\n".join(lines), data)
