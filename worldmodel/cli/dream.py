"""Dream many futures at once with a world model and write them to an .npz file."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

import worldmodel as wm
from worldmodel.agents import check_agent, load_agent
from worldmodel.cli.options import add_device, add_dreams, choose_device, program
from worldmodel.dream import Policy, RandomActions
from worldmodel.spaces import leaf_values, to_numpy


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", required=True, help="world model directory")
    parser.add_argument("--controller", help="controller directory; without it actions are uniformly random")
    parser.add_argument("--num-dreams", type=int, default=1024, help="number of dreams")
    parser.add_argument("--horizon", type=int, default=200, help="maximum number of steps")
    parser.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        help="of the dreams; 0: the most probable next z; 1: as M predicts; above 1: more random",
    )
    add_dreams(parser)
    parser.add_argument("--out", required=True, help=".npz file to write; the program lists its arrays at the end")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument("--seed", type=int, default=0, help="seed of the dreams")
    add_device(parser)
    return parser.parse_args()


@program()
def main() -> None:
    """Run the command."""
    args = parse_arguments()
    out = Path(args.out)
    if out.suffix != ".npz":
        raise ValueError(f"--out: expected a file name that ends in .npz, got {out}")
    if out.exists() and not args.overwrite:
        raise FileExistsError(f"{out}: already there; pass --overwrite to replace it")
    device = choose_device(args.device)
    world = wm.WorldModel.from_pretrained(args.model, device=device)
    dreams = wm.Dreams(
        world, args.num_dreams, temperature=args.temperature, termination=args.termination, precision=args.precision
    )
    generator = dreams.generator(args.seed)
    policy: Policy = RandomActions(world, generator=generator)
    if args.controller:
        policy = check_agent(load_agent(args.controller, device=device), world)
    began = time.monotonic()
    rollout = dreams.rollout(policy, args.horizon, generator=generator)
    seconds = time.monotonic() - began
    arrays = {name: getattr(rollout, name).cpu().numpy() for name in ("z", "rewards", "terminated", "mask")}
    arrays |= nested("actions", rollout.actions) | nested("observations", world.decode(rollout.z))
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out, **arrays)
    steps = int(rollout.mask.sum())
    print(f"{args.num_dreams} dreams, {steps:,} steps in {seconds:.2f} s: {steps / seconds:,.0f} steps/s")
    print(f"length  {rollout.lengths.float().mean():.1f} +- {rollout.lengths.float().std(correction=0):.1f}")
    print(f"return  {rollout.returns.mean():.1f} +- {rollout.returns.std(correction=0):.1f}")
    for name, array in arrays.items():
        print(f"  {name:<14} {array.dtype!s:<8} {array.shape}")
    print(f"dreams: {out}")


def nested(name: str, value: object) -> dict[str, np.ndarray]:
    """Name the arrays of a nested value ``name`` or ``name/path``."""
    return {f"{name}/{path}".rstrip("/"): leaf for path, leaf in leaf_values(to_numpy(value)).items()}
