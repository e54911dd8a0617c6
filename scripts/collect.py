"""Collect episodes from a Gymnasium environment into a store; options: ``python scripts/collect.py --help``."""

from worldmodel.cli.collect import main

if __name__ == "__main__":
    main()
