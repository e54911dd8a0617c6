"""Train V on the images of one or several stores; options: ``python scripts/train_vae.py --help``."""

from worldmodel.cli.train_vae import main

if __name__ == "__main__":
    main()
