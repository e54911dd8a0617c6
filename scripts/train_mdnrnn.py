"""Train M on one or several stores of episodes; options: ``python scripts/train_mdnrnn.py --help``."""

from worldmodel.cli.train_mdnrnn import main

if __name__ == "__main__":
    main()
