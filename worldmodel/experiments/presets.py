"""The numbers of Ha & Schmidhuber (2018), beside those of their code where the two differ, and what is used here.

"Paper" is arXiv:1803.10122 with its appendix; "code" is github.com/hardmaru/WorldModelsExperiments.

| number                         | Doom, paper | Doom, code       | CarRacing, paper | CarRacing, code | here                  |
|--------------------------------|-------------|------------------|------------------|-----------------|-----------------------|
| random episodes                | 10,000      | 10,000           | 10,000           | 10,000          | as they are           |
| policy of collection           | random      | repeated, 1-10   | random           | random networks | sweeps / Brownian     |
| M: shortest episode            | -           | 101 steps        | -                | -               | 100 / 1               |
| longest episode                | 2,100 steps | 2,100 steps      | 1,000 steps      | 1,000 steps     | as they are           |
| z                              | 64          | 64               | 32               | 32              | 64, see below / 32    |
| V: passes over the data        | 1           | 10               | 1                | 10              | updates, see below    |
| V: batch                       | -           | 100              | -                | 100             | 128                   |
| V: optimiser, rate down from   | -           | Adam, 1e-4       | -                | Adam, 1e-4      | Muon 3e-3 / Adam 1e-3 |
| V: free nats of the KL         | -           | 32 on the total  | -                | 16 on the total | 64 total / 0.5 each   |
| V: weight of errors^4          | -           | none             | -                | none            | 100 / none            |
| M: hidden, mixtures            | 512, 5      | 512, 5           | 256, 5           | 256, 5          | as they are           |
| M: factorisation               | per dim.    | per dim.         | per dim.         | per dim.        | per dimension         |
| M: passes over the data        | 20          | 400              | 20               | 4,000 updates   | updates, see below    |
| M: batch, sequence             | -           | 100, 500         | -                | 100, 999        | 50, 1,000 / 100, 999  |
| M: optimiser, rate             | -           | Adam, 1e-3 down  | -                | Adam, 1e-3      | Muon, 4e-3 to 1e-5    |
| M: clipping, by value          | -           | 1                | -                | 1               | 1                     |
| M: weight of a termination     | -           | 10               | none             | none            | 10 / 1                |
| M: its gradient on the LSTM    | -           | 1                | none             | none            | 0.1 / 1               |
| reward                         | 1 a step    | 1 a step         | not modelled     | not modelled    | reward head           |
| controller sees                | z, h, c     | z, h, c          | z, h             | z, h            | z, h, c / z, h        |
| its weights                    | 1,088       | 1,088, no bias   | 867              | 867             | z kept + 1,024 / 867  |
| CMA-ES: population, rollouts   | 64, 16      | 64, 16           | 64, 16           | 64, 16          | as they are           |
| CMA-ES: first sigma            | -           | 0.1              | -                | 0.1             | 0.1                   |
| CMA-ES: generations            | -           | -                | 1,800            | -               | 3 / 20                |
| test of the mean               | -           | 25 gen., 1,024   | -                | 25 gen., 1,024  | 3 / 5 gen., 1,024     |
| PPO after it                   | -           | -                | -                | -               | 300 iterations / -    |
| temperature that transfers     | 1.15        | 1.25             | -                | -               | 0.1 to 1.3            |
| a dream ends                   | p > 0.5     | p > 0.5          | never            | never           | by calibrated p/never |

Passes over the data say nothing across batch sizes, so trainings are given in updates; with Muon, M learns in 700 what it did
not in 3,000 with Adam, and V in 800 what takes Adam 2,000. Doom's V has its free bits on the total, as the authors' has: it
packs a picture into few latents with little noise, whose leaps M can dream one by one. The others, which say nothing, are cut
off when V is trained: M learns much faster without their noise. It has twice the authors' free bits, and large errors weigh
more, as it shows one in seven of the fireballs of one or two pixels otherwise, and six in ten so. With free bits for each
dimension all 64 latents carry a little under much noise, and then what appears at once in all of them, a fireball, hardly ever
does in a dream of independent dimensions; it is easier on a weak M, though, and CarRacing, whose other numbers of M are
Doom's, not measured, keeps it, and Adam for V. Doom's random play sweeps from wall to wall, with random draws between: the
controllers that a search finds do so, which random play with holds of 1 to 10 steps never does, and where M has no data its
dreams are too kind. Of the termination's gradient a tenth reaches the LSTM, which would else learn the deaths by heart. A
search takes 3 generations, for time's sake, and PPO in short dreams amid real episodes goes on from there; the authors' took
many more. A dream ends with the head's probability, calibrated: many a fireball comes from beside the picture or does not
kill, so that a death is rarely surer than p > 0.5, and an agent that pays for nothing below learns to take such risks.
dev/LOG.md has the measurements. What is the library's own in the model (it predicts the change of z; its heads see z and the
action beside h) is as its defaults have it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from worldmodel.agents import PPOConfig
from worldmodel.data import EnvMaker
from worldmodel.dream import DreamPrecision, TerminationRule
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
        starts: start states of the dreams: arguments of `StartBank.along`.
    """

    ppo: PPOConfig
    num_dreams: int = 1024
    starts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Every number of an experiment.

    Args:
        env: id of the environment.
        max_steps: longest episode.
        policy: of the collection.
        num_episodes: collected at random.
        small_episodes: number of episodes for `small`, 150,000 to 200,000 steps.
        vision: how V is trained.
        dynamics: how M is trained.
        controller: how the controller is searched: arguments of `evolve`.
        rollouts: dreams of each candidate.
        improvement: how the result of the search is improved by PPO; None leaves it as it is.
        termination: how dreams end.
        dream_precision: of M's matrix products in dreams; see `Dreams`.
        temperatures: of the dreams that controllers are searched in, one controller each.
        probe_dreams: dreamed episodes of each fixed policy in the probe, at each temperature.
        searches: controllers, each with a seed of its own, at the temperature whose first one was best in reality.
        test_dreams: dreamed episodes that a controller is scored on.
        test_episodes: real ones.
        paper: the paper's scores in reality by temperature; of random play under None.
        solved: the mean score over `test_episodes` real ones from which the task counts as solved.
    """

    env: str | EnvMaker
    max_steps: int
    policy: str
    num_episodes: int
    small_episodes: int = 200
    vision: VisionPreset
    dynamics: DynamicsPreset
    controller: Mapping[str, Any] = field(default_factory=dict)
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

    def options(self, part: str) -> dict[str, Any]:
        """The options that a script of this name takes from the preset, by their Python names."""
        collect = {"env": self.env, "max_steps": self.max_steps, "policy": self.policy, "episodes": self.num_episodes}
        dreams = {"termination": self.termination, "precision": self.dream_precision}
        vision, dynamics, improvement = self.vision, self.dynamics, self.improvement
        parts: dict[str, dict[str, Any]] = {
            "collect": collect,
            "train_vae": asdict(vision.config) | asdict(vision.frames) | vision.training.identity(),
            "train_mdnrnn": {name: value for name, value in dynamics.mdnrnn.to_json().items() if name != "termination_head"}
            | dynamics.data.identity()
            | dynamics.training.identity()
            | {"calibrate": dynamics.training.calibrate},
            "train_controller": dict(self.controller) | {"rollouts": self.rollouts} | dreams,
            "improve_controller": {}
            if improvement is None
            else asdict(improvement.ppo) | dict(improvement.starts) | dreams | {"num_dreams": improvement.num_dreams},
            "evaluate": {"env": self.env, "max_steps": self.max_steps} | dreams,
        }
        return parts[part]


_SMALL_VAE_UPDATES = {"adam": 1_800, "muon": 1_200}
_SEARCH = {"population": 64, "sigma": 0.1, "generations": 20, "test_every": 5, "test_dreams": 1024, "patience": 2}
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
_MDNRNN_TRAINING = TrainingConfig(
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
        ),
        data=DataConfig(window=1000, batch_size=50, test_fraction=0.05, min_length=100),
        training=replace(_MDNRNN_TRAINING, num_updates=2_000, calibrate=True),
    ),
    termination="sample",
    controller={
        **_SEARCH,
        "generations": 3,
        "test_every": 3,
        "features": "zhc",
        "bias": False,
        "ordered": True,
        "target": 0.98 * DOOM_STEPS,
    },
    improvement=ImprovementPreset(
        ppo=PPOConfig(
            iterations=300, horizon=300, discount=0.997, gae_lambda=0.97, entropy=0.01, test_every=75, test_dreams=512
        ),
        starts={"num_states": 10_000, "before_ends": 0.3, "even": "times"},
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
        mdnrnn=MDNRNNConfig(hidden_size=256, num_components=5, factorization=Factorization.PER_DIMENSION),
        data=DataConfig(window=999, batch_size=100, test_fraction=0.05),
        training=_MDNRNN_TRAINING,
    ),
    controller={**_SEARCH, "features": "zh", "bias": True},
    rollouts=16,
    solved=900.0,
)

PRESETS = {"doom": DOOM, "car-racing": CAR_RACING}


def small(preset: Preset) -> Preset:
    """The same experiment with less of everything, and lower scores: a quarter of an hour, of CarRacing's slow game three."""
    vision, dynamics, improvement = preset.vision, preset.dynamics, preset.improvement
    updates = _SMALL_VAE_UPDATES[vision.training.optimizer]
    if improvement is not None:
        ppo = replace(improvement.ppo, iterations=40, test_every=20, test_dreams=128)
        improvement = ImprovementPreset(ppo=ppo, num_dreams=512, starts=dict(improvement.starts) | {"num_states": 3_000})
    return replace(
        preset,
        num_episodes=preset.small_episodes,
        vision=replace(vision, training=replace(vision.training, num_updates=updates, evaluate_every=300, max_test_batches=10)),
        dynamics=replace(
            dynamics,
            mdnrnn=replace(dynamics.mdnrnn, hidden_size=256),
            data=replace(dynamics.data, window=200, batch_size=50, test_fraction=0.1),  # some 50 ends of Doom, to calibrate on
            training=replace(dynamics.training, num_updates=350, evaluate_every=50),
        ),
        controller={
            **preset.controller,
            "generations": max(3, preset.controller["generations"] // 2),
            "population": 32,
            "test_dreams": 256,
            "patience": 2,
        },
        rollouts=8,
        improvement=improvement,
        temperatures=preset.temperatures if len(preset.temperatures) == 1 else (0.1, 1.0, 1.15),
        probe_dreams=64,
        searches=1,
        test_dreams=256,
        test_episodes=20,
    )
