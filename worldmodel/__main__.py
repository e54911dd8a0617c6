"""``python -m worldmodel``: the program ``worldmodel``."""

from worldmodel.cli.main import main

main()
