"""``worldmodel reproduce car-racing`` without an installed program: ``python scripts/reproduce_car_racing.py --help``."""

import sys

from worldmodel.cli.main import main

if __name__ == "__main__":
    main(["reproduce", "car-racing", *sys.argv[1:]])
