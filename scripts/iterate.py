"""``worldmodel iterate`` without an installed program: ``python scripts/iterate.py --help``."""

import sys

from worldmodel.cli.main import main

if __name__ == "__main__":
    main(["iterate", *sys.argv[1:]])
