"""Encode the frames of a store with a trained V: mean and log-variance of z, in a store that M trains on.

The same command resumes an interrupted encoding, and encodes episodes that were collected since.
"""

from __future__ import annotations

import argparse
import time

import worldmodel as wm
from worldmodel.cli.options import add_device, add_encoder, open_vision, program, run_config


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", required=True, help="directory written by scripts/collect.py")
    parser.add_argument("--out", help="directory of the encoded store; None: DATA-encoded")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier encoded store")
    add_encoder(parser, required=True)
    add_device(parser)
    return parser.parse_args()


@program(resume="Encoded episodes are kept; the same command resumes the encoding.")
def main() -> None:
    """Run the command."""
    args = parse_arguments()
    vision = open_vision(args)
    began = time.monotonic()
    store = wm.encode_store(
        args.data,
        vision=vision,
        out=args.out or f"{args.data.rstrip('/')}-encoded",
        dtype=args.dtype,
        precision=args.precision,
        run=run_config(args),
    )
    print(f"episodes  {len(store)}\nsteps     {store.num_steps}\nseconds   {time.monotonic() - began:.1f}")
    print(f"V         {vision.fingerprint}\nstore: {store.path}")
