"""``worldmodel export``."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import tyro
from tyro.conf import OmitArgPrefixes as Flat

import worldmodel as wm
from worldmodel.cli.options import Command, Flag, Output, Result
from worldmodel.dream import Scores
from worldmodel.play import PageExport, export_page, parts_of_run
from worldmodel.runtime import ModelCard, parse_json, read_bytes, read_runs
from worldmodel.sharing import EXPORT_FILE, OnnxExport, export_onnx

SCORES_FILE = "scores.json"  # of a round of `iterate`, next to its world model


@dataclass(frozen=True, kw_only=True)
class Export(Command):
    """Export a world model, and a controller, to ONNX files, or to a page that runs the dream in a browser.

    Every ONNX file is compared with torch before anything is written. The page needs an HTTP server and nothing else.

    Args:
        run_directory: world model directory, a directory with the directories "world" and "controller", or a run of the
            quickstart or of iterate, whose best round is taken.
        onnx: directory for ONNX files, which onnxruntime runs without torch.
        page: directory for a page.
        controller: controller directory; without it the one that RUN holds, if any.
        licence: identifier of a licence for the model card of a page, such as mit.
        scores: JSON file that ``worldmodel evaluate --out`` wrote, for the model card of a page; None: the scores next to the
            world model, if a loop left some.
        no_decoder: leave V's decoder out of the ONNX files.
        overwrite: replace an earlier export.
        output: output.
    """

    RESUME = "Nothing was written; the same command starts again."

    run_directory: tyro.conf.Positional[str]
    onnx: str | None = None
    page: str | None = None
    controller: str | None = None
    licence: str | None = None
    scores: str | None = None
    no_decoder: Flag = False
    overwrite: Flag = False
    output: Flat[Output] = field(default_factory=Output)

    def run(self) -> Result:
        """Export."""
        if (self.onnx is None) == (self.page is None):
            got = "neither" if self.onnx is None else "both"
            raise ValueError(f"--onnx, --page: expected one of them, with the directory to write, got {got}")
        world, controller = parts_of_run(self.run_directory, self.controller)
        opened = wm.WorldModel.from_pretrained(world)
        agent = None if controller is None else wm.Controller.from_pretrained(controller)
        if self.page is not None:
            if self.no_decoder:
                raise ValueError("--no-decoder: expected with --onnx only, as a page shows what the decoder returns")
            return report_page(
                export_page(opened, self.page, controller=agent, card=self.card(opened, world), overwrite=self.overwrite)
            )
        assert self.onnx is not None
        return report(export_onnx(opened, self.onnx, controller=agent, decoder=not self.no_decoder, overwrite=self.overwrite))

    def card(self, world: wm.WorldModel, directory: Path) -> ModelCard:
        """Return the model card of a page: with the command that made the world model, its scores, and a licence."""
        card = world.card()
        if calls := read_runs(directory):
            card = replace(card, facts={**card.facts, "command": f"`{calls[-1]['command']}`"})
        beside = directory.parent / SCORES_FILE
        found = Path(self.scores) if self.scores else beside if beside.is_file() else None
        return card.published(
            title=card.title, usage=card.usage, scores=scores_text(found) if found else None, licence=self.licence
        )


def scores_text(path: Path) -> str:
    """Return the scores in a file, one line for each kind.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no scores.
    """
    content = parse_json(read_bytes(path), path)
    try:
        lines = [f"{kind:<7}{Scores.from_json(content[kind])}" for kind in ("real", "dream", "random") if kind in content]
    except (TypeError, LookupError, ValueError) as error:
        raise ValueError(f"{path}: expected scores that evaluate --out wrote, got others: {error}") from error
    if not lines:
        raise ValueError(f"{path}: expected scores that evaluate --out wrote, got none")
    return "\n".join(["mean return +- its standard deviation", *lines])


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


def report_page(done: PageExport) -> Result:
    """Describe the page that was written."""
    lines = [f"{name + '.onnx':<16} within {error:.1e} of torch" for name, error in done.errors.items()]
    lines.append(f"page: {done.directory}, {done.total / 1e6:.1f} MB; serve it with any HTTP server, for example")
    lines.append(f"python -m http.server --directory {done.directory}")
    data = {"relative_errors": done.errors, "bytes": done.sizes, "total_bytes": done.total, "page": str(done.directory)}
    return Result("\n".join(lines), data)
