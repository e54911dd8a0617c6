"""``worldmodel train-mdnrnn`` without an installed program: ``python scripts/train_mdnrnn.py --help``."""

import sys

from worldmodel.cli.main import main

if __name__ == "__main__":
    main(["train-mdnrnn", *sys.argv[1:]])
