"""``worldmodel train-vae`` without an installed program: ``python scripts/train_vae.py --help``."""

import sys

from worldmodel.cli.main import main

if __name__ == "__main__":
    main(["train-vae", *sys.argv[1:]])
