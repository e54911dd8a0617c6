"""Score an agent in dreams and in the real environment."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace

from worldmodel.agents import check_agent
from worldmodel.data import EnvConfig, EnvMaker
from worldmodel.dream import REWARD_MODES, Agent, Dreams, Policy, RandomActions, Reality, RewardMode, Scores, score, time_limit
from worldmodel.evaluation.config import EvaluationConfig
from worldmodel.evaluation.playing import Stage, play
from worldmodel.models import WorldModel
from worldmodel.rng import EVALUATION_STREAM, derive_seed
from worldmodel.runtime import Kept, Listener, Progress, RunConfig, WorkerConfig, explains_keywords


@dataclass(frozen=True)
class Evaluation:
    """A controller's scores, to be printed or read.

    Args:
        real: in the real environment.
        dream: in the dream it was evaluated in, which pays expected rewards; a world model without a reward head returns 0.
        random: of uniformly random actions in the real environment.
        temperature: tau of the dream.
        sampled: in dreams that sample their rewards, so that the spread of their returns is comparable with that of real ones;
            None if rewards do not come from M's reward head.
    """

    real: Scores
    dream: Scores
    random: Scores
    temperature: float
    sampled: Scores | None = None

    def __str__(self) -> str:
        rows = {f"dream (temperature {self.temperature:g})": self.dream}
        if self.sampled is not None:
            rows["the same, sampled rewards"] = self.sampled
        rows |= {"reality": self.real, "random in reality": self.random}
        width = max(len(name) for name in rows)
        return "\n".join(f"{name:<{width}}  {scores}" for name, scores in rows.items())


@explains_keywords
def evaluate(
    agent: Policy,
    world: WorldModel,
    *,
    env: str | EnvMaker | EnvConfig,
    config: EvaluationConfig | None = None,
    seed: int = 0,
    workers: int | WorkerConfig = 0,
    run: RunConfig | None = None,
) -> Evaluation:
    """Score an agent in the real environment and in dreams, and random play in the real environment.

    Args:
        agent: an agent, or a function of features (B, F); see `worldmodel.dream.as_agent`.
        world: the world model.
        env: id, constructor, or `EnvConfig` of the real environment. Its ``max_steps`` limits real and dreamed episodes; 1000
            steps if neither it nor the environment has a limit.
        config: numbers of episodes, and how to dream.
        seed: seed of all episodes and dreams; its episodes are none that `collect` makes with the same seed.
        workers: number of worker processes for the real episodes, or a `WorkerConfig`; 0 plays all in lockstep in this process.
            Workers play some at a time, on the CPU, and V's noise is drawn for these. So their scores differ from those of one
            process if V has noise, but not with the number of workers.
        run: how progress is shown. Stage "evaluate", in the agent's real steps, with the number of its episodes that are
            ``running``; with workers in episodes.

    Raises:
        ValueError: if agent, world and environment do not belong together.
        TypeError: if ``agent`` is neither an agent nor a function.
        RuntimeError: if the environment raises; names the episode.
    """
    config, agent, pool = config or EvaluationConfig(), check_agent(agent, world), WorkerConfig.of(workers)
    horizon = time_limit(env)
    with (run or RunConfig()).reporter() as report:
        real, random = _play(agent, world, env, config, derive_seed(seed, EVALUATION_STREAM), seed, horizon, pool, report)
    dreamed, sampled = (
        score(_dreams(world, config, mode), agent, horizon=horizon, seed=seed)
        if mode == "expected" or (config.reward is None and world.mdnrnn.reward_head is not None)
        else None
        for mode in REWARD_MODES
    )
    assert dreamed is not None
    return Evaluation(real, dreamed, random, config.temperature, sampled)


def _play(
    agent: Agent,
    world: WorldModel,
    env: str | EnvMaker | EnvConfig,
    config: EvaluationConfig,
    episodes_seed: int,
    seed: int,
    horizon: int,
    pool: WorkerConfig,
    report: Listener,
) -> tuple[Scores, Scores]:
    """Score the agent and random play in real episodes."""

    def on_progress(progress: Progress) -> None:
        report(replace(progress, stage="evaluate"))

    if not pool.is_local:
        numbers = {"reward": config.reward, "episodes": config.num_episodes, "seed": episodes_seed, "horizon": horizon}
        stage = Kept(Stage.of(world, agent, env, **numbers))
        return play(stage, workers=pool, on_progress=on_progress), play(stage, at_random=True, workers=pool)
    reality = Reality(world, env, config.num_episodes, seed=episodes_seed, reward=config.reward)
    with contextlib.closing(reality):
        real = score(reality, agent, horizon=horizon, seed=seed, on_progress=on_progress)
        by_chance = RandomActions(world, generator=reality.generator(seed))
        return real, score(reality, by_chance, horizon=horizon, seed=seed)


def _dreams(world: WorldModel, config: EvaluationConfig, mode: RewardMode) -> Dreams:
    return Dreams(
        world,
        config.num_dreams,
        temperature=config.temperature,
        termination=config.termination,
        precision=config.precision,
        reward=config.reward,
        reward_mode=mode,
    )
