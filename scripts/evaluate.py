"""``worldmodel evaluate`` without an installed program: ``python scripts/evaluate.py --help``."""

import sys

from worldmodel.cli.main import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
