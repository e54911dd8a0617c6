"""Reproduce the Doom experiment of Ha & Schmidhuber (2018); options: ``python scripts/reproduce_doom.py --help``."""

from worldmodel.cli.reproduce import doom

if __name__ == "__main__":
    doom()
