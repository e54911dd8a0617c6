"""``python -m worldmodel``: the program ``worldmodel``."""

from worldmodel.cli import main

main.main()
