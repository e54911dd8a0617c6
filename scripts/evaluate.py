"""Score a controller in dreams and in the real environment; options: ``python scripts/evaluate.py --help``."""

from worldmodel.cli.evaluate import main

if __name__ == "__main__":
    main()
