"""Reproduce the Doom experiment of Ha & Schmidhuber (2018): the agent learns in the dream alone, and plays the real game.

Controllers are found by CMA-ES and improved by PPO, in dreams alone. Everything goes to --out: the table (table.md), every
episode's score (results.json), learning curves, pictures, films. The same command goes on where it stopped.
"""

from __future__ import annotations

from command import run
from experiment import parse_arguments, reproduce

from worldmodel.envs import DOOM_ACTIONS
from worldmodel.experiments import DOOM


def main() -> None:
    reproduce(parse_arguments(__doc__), DOOM, DOOM_ACTIONS)


if __name__ == "__main__":
    run(main, resume="The same command goes on where it stopped.")
