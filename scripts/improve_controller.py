"""``worldmodel improve-controller`` without an installed program: ``python scripts/improve_controller.py --help``."""

import sys

from worldmodel.cli.main import main

if __name__ == "__main__":
    main(["improve-controller", *sys.argv[1:]])
