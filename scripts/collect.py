"""``worldmodel collect`` without an installed program: ``python scripts/collect.py --help``."""

import sys

from worldmodel.cli.main import main

if __name__ == "__main__":
    main(["collect", *sys.argv[1:]])
