"""The option ``--preset`` of the command-line programs here."""

from __future__ import annotations

import argparse

from worldmodel.presets import PRESETS


def parse_with_preset(parser: argparse.ArgumentParser, part: str) -> argparse.Namespace:
    """Add ``--preset``, which gives options the paper's numbers and makes none of those required, and parse.

    Args:
        parser: has all other options.
        part: of the preset, see `worldmodel.presets.Preset.options`.
    """
    parser.add_argument(
        "--preset", choices=sorted(PRESETS), help="take the numbers of the paper; options that are given beside it win"
    )
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--preset", choices=sorted(PRESETS))
    name = first.parse_known_args()[0].preset
    if name is not None:
        options = PRESETS[name].options(part)
        parser.set_defaults(**options)
        for action in parser._actions:  # there is no public way to it
            action.required = action.required and action.dest not in options
    return parser.parse_args()
