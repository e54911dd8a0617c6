"""Reproduce an experiment that is a loop: the rounds, a final test of the best round's agent, and the table.

The files in ``out``::

    out/loop                the directory of `iterate`
    out/final.json          the final test
    out/results.json        every episode's score by round, real steps, seconds
    out/table.md            the table
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from worldmodel.agents import LatentPolicy, RealPopulation, load_agent
from worldmodel.data import Episode, EpisodeCollection, EpisodeStore, rollouts, split_episodes
from worldmodel.dream import Agent, Scores, time_limit
from worldmodel.experiments.car_racing import LoopPreset
from worldmodel.experiments.iteration import iterate
from worldmodel.experiments.iteration_config import Round, best_round
from worldmodel.experiments.results import read_scores, write_scores
from worldmodel.models import WorldModel
from worldmodel.rng import EVALUATION_STREAM, VIDEO_STREAM, derive_seed
from worldmodel.runtime import RunConfig, WorkerConfig, files

FINAL_FILE, RESULTS_FILE, TABLE_FILE = "final.json", "results.json", "table.md"


@dataclass(frozen=True)
class LoopExperiment:
    """A loop of rounds in a directory, with a final test. `run` resumes it.

    Args:
        preset: every number of it.
        out: the directory.
        seed: of everything.
        device: where models, dreams and trainings are.
        workers: worker processes for the final test; 0 plays in this process.
        run_config: how progress is shown; the stages are those of `iterate` and "final test".
    """

    preset: LoopPreset
    out: Path
    seed: int = 0
    device: torch.device | str = "cpu"
    workers: int | WorkerConfig = 0
    run_config: RunConfig = field(default_factory=RunConfig)

    def run(self, *, about: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Run what is missing.

        Args:
            about: written into the results, such as the command.

        Returns:
            The content of ``results.json``.

        Raises:
            FileExistsError: if ``out`` holds something else, or a loop with other numbers.
            KeyboardInterrupt: on Ctrl-C; the same call resumes.
        """
        preset = self.preset
        rounds = iterate(
            preset.env, out=self.out / "loop", config=preset.config, seed=self.seed, device=self.device, run=self.run_config
        )
        best = best_round(rounds)
        path = self.out / FINAL_FILE
        if not path.is_file():
            write_scores(path, {"round": best.number, "real": self._final(best).to_json()})
        final = read_scores(path)
        content = {**(about or {}), "seed": self.seed, "rounds": self._rows(rounds), "best_round": best.number, "final": final}
        files.write_bytes(self.out / RESULTS_FILE, (json.dumps(content, indent=1) + "\n").encode())
        files.write_bytes(self.out / TABLE_FILE, loop_table(content, preset).encode())
        return content

    def rounds_so_far(self) -> list[Path]:
        """Return the directories of the rounds."""
        return sorted((self.out / "loop").glob("round-*"), key=lambda path: int(path.name.rpartition("-")[2]))

    def world(self) -> WorldModel:
        """Open the best round's world model."""
        return WorldModel.from_pretrained(self._best() / "world", device=self.device)

    def controller(self) -> Agent:
        """Open the best round's agent."""
        return load_agent(self._best() / "controller", device=self.device)

    def agent_episode(self) -> Episode:
        """Play one real episode with the best agent, not one of the tests."""
        policy, seed = LatentPolicy(self.world(), self.controller()), derive_seed(self.seed, VIDEO_STREAM)
        (result,) = rollouts(self.preset.env, policy, episode_ids=[0], seed=seed)
        if not isinstance(result, Episode):
            raise RuntimeError(f"env: expected to play an episode (seed {result.seed}): {result.error}")
        return result

    def held_out_episodes(self, most: int) -> list[Episode]:
        """Return the first episodes of round 1 that were held out from V's training."""
        frames = self.preset.config.vision.frames
        episodes = EpisodeCollection.open(self.out / "loop" / "round-1" / "data", min_length=frames.min_length)
        _, held_out = split_episodes(len(episodes), test_fraction=frames.test_fraction, seed=self.seed)
        return [episodes.read(int(index)) for index in held_out[:most]]

    def _best(self) -> Path:
        return self.out / "loop" / f"round-{read_scores(self.out / FINAL_FILE)['round']}"

    def _final(self, best: Round) -> Scores:
        """Play the final test on episodes that chose nothing."""
        world = WorldModel.from_pretrained(best.directory / "world")
        reality = RealPopulation(world, self.preset.env, workers=self.workers)
        with self.run_config.reporter() as report:
            return reality.score(
                load_agent(best.directory / "controller"),
                episodes=self.preset.final_episodes,
                horizon=time_limit(self.preset.env),
                seed=derive_seed(self.seed, EVALUATION_STREAM),
                name="final test",
                on_progress=report,
            )

    def _rows(self, rounds: Sequence[Round]) -> list[dict[str, Any]]:
        """Return each round's scores with the real steps of data and validation up to it."""
        steps, rows = 0, []
        for one in rounds:
            collected = EpisodeStore.open(one.directory / "data").num_steps
            steps += self.preset.env.action_repeat * (collected + int(one.validation.lengths.sum()))
            rows.append({"real_steps": steps, **one.to_json()})
        return rows


def loop_table(results: Mapping[str, Any], preset: LoopPreset) -> str:
    """Format the results of a loop as a Markdown table: a row for each round, then the final test.

    Args:
        results: content of ``results.json``.
        preset: experiment, for the threshold of `LoopPreset.solved`.
    """
    lines = [
        "| round | real steps so far | dream | validation | other episodes | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for row in results["rounds"]:
        scores = [f"{row[name]['mean']:.0f} ± {row[name]['std']:.0f}" for name in ("dream", "validation", "real")]
        seconds = f"{sum(row['seconds'].values()):.0f}"
        lines.append(f"| {' | '.join([str(row['number']), format(row['real_steps'], ','), *scores, seconds])} |")
    final, random = results["final"]["real"], results["rounds"][0]["random"]
    count = len(Scores.from_json(final).returns)
    lines += [
        "",
        f"Round {results['final']['round']}, the best by validation, over {count} other episodes: **{final['mean']:.0f} ± "
        f"{final['std']:.0f}** (standard error {final['standard_error']:.0f}). Random play: {random['mean']:.0f} ± "
        f"{random['std']:.0f}.",
    ]
    if preset.solved is not None:
        lines.append(f"The task counts as {'' if final['mean'] > preset.solved else 'not '}solved (above {preset.solved:g}).")
    return "\n".join(lines) + "\n"
