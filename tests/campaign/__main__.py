"""Command line of the campaign; exit code 1 if anything went wrong."""

import argparse
import sys
import tempfile
from pathlib import Path

import torch
import torch._dynamo  # an optimiser imports it: once here, not in every fork

from campaign.report import KINDS, campaign, text, write

parser = argparse.ArgumentParser(prog="python -m campaign")
parser.add_argument("--minutes", type=float, default=30)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--kind", nargs="*", choices=KINDS, default=None)
parser.add_argument("--out", type=Path, default=None, help="JSON file of the counts and findings")

if __name__ == "__main__":
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # a fork of a process with more would hang
    with tempfile.TemporaryDirectory() as work:
        counts, findings = campaign(arguments.minutes * 60, seed=arguments.seed, work=Path(work) / "work", kinds=arguments.kind)
    print(text(counts, findings))
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write(arguments.out, counts, findings)
    sys.exit(1 if findings else 0)
