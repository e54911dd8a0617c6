"""Train an agent for CartPole in dreams and score it; options: ``python scripts/quickstart.py --help``."""

from worldmodel.cli.quickstart import main

if __name__ == "__main__":
    main()
