"""``worldmodel encode`` without an installed program: ``python scripts/encode.py --help``."""

import sys

from worldmodel.cli.main import main

if __name__ == "__main__":
    main(["encode", *sys.argv[1:]])
