"""``worldmodel improve-controller``."""

from __future__ import annotations

from dataclasses import dataclass, field

import tyro
from typing_extensions import Self
from tyro.conf import OmitArgPrefixes as Flat

import worldmodel as wm
from worldmodel.agents import PPO_FILE, load_agent
from worldmodel.cli.options import DreamKind, Result, SearchCommand, SearchRun
from worldmodel.cli.plots import Curve, PlotOptions
from worldmodel.dream import StartBank, StartConfig, score, usual_horizon
from worldmodel.experiments import Preset
from worldmodel.runtime import check_integers


@dataclass(frozen=True, kw_only=True)
class ImproveController(SearchCommand):
    """Improve a controller by PPO in short dreams that start within real episodes, and write it as a directory.

    Args:
        controller: directory of the controller to improve.
        data: store of the episodes in which dreams start, encoded or not.
        num_dreams: number of short dreams.
        whole_horizon: maximum length of a complete test dream; None: the time limit of the data's environment.
        ppo: numbers of PPO. The tests choose the best controller; the output then scores it on 1,024 other dreams, whatever
            --test-dreams is.
        starts: states in which dreams start.
        kind: end, precision and rewards of dreams.
        output: device, earlier runs and output.
        plots: picture of the search: OUT.ppo.png.
    """

    controller: str
    data: str
    num_dreams: int = 1024
    whole_horizon: int | None = None
    ppo: Flat[wm.PPOConfig] = field(default_factory=wm.PPOConfig)
    starts: Flat[StartConfig] = field(default_factory=StartConfig)
    kind: Flat[DreamKind] = field(default_factory=DreamKind)
    output: Flat[SearchRun] = field(default_factory=SearchRun)
    plots: Flat[PlotOptions] = field(default_factory=PlotOptions)

    @classmethod
    def of_preset(cls, preset: Preset) -> Self:
        """Return the command with the numbers of a preset."""
        if preset.improvement is None:
            raise ValueError("--preset: expected one with numbers for improve-controller, as doom, got one without")
        paths = dict.fromkeys(("model", "controller", "data", "out"), tyro.MISSING)
        return cls(
            **paths,
            num_dreams=preset.improvement.num_dreams,
            ppo=preset.improvement.ppo,
            starts=preset.improvement.starts,
            kind=DreamKind(termination=preset.termination, precision=preset.dream_precision),
        )

    def run(self) -> Result:
        """Improve."""
        check_integers(self, {"whole_horizon": 1}, optional=("whole_horizon",))
        world = wm.WorldModel.from_pretrained(self.model, device=self.output.choose_device())
        agent = load_agent(self.controller, device=world.device)
        dreams = self.kind.dreams(world, self.num_dreams, temperature=self.temperature)
        horizon = usual_horizon(world) if self.whole_horizon is None else self.whole_horizon
        starts = StartBank.along(world, self.data, config=self.starts, seed=self.seed)
        with self.output.writing(self.out):
            log = self.output.start(self.out, PPO_FILE)
            curve = Curve.beside(log, self.output)
            run = self.output.saving(self.out, curve)
            best = wm.ppo(agent, dreams, starts, config=self.ppo, horizon=horizon, seed=self.seed, log=log, run=run)
            best.save_pretrained(self.out, overwrite=True)
        lines, data = [], {}
        for name, one in (("before", agent), ("after", best)):
            scores = score(dreams.variant(num_dreams=1024), one, horizon=horizon, seed=self.seed + 1)
            lines.append(f"dream return {name:6}  {scores} at temperature {self.temperature:g}")
            data[name] = scores.to_json()
        lines += [f"controller: {self.out}"]
        lines += self.plots.draw(log.with_suffix(".png"), "draw_search", curve.rows, unit="iteration")
        return Result("\n".join(lines), data | {"controller": self.out})
