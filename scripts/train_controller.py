"""Search a controller in dreams or in the real environment; options: ``python scripts/train_controller.py --help``."""

from worldmodel.cli.train_controller import main

if __name__ == "__main__":
    main()
