"""``worldmodel dream`` without an installed program: ``python scripts/dream.py --help``."""

import sys

from worldmodel.cli.main import main

if __name__ == "__main__":
    main(["dream", *sys.argv[1:]])
