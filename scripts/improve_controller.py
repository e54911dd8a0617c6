"""Improve a controller by PPO in short dreams; options: ``python scripts/improve_controller.py --help``."""

from worldmodel.cli.improve_controller import main

if __name__ == "__main__":
    main()
