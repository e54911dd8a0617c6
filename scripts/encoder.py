"""Options of the command-line programs here that encode frames with a trained V."""

from __future__ import annotations

import argparse

from command import choose_device

import worldmodel as wm
from worldmodel.models import DTYPES


def add_encoder(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Add ``--vision``, ``--dtype`` and ``--precision``; the parser has `add_device`'s option too.

    Args:
        parser: gets them.
        required: whether there is nothing to do without V.
    """
    without = "" if required else "; stores what it makes of frames in their place"
    parser.add_argument("--vision", required=required, help=f"directory that scripts/train_vae.py wrote{without}")
    parser.add_argument("--dtype", choices=DTYPES, default="float16", help="what mean and log-variance are stored in")
    parser.add_argument("--precision", choices=("float32", "bfloat16", "auto"), default="float32", help="of V's products")


def open_vision(args: argparse.Namespace) -> wm.ConvVAE:
    """Open the V of ``--vision`` where ``--device`` says."""
    return wm.ConvVAE.from_pretrained(args.vision, device=choose_device(args.device))
