"""``worldmodel train-controller`` without an installed program: ``python scripts/train_controller.py --help``."""

import sys

from worldmodel.cli.main import main

if __name__ == "__main__":
    main(["train-controller", *sys.argv[1:]])
