"""Encode the frames of a store with a trained V: mean and log-variance of z, in a store that M trains on.

The same command goes on where it stopped, also after more episodes were collected.
"""

from __future__ import annotations

import argparse
import time

from bars import Bar
from command import add_device, run
from encoder import add_encoder, open_vision

import worldmodel as wm


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", required=True, help="directory that scripts/collect.py wrote")
    parser.add_argument("--out", help="directory for the encoded store; None puts it beside the frames, DATA-encoded")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier encoded store")
    add_encoder(parser, required=True)
    add_device(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    vision = open_vision(args)
    began = time.monotonic()
    with Bar("encode", "episode") as bar:
        store = wm.encode_store(
            args.data,
            vision=vision,
            out=args.out or f"{args.data.rstrip('/')}-encoded",
            dtype=args.dtype,
            precision=args.precision,
            overwrite=args.overwrite,
            on_progress=bar.show,
        )
    print(f"episodes  {len(store)}\nsteps     {store.num_steps}\nseconds   {time.monotonic() - began:.1f}")
    print(f"V         {vision.fingerprint}\nstore: {store.path}")


if __name__ == "__main__":
    run(main, resume="What is encoded is kept; the same command goes on.")
