"""Presets for Doom and CarRacing, compared with Ha & Schmidhuber (2018) and their code.

"Paper" is arXiv:1803.10122 with its appendix; "code" is github.com/hardmaru/WorldModelsExperiments.
A dash means that the source gives no value. Numbers in brackets refer to the reasons below.

| Doom                            | paper         | code                  | here                      |
|---------------------------------|---------------|-----------------------|---------------------------|
| random episodes                 | 10,000        | 10,000                | 10,000                    |
| collection policy               | random        | repeat, 1 to 10 steps | sweep [1]                 |
| episode length, minimum         | -             | 101 steps             | 100 steps                 |
| episode length, maximum         | 2,100 steps   | 2,100 steps           | 2,100 steps               |
| V: latents                      | 64            | 64                    | 64 or fewer [2]           |
| V: training                     | 1 pass        | 10 passes             | 4,000 updates [3]         |
| V: batch size                   | -             | 100                   | 128                       |
| V: optimiser, initial rate      | -             | Adam, 1e-4            | Muon, 3e-3 [3]            |
| V: free bits                    | -             | 32 nats in total      | 64 nats in total [4, 6]   |
| V: weight of errors^4           | -             | 0                     | 100 [6]                   |
| M: hidden units, components     | 512, 5        | 512, 5                | 512, 5                    |
| M: factorisation                | per dimension | per dimension         | per dimension             |
| M: training                     | 20 passes     | 400 passes            | 2,000 updates [3]         |
| M: batch size, window           | -             | 100, 500 steps        | 50, 1,000 steps           |
| M: optimiser, rate              | -             | Adam, 1e-3 decaying   | Muon, 4e-3 to 1e-5 [3]    |
| M: gradient clipping by value   | -             | 1                     | 1                         |
| M: termination weight           | -             | 10                    | 10                        |
| M: termination gradient to LSTM | -             | 1                     | 0.1 [7]                   |
| reward                          | 1 per step    | 1 per step            | predicted by M            |
| controller: inputs              | z, h, c       | z, h, c               | z, h, c                   |
| controller: weights             | 1,088         | 1,088, no bias        | latents + 1,024, no bias  |
| CMA-ES: population, rollouts    | 64, 16        | 64, 16                | 64, 16                    |
| CMA-ES: initial sigma           | -             | 0.1                   | 0.1                       |
| CMA-ES: generations             | -             | -                     | 3 [8]                     |
| CMA-ES: test interval, dreams   | -             | 25, 1,024             | 3, 1,024                  |
| PPO after CMA-ES                | -             | -                     | 300 iterations [8]        |
| temperature that transfers      | 1.15          | 1.25                  | 0.1 to 1.3                |
| end of a dream                  | p > 0.5       | p > 0.5               | sampled, calibrated p [9] |

| CarRacing                     | paper         | code             | here                    |
|-------------------------------|---------------|------------------|-------------------------|
| random episodes               | 10,000        | 10,000           | 10,000                  |
| collection policy             | random        | random networks  | Brownian                |
| episode length, maximum       | 1,000 steps   | 1,000 steps      | 1,000 steps             |
| V: latents                    | 32            | 32               | 32                      |
| V: training                   | 1 pass        | 10 passes        | 12,000 updates [3]      |
| V: batch size                 | -             | 100              | 128                     |
| V: optimiser, initial rate    | -             | Adam, 1e-4       | Adam, 1e-3              |
| V: free bits                  | -             | 16 nats in total | 0.5 nats per latent [5] |
| M: hidden units, components   | 256, 5        | 256, 5           | 256, 5                  |
| M: factorisation              | per dimension | per dimension    | per dimension           |
| M: training                   | 20 passes     | 4,000 updates    | 2,500 updates [3]       |
| M: batch size, window         | -             | 100, 999 steps   | 100, 999 steps          |
| M: optimiser, rate            | -             | Adam, 1e-3       | Muon, 4e-3 to 1e-5 [3]  |
| M: gradient clipping by value | -             | 1                | 1                       |
| M: termination weight         | none          | none             | 1                       |
| reward                        | not modelled  | not modelled     | predicted by M          |
| controller: inputs            | z, h          | z, h             | z, h                    |
| controller: weights           | 867           | 867              | 867                     |
| CMA-ES: population, rollouts  | 64, 16        | 64, 16           | 64, 16                  |
| CMA-ES: initial sigma         | -             | 0.1              | 0.1                     |
| CMA-ES: generations           | 1,800         | -                | 20                      |
| CMA-ES: test interval, dreams | -             | 25, 1,024        | 5, 1,024                |
| end of a dream                | never         | never            | never                   |

The reasons, with measurements in dev/LOG.md:

1. Sweeps: the controllers that a search finds move from wall to wall. "repeat" with holds of 1 to
   10 steps never does, and dreams are too optimistic about states without data.
2. Fewer latents: after V's training, latents with less than 0.1 nats are removed, as they carry no
   information. M learns much faster without their noise.
3. Updates and Muon: passes over the data are not comparable across batch sizes. With Muon, 700
   updates of M reach a loss that 3,000 updates with Adam do not reach, and 800 updates of V replace
   2,000 with Adam.
4. Free bits in total, as in the authors' code: V then encodes a frame in few latents with little
   noise, and M can predict the jumps of each latent. Per latent, all 64 carry a little information
   under much noise. A new fireball then changes all of them at once, which dreams with independent
   dimensions hardly ever sample.
5. Free bits per latent: a weak M predicts such latents more easily. The other numbers for M are
   those of Doom and were not measured.
6. Large errors, and twice the authors' free bits: V then shows six in ten of the fireballs of one
   or two pixels, not one in seven.
7. Termination gradient: at weight 1, the LSTM overfits the few terminations in the data.
8. Search: 3 generations save time; the authors' search took many more. PPO then improves the
   controller in short dreams that start from states of real episodes.
9. Sampled terminations: many fireballs come from outside of the frame or do not kill, so p rarely
   exceeds 0.5 before a termination. If dreams end only at p > 0.5, smaller risks have no cost, and
   the agent learns to take them.

All other options of M are the library's defaults. M predicts the change of z; its heads see z and
the action in addition to h.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from worldmodel.agents import ControllerConfig, PPOConfig, SearchConfig
from worldmodel.data import EnvMaker
from worldmodel.dream import DreamPrecision, StartConfig, TerminationRule
from worldmodel.envs import CAR_STEPS, DOOM_STEPS
from worldmodel.mixtures import Factorization
from worldmodel.models import MDNRNNConfig, VAEConfig
from worldmodel.training import DataConfig, FrameConfig, TrainingConfig


@dataclass(frozen=True, kw_only=True)
class VisionPreset:
    """How V is trained.

    Args:
        config: sizes and loss.
        frames: batches of frames.
        training: updates and learning rate.
    """

    config: VAEConfig
    frames: FrameConfig = field(default_factory=FrameConfig)
    training: TrainingConfig


@dataclass(frozen=True, kw_only=True)
class DynamicsPreset:
    """How M is trained.

    Args:
        mdnrnn: fields of `MDNRNNConfig`.
        data: windows and batches.
        training: updates, learning rate and calibration.
    """

    mdnrnn: MDNRNNConfig
    data: DataConfig
    training: TrainingConfig


@dataclass(frozen=True, kw_only=True)
class ImprovementPreset:
    """How the result of a search is improved by PPO, in short dreams from real states.

    Args:
        ppo: numbers of PPO.
        num_dreams: short dreams at once.
        starts: start states of the dreams.
    """

    ppo: PPOConfig
    num_dreams: int = 1024
    starts: StartConfig = field(default_factory=StartConfig)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Configuration of an experiment.

    Args:
        env: id or constructor of the environment.
        max_steps: maximum number of steps of an episode.
        policy: behaviour policy of the collection.
        num_episodes: number of episodes to collect.
        small_episodes: number of episodes to collect for `small`, 150,000 to 200,000 steps.
        vision: training of V.
        dynamics: training of M.
        controller: kind of controller.
        search: numbers of the search of the controller.
        rollouts: dreams per candidate of the search.
        improvement: training of the controller by PPO after the search; None skips it.
        termination: rule that ends dreams.
        dream_precision: precision of M's matrix products in dreams; see `Dreams`.
        temperatures: temperatures of dreams; the experiment searches one controller at each.
        probe_dreams: dreamed episodes per fixed policy and temperature in the probe.
        searches: number of controllers, of different seeds, at the temperature whose first one is
            best in reality.
        test_dreams: dreamed episodes per evaluation of a controller.
        test_episodes: real episodes per evaluation of a controller.
        paper: scores of the paper in reality, by temperature; None is random play.
        solved: mean score over `test_episodes` real episodes above which the task counts as solved.
    """

    env: str | EnvMaker
    max_steps: int
    policy: str
    num_episodes: int
    small_episodes: int = 200
    vision: VisionPreset
    dynamics: DynamicsPreset
    controller: ControllerConfig
    search: SearchConfig
    rollouts: int = 16
    improvement: ImprovementPreset | None = None
    termination: TerminationRule = "threshold"
    dream_precision: DreamPrecision = "auto"
    temperatures: tuple[float, ...] = (1.0,)
    probe_dreams: int = 256
    searches: int = 3
    test_dreams: int = 1024
    test_episodes: int = 100
    paper: Mapping[float | None, str] = field(default_factory=dict)
    solved: float | None = None

    def identity(self) -> dict[str, Any]:
        """Return all numbers for the record of a run, without later ones that have their default."""
        numbers, data = asdict(self), self.dynamics.data
        if self.improvement is not None:
            numbers["improvement"]["ppo"] = self.improvement.ppo.identity()
        numbers["dynamics"]["data"] = {"resident": data.resident} | data.identity()
        return numbers


_SMALL_VAE_UPDATES = {"adam": 1_800, "muon": 1_200}
_SEARCH = SearchConfig(population=64, sigma=0.1, generations=20, test_every=5, test_dreams=1024, patience=2)
_FRAMES = FrameConfig(batch_size=128)
_VAE_TRAINING = TrainingConfig(
    num_updates=12_000,
    learning_rate=1e-3,
    final_learning_rate=1e-5,
    warmup_updates=100,
    precision="auto",
    evaluate_every=1000,
    max_test_batches=40,
)
MDNRNN_TRAINING = TrainingConfig(
    num_updates=2_500,
    optimizer="muon",
    learning_rate=4e-3,
    final_learning_rate=1e-5,
    clip_norm=None,
    clip_value=1.0,
    precision="auto",
    evaluate_every=200,
    max_test_batches=8,
)

DOOM = Preset(
    env="worldmodel.environments:DoomTakeCover-v0",
    max_steps=DOOM_STEPS,
    policy="sweep",
    num_episodes=10_000,
    small_episodes=500,
    vision=VisionPreset(
        config=VAEConfig(latent_size=64, kl_tolerance=1.0, free_bits="total", large_error_weight=100.0, min_nats=0.1),
        frames=_FRAMES,
        training=replace(_VAE_TRAINING, num_updates=4_000, optimizer="muon", learning_rate=3e-3),
    ),
    dynamics=DynamicsPreset(
        mdnrnn=MDNRNNConfig(
            hidden_size=512,
            num_components=5,
            factorization=Factorization.PER_DIMENSION,
            termination_weight=10.0,
            termination_gradient=0.1,
            outcome_size=0,
        ),
        data=DataConfig(window=1000, batch_size=50, test_fraction=0.05, min_length=100),
        training=replace(MDNRNN_TRAINING, num_updates=2_000, calibrate=True),
    ),
    termination="sample",
    controller=ControllerConfig(features="zhc", bias=False, ordered=True),
    search=replace(_SEARCH, generations=3, test_every=3, target=0.98 * DOOM_STEPS),
    improvement=ImprovementPreset(
        ppo=PPOConfig(
            iterations=300, horizon=300, discount=0.997, gae_lambda=0.97, entropy=0.01, test_every=75, test_dreams=512
        ),
        starts=StartConfig(num_states=10_000, before_ends=0.3, even="times"),
    ),
    temperatures=(0.1, 0.5, 1.0, 1.15, 1.3),
    paper={
        0.1: "193 ± 58",
        0.5: "196 ± 50",
        1.0: "868 ± 511",
        1.15: "1092 ± 556",
        1.3: "753 ± 139",
        None: "210 ± 108",
    },
    solved=750.0,
)

CAR_RACING = Preset(
    env="worldmodel.environments:CarRacing64-v0",
    max_steps=CAR_STEPS,
    policy="brownian",
    num_episodes=10_000,
    vision=VisionPreset(
        config=VAEConfig(latent_size=32, kl_tolerance=0.5, free_bits="dimension"), frames=_FRAMES, training=_VAE_TRAINING
    ),
    dynamics=DynamicsPreset(
        mdnrnn=MDNRNNConfig(hidden_size=256, num_components=5, factorization=Factorization.PER_DIMENSION, outcome_size=0),
        data=DataConfig(window=999, batch_size=100, test_fraction=0.05),
        training=MDNRNN_TRAINING,
    ),
    controller=ControllerConfig(features="zh", bias=True),
    search=_SEARCH,
    rollouts=16,
    solved=900.0,
)

PRESETS = {"doom": DOOM, "car-racing": CAR_RACING}


def small(preset: Preset) -> Preset:
    """Shrink an experiment to about 15 minutes on 2 CPU cores, at lower scores.

    CarRacing takes about 45 minutes, as its simulator is slow.
    """
    vision, dynamics, improvement = preset.vision, preset.dynamics, preset.improvement
    updates = _SMALL_VAE_UPDATES[vision.training.optimizer]
    if improvement is not None:
        ppo = replace(improvement.ppo, iterations=40, test_every=20, test_dreams=128)
        improvement = ImprovementPreset(ppo=ppo, num_dreams=512, starts=replace(improvement.starts, num_states=3_000))
    data = replace(dynamics.data, window=200, batch_size=50, test_fraction=0.1)  # holds out about 50 terminations of Doom
    return replace(
        preset,
        num_episodes=preset.small_episodes,
        vision=replace(vision, training=replace(vision.training, num_updates=updates, evaluate_every=300, max_test_batches=10)),
        dynamics=replace(
            dynamics,
            mdnrnn=replace(dynamics.mdnrnn, hidden_size=256),
            data=data,
            training=replace(dynamics.training, num_updates=350, evaluate_every=50),
        ),
        search=replace(
            preset.search, generations=max(3, preset.search.generations // 2), population=32, test_dreams=256, patience=2
        ),
        rollouts=8,
        improvement=improvement,
        temperatures=preset.temperatures if len(preset.temperatures) == 1 else (0.1, 1.0, 1.15),
        probe_dreams=64,
        searches=1,
        test_dreams=256,
        test_episodes=20,
    )
