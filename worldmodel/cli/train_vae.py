"""``worldmodel train-vae``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro
from typing_extensions import Self
from tyro.conf import OmitArgPrefixes as Flat

import worldmodel as wm
from worldmodel.cli.options import Result, TrainingCommand, TrainingRun
from worldmodel.cli.plots import PlotOptions
from worldmodel.data import EpisodeStore
from worldmodel.experiments import Preset
from worldmodel.runtime import keep_freed_memory
from worldmodel.spaces import find_images, without_leaves
from worldmodel.training import CAMERAS, train_cameras


@dataclass(frozen=True, kw_only=True)
class TrainVae(TrainingCommand):
    """Train V for images on one or several stores of episodes and write it as a directory; a V for each of several cameras.

    Args:
        vae: sizes and loss of V.
        frames: batches of frames.
        training: updates and learning rate.
        output: device, earlier runs and output.
        plots: picture of the training: OUT/training/curves.png.
    """

    vae: Flat[wm.VAEConfig] = field(default_factory=wm.VAEConfig)
    frames: Flat[wm.FrameConfig] = field(default_factory=wm.FrameConfig)
    training: Flat[wm.TrainingConfig] = field(default_factory=wm.TrainingConfig)
    output: Flat[TrainingRun] = field(default_factory=TrainingRun)
    plots: Flat[PlotOptions] = field(default_factory=PlotOptions)

    @classmethod
    def of_preset(cls, preset: Preset) -> Self:
        """Return the command with the numbers of a preset."""
        vision = preset.vision
        return cls(data=tyro.MISSING, out=tyro.MISSING, vae=vision.config, frames=vision.frames, training=vision.training)

    def run(self) -> Result:
        """Train V."""
        keep_freed_memory()
        initial = wm.ConvVAE.from_pretrained(self.initial) if self.initial else None
        space = without_leaves(EpisodeStore.open(self.data[0]).observation_space, self.frames.leave_out)
        if initial is None and len(find_images(space)) > 1:
            return self._train_cameras()
        vision = wm.train_vae(
            self.data,
            out=self.out,
            config=None if initial else self.vae,
            frame_config=self.frames,
            training_config=self.training,
            initial=initial,
            seed=self.seed,
            device=self.output.choose_device(),
            run=self.output.config(),
        )
        lines = [*report(vision.provenance), f"V: {self.out}", *self._draw(Path(self.out))]
        return Result("\n".join(lines), self._data(vision.provenance))

    def _draw(self, out: Path) -> list[str]:
        """Draw the training of one V; return lines of output."""
        return self.plots.draw(out / "training" / "curves.png", "draw_training_run", out / "training")

    def _train_cameras(self) -> Result:
        """Train a V for each of several images."""
        cameras = train_cameras(
            self.data,
            out=self.out,
            config=self.vae,
            frame_config=self.frames,
            training_config=self.training,
            seed=self.seed,
            device=self.output.choose_device(),
            run=self.output.config(),
        )
        lines, data = [], {}
        for number, (path, provenance) in enumerate(cameras.provenance["cameras"].items()):
            lines += [f"camera {path}", *report(provenance), *self._draw(Path(self.out) / CAMERAS / str(number))]
            data[path] = self._data(provenance)
        return Result("\n".join([*lines, f"V: {self.out}"]), {"cameras": data, "vision": self.out})

    def _data(self, provenance: dict[str, Any]) -> dict[str, Any]:
        return {"training": provenance["training"], "latents": provenance["latents"], "vision": self.out}


def report(provenance: dict[str, Any]) -> list[str]:
    """Describe the training of one V."""
    training, latents = provenance["training"], provenance["latents"]
    return [
        "held-out frames",
        *(f"  {name.replace('_', ' '):<18}  {value:.3f}" for name, value in training["best_metrics"].items()),
        f"latents: {latents['size']}, in use over these frames {latents['in_use']}, kept {latents['kept']}",
        f"updates {training['updates']}, best at {training['best_update']}, {training['seconds']:.1f} s",
    ]
