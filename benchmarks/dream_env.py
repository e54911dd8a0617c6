"""Time of `DreamVectorEnv.step` relative to `Dreams.step`, for 1024 dreams in the same run.

    python benchmarks/dream_env.py --out results/dream_env

`Dreams.step` uses a torch generator. The environment has ``tensors=True`` and validates actions.
Episodes end after 100 steps on average, so about ten dreams restart in each step. The variants run
in turns, in random order. The result of each is the fastest of many short runs, as other work on
the machine can only slow a run down. Models have random weights; trained weights take the same
time.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from gymnasium import spaces
from harness import fastest, write_result

import worldmodel as wm
from worldmodel.models import MDNRNN, StateNormalizer

SIZES = {  # name: (latent size, actions, hidden size)
    "CartPole-v1, hidden 64": (4, 2, 64),
    "CartPole-v1, hidden 128": (4, 2, 128),
    "CartPole-v1, hidden 256": (4, 2, 256),
    "CarRacing": (32, 3, 256),
    "Doom": (64, 3, 512),
}
NUM_DREAMS, LIFE, STEPS, TARGET = 1024, 100, 5, 1.15


def make_world(latent_size: int, num_actions: int, hidden_size: int) -> wm.WorldModel:
    """Build a random world model whose dreams terminate with probability 1 / `LIFE` per step."""
    torch.manual_seed(0)
    model = MDNRNN(latent_size, num_actions, wm.MDNRNNConfig(hidden_size=hidden_size))
    model.latent_low.fill_(-20.0)
    model.latent_high.fill_(20.0)
    with torch.no_grad():
        model.termination_head.weight.zero_()
        model.termination_head.bias.fill_(-math.log(LIFE - 1))
    vision = StateNormalizer(spaces.Box(-np.inf, np.inf, (latent_size,), np.float32))
    start = torch.randn(100, latent_size)
    world = wm.WorldModel(
        vision, model, spaces.Discrete(num_actions), start_mean=start, start_log_variance=torch.full_like(start, -torch.inf)
    )
    return world.eval()


def variants(world: wm.WorldModel, num_actions: int) -> dict[str, Callable[[], object]]:
    """Return a function per variant that performs the next step."""
    dreams = wm.Dreams(world, NUM_DREAMS, temperature=1.15)
    generator, everyone = dreams.generator(0), torch.ones(NUM_DREAMS, dtype=torch.bool)
    state = dreams.start(generator=generator)
    actions = torch.randint(num_actions, (NUM_DREAMS,))

    def core() -> None:
        nonlocal state
        state, _, _ = dreams.step(state, actions, generator=generator)
        state = replace(state, alive=everyone)  # `Dreams.step` has no reset, so no dream may end

    steps: dict[str, Callable[[], object]] = {"core": core}
    for name, options in {"env": {}, "env, unchecked": {"check_actions": False}, "env, numpy": {"tensors": False}}.items():
        env = wm.DreamVectorEnv(world, NUM_DREAMS, temperature=1.15, **{"tensors": True, **options})
        env.reset(seed=0)
        steps[name] = lambda env=env: env.step(actions if env.tensors else actions.numpy())
    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="directory for result.json and result.md")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = {}
    for name, (latent_size, num_actions, hidden_size) in SIZES.items():
        world = make_world(latent_size, num_actions, hidden_size)
        steps = variants(world, num_actions)
        seconds = fastest(steps, repeats=arguments.repeats, calls=STEPS, warm_up=1, shuffle=True)
        milliseconds = {variant: 1e3 * value for variant, value in seconds.items()}
        rows[name] = {"milliseconds": milliseconds, "ratio": milliseconds["env"] / milliseconds["core"]}
        print(f"{name:<24} core {milliseconds['core']:6.2f} ms, ratio {rows[name]['ratio']:.3f}", flush=True)
    columns = list(next(iter(rows.values()))["milliseconds"])
    lines = [f"| size | {' | '.join(f'{column}, ms' for column in columns)} | env / core |", "|---" * (len(columns) + 2) + "|"]
    for name, row in rows.items():
        numbers = " | ".join(f"{row['milliseconds'][column]:.2f}" for column in columns)
        lines.append(f"| {name} | {numbers} | {row['ratio']:.2f} |")
    content = {"num_dreams": NUM_DREAMS, "target": TARGET, "rows": rows}
    write_result(arguments.out, content, markdown="\n".join(lines))


if __name__ == "__main__":
    main()
