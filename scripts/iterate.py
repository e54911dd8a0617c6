"""Repeat: collect, train M, train a controller in its dreams, evaluate; options: ``python scripts/iterate.py --help``."""

from worldmodel.cli.iterate import main

if __name__ == "__main__":
    main()
