"""``worldmodel store`` without an installed program: ``python scripts/store.py --help``."""

import sys

from worldmodel.cli.main import main

if __name__ == "__main__":
    main(["store", *sys.argv[1:]])
