"""Dream many futures with a world model and write them to a file; options: ``python scripts/dream.py --help``."""

from worldmodel.cli.dream import main

if __name__ == "__main__":
    main()
