"""Make the world that `worldmodel play` includes from a run of the quickstart.

worldmodel quickstart --out runs/quickstart
python dev/included_world.py runs/quickstart worldmodel/play/worlds/cartpole
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import worldmodel as wm
from worldmodel.play.page import export_world
from worldmodel.runtime import write_card

USAGE = """from worldmodel.play import PlayServer, included_worlds  # or in a shell: worldmodel play cartpole

server = PlayServer(included_worlds())"""


def main(run: Path, out: Path) -> None:
    """Export the best round of a run with its card."""
    summary = json.loads((run / "summary.json").read_text())
    folder = run / f"round-{summary['best_round']}"
    world = wm.WorldModel.from_pretrained(folder / "world")
    controller = wm.Controller.from_pretrained(folder / "controller")
    export_world(world, out, controller=controller, title="CartPole", overwrite=True)
    scores = next(one for one in summary["rounds"] if one["number"] == summary["best_round"])
    lines = [f"{name:7} {scores[name]['mean']:6.1f} +- {scores[name]['std']:.1f}" for name in ("dream", "real", "random")]
    text = "mean return and its standard deviation; real and random over 100 episodes each of CartPole-v1\n" + "\n".join(lines)
    card = world.card()
    facts = card.facts | {"command": "`worldmodel quickstart`", "files": "ONNX: step, decoder, encoder, controller; page.json"}
    card = replace(card, facts=facts)
    write_card(out / "README.md", card.published(title="CartPole, included", usage=USAGE, scores=text, licence="mit"))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
