"""``worldmodel export``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import tyro
from tyro.conf import OmitArgPrefixes as Flat

import worldmodel as wm
from worldmodel.agents import CONTROLLER_FILE
from worldmodel.cli.options import Command, Flag, Output, Result
from worldmodel.models import WORLD_FILE
from worldmodel.runtime import local_path
from worldmodel.sharing import EXPORT_FILE, OnnxExport, export_onnx


@dataclass(frozen=True, kw_only=True)
class Export(Command):
    """Export a world model, and a controller, to ONNX files, which onnxruntime runs without torch.

    Every file is compared with torch before anything is written.

    Args:
        run_directory: world model directory, or a directory with the directories "world" and "controller".
        onnx: directory to write.
        controller: controller directory; without it the one that RUN holds, if any.
        no_decoder: leave V's decoder out.
        overwrite: replace an earlier export.
        output: output.
    """

    RESUME = "Nothing was written; the same command starts again."

    run_directory: tyro.conf.Positional[str]
    onnx: str
    controller: str | None = None
    no_decoder: Flag = False
    overwrite: Flag = False
    output: Flat[Output] = field(default_factory=Output)

    def run(self) -> Result:
        """Export."""
        world, controller = find(self.run_directory, self.controller)
        done = export_onnx(
            wm.WorldModel.from_pretrained(world),
            self.onnx,
            controller=None if controller is None else wm.Controller.from_pretrained(controller),
            decoder=not self.no_decoder,
            overwrite=self.overwrite,
        )
        return report(done)


def find(run: str, controller: str | None) -> tuple[str, str | None]:
    """Return the directories of the world model and the controller of a run; None if there is no controller."""
    inside = local_path(run)
    if not (inside / WORLD_FILE).is_file() and (inside / "world" / WORLD_FILE).is_file():
        if controller is None and (inside / "controller" / CONTROLLER_FILE).is_file():
            controller = str(inside / "controller")
        return str(inside / "world"), controller
    return run, controller


def report(done: OnnxExport) -> Result:
    """Describe what was written."""
    lines = [
        f"{name + '.onnx':<16} {done.sizes[f'{name}.onnx']:>10,} bytes, within {error:.1e} of torch"
        for name, error in done.errors.items()
    ]
    lines += [
        f"drift of z in dreams of {steps:>5,} steps: median {median:.1e}, largest {most:.1e}"
        for steps, (median, most) in done.drift.items()
    ]
    lines.append(f"export: {done.directory} ({EXPORT_FILE} lists inputs and outputs)")
    drift = {str(steps): {"median": median, "max": most} for steps, (median, most) in done.drift.items()}
    data = {"relative_errors": done.errors, "drift": drift, "bytes": done.sizes, "export": str(Path(done.directory))}
    return Result("\n".join(lines), data)
