"""CarRacing as in Ha & Schmidhuber (2018), but for the controller, which is searched in the dream: M predicts the reward too.

Everything goes to --out: the table (table.md), every episode's score (results.json), learning curves, pictures, films. The same
command goes on where it stopped.
"""

from __future__ import annotations

from command import run
from experiment import parse_arguments, reproduce

from worldmodel.experiments import CAR_RACING


def main() -> None:
    reproduce(parse_arguments(__doc__), CAR_RACING)


if __name__ == "__main__":
    run(main, resume="The same command goes on where it stopped.")
