"""Encode the frames of a store with a trained V; options: ``python scripts/encode.py --help``."""

from worldmodel.cli.encode import main

if __name__ == "__main__":
    main()
