"""Inspect a store of episodes: print its content, verify it, or repair it."""

from __future__ import annotations

import argparse
import sys

from worldmodel.cli.options import program
from worldmodel.data import EpisodeStore, Problem, repair, verify


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("info", "print a summary of the store"),
        ("verify", "read every byte and list the problems; exit code 1 if there is one"),
        ("repair", "keep undamaged episodes, move damaged files to the folder damaged/, and rewrite the manifest"),
    ):
        commands.add_parser(name, help=text, description=text).add_argument("path", help="directory of the store")
    return parser.parse_args()


def print_problems(problems: list[Problem]) -> None:
    """Print one line per problem."""
    for problem in problems:
        lost = f"; lost episodes: {list(problem.episode_ids)}" if problem.episode_ids else ""
        print(f"{problem.kind:10} {problem.shard}: {problem.detail}{lost}")


def print_info(store: EpisodeStore) -> None:
    """Print a summary of a store."""
    print(f"episodes           {len(store)}")
    print(f"steps              {store.num_steps}")
    if len(store):
        print(f"lengths            {store.lengths.min()} to {store.lengths.max()}, mean {store.lengths.mean():.1f}")
    print(f"observation space  {store.observation_space}")
    print(f"action space       {store.action_space}")
    for key, value in store.recipe.items():
        print(f"{key:18} {value}")
    print(f"failures           {len(store.failures)}")
    print(f"fingerprint        {store.fingerprint}")


@program()
def main() -> None:
    """Run the command."""
    arguments = parse_arguments()
    if arguments.command == "info":
        print_info(EpisodeStore.open(arguments.path))
        return
    problems = (verify if arguments.command == "verify" else repair)(arguments.path)
    print_problems(problems)
    print(f"{len(problems)} problems" + (" repaired" if problems and arguments.command == "repair" else ""))
    if problems and arguments.command == "verify":
        sys.exit(1)
