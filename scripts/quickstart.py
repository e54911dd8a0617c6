"""``worldmodel quickstart`` without an installed program: ``python scripts/quickstart.py --help``."""

import sys

from worldmodel.cli.main import main

if __name__ == "__main__":
    main(["quickstart", *sys.argv[1:]])
