"""CarRacing by dreaming alone: numbers of the loop.

| number                          | here                                                                          |
|---------------------------------|-------------------------------------------------------------------------------|
| environment                     | CarRacing-v3, 64x64 pixels of the road, and four numbers of the status bar [1]|
| action repeat                   | 4 [2]                                                                         |
| round 1                         | 260 episodes of 90 decisions by a slow random driver [3]                      |
| later rounds                    | 14 episodes by the best agent so far, with autocorrelated noise [6]           |
| V                               | 32 latents, 32 nats of free bits in total; trained in round 1 only            |
| M                               | 256 hidden units, dropout 0.1, no termination [4]; continues in each round    |
| agent                           | a hidden layer of 64 on (z, h); PPO continues from the best agent so far      |
| dreams                          | 256 at once, 30 decisions from states along the last two rounds' episodes     |
| temperature of dreams           | 0.5 [5]                                                                       |
| choice among a round's agents   | dreams of 60 decisions from the same states                                   |
| choice among rounds             | 6 real episodes, the same in each round                                       |

1. V's 64x64 pixels are too coarse for bars of one or two pixels. `worldmodel.envs.car_racing.read_indicators` reads them from
   Gymnasium's own frame, so M sees the speed that a single picture of the road does not show.
2. Decisions of 80 milliseconds suffice to steer. Frames between them are not drawn, and a dream of 60 decisions covers 240
   frames.
3. Random actions brake half of the time, or leave the road in a second.
4. An episode terminates when the lap is complete, which no picture shows, or far off the road. Dreams need neither.
5. Under recorded actions, colder dreams pay the real rewards for longer (dev/LOG.md).
6. Many short rounds: a round takes about 100 seconds of one core, and each corrects what the dreams before it got wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from worldmodel.agents import ControllerConfig, PPOConfig
from worldmodel.data import ActionNoise, EnvConfig
from worldmodel.dream import StartConfig
from worldmodel.experiments.iteration_config import IterationConfig, RoundOptions
from worldmodel.experiments.presets import MDNRNN_TRAINING, ImprovementPreset, VisionPreset
from worldmodel.models import MDNRNNConfig, VAEConfig
from worldmodel.training import DataConfig, FrameConfig, TrainingConfig

CAR_ENV = "worldmodel.environments:CarRacingIndicators64-v0"


@dataclass(frozen=True, kw_only=True)
class LoopPreset:
    """Numbers of an experiment that is a loop of rounds.

    Args:
        env: the real environment.
        config: sizes and budgets of the rounds.
        final_episodes: real episodes of the final test of the best round's agent.
        solved: mean score above which the task counts as solved.
    """

    env: EnvConfig
    config: IterationConfig
    final_episodes: int = 100
    solved: float | None = None


_M_TRAINING = replace(MDNRNN_TRAINING, num_updates=350, evaluate_every=50)

CAR_RACING_LOOP = LoopPreset(
    env=EnvConfig(CAR_ENV, action_repeat=4),
    config=IterationConfig(
        max_rounds=30,
        patience_rounds=None,
        first_policy="slow-driver",
        first_episodes=260,
        controller_episodes=14,
        mdnrnn=MDNRNNConfig(hidden_size=256, num_components=5, termination_head=False, output_dropout=0.1),
        data_config=DataConfig(window=60, batch_size=32, test_fraction=0.05),
        training_config=_M_TRAINING,
        controller=ControllerConfig(features="zh", hidden_size=64),
        temperature=0.5,
        validation_episodes=6,
        test_episodes=2,
        vision=VisionPreset(
            config=VAEConfig(latent_size=32, kl_tolerance=1.0, free_bits="total", min_nats=0.1),
            frames=FrameConfig(batch_size=64),
            training=TrainingConfig(
                num_updates=600,
                optimizer="muon",
                learning_rate=3e-3,
                final_learning_rate=1e-5,
                warmup_updates=50,
                precision="auto",
                evaluate_every=200,
                max_test_batches=5,
            ),
        ),
        rounds=RoundOptions(
            first_max_steps=90,
            noise=ActionNoise(scale=0.3, correlation=0.8),
            keep_best=True,
            continue_m=True,
            training=replace(_M_TRAINING, num_updates=220, learning_rate=2e-3),
            improve=True,
            improvement=ImprovementPreset(
                ppo=PPOConfig(
                    iterations=80,
                    steps=25,
                    horizon=30,
                    discount=0.985,
                    breadth=0.4,
                    spread="state",
                    entropy=0.003,
                    epochs=4,
                    test_every=20,
                    test_dreams=512,
                    test_from="starts",
                ),
                num_dreams=256,
                starts=StartConfig(num_states=6_000, first_frames=0.05, before_ends=0.0),
            ),
            start_rounds=2,
            test_horizon=60,
        ),
    ),
    solved=900.0,
)

LOOPS = {"car-racing": CAR_RACING_LOOP}


def small_loop(preset: LoopPreset) -> LoopPreset:
    """Shrink a loop to two rounds, at lower scores."""
    config, rounds = preset.config, preset.config.rounds
    ppo = replace(rounds.improvement.ppo, iterations=40, test_every=20, test_dreams=128)
    vision = replace(config.vision, training=replace(config.vision.training, num_updates=300))
    config = replace(
        config,
        max_rounds=2,
        first_episodes=100,
        controller_episodes=8,
        validation_episodes=4,
        training_config=replace(config.training_config, num_updates=200),
        vision=vision,
        rounds=replace(
            rounds,
            training=replace(rounds.training, num_updates=100),
            improvement=replace(rounds.improvement, ppo=ppo),
        ),
    )
    return replace(preset, config=config, final_episodes=20)
