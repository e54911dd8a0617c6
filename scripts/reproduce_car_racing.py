"""Reproduce the CarRacing experiment of Ha & Schmidhuber (2018); options: ``python scripts/reproduce_car_racing.py --help``."""

from worldmodel.cli.reproduce import car_racing

if __name__ == "__main__":
    car_racing()
