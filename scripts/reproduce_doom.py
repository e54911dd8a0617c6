"""``worldmodel reproduce doom`` without an installed program: ``python scripts/reproduce_doom.py --help``."""

import sys

from worldmodel.cli.main import main

if __name__ == "__main__":
    main(["reproduce", "doom", *sys.argv[1:]])
