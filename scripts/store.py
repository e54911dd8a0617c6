"""Inspect, verify and repair a store of episodes; options: ``python scripts/store.py --help``."""

from worldmodel.cli.store import main

if __name__ == "__main__":
    main()
