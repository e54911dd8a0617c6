"""Training of V and M: `fit` for a world model, `train_vae` for images, `encode_store` in between.

One loop (``loop.py``) trains both; it saves its state, resumes to the same bits, and stops at a non-finite loss. Training
and dreams do not import each other: a dream needs weights, not how they were made.

Example:
    >>> from worldmodel.training import TrainingConfig, learning_rate
    >>> config = TrainingConfig(num_updates=100, warmup_updates=10, learning_rate=1e-3, final_learning_rate=1e-4)
    >>> [f"{learning_rate(config, update):.0e}" for update in (0, 9, 99)]
    ['1e-04', '1e-03', '1e-04']
"""

from typing import TYPE_CHECKING

from worldmodel.lazy import attach

if TYPE_CHECKING:
    from worldmodel.training.config import DataConfig as DataConfig
    from worldmodel.training.config import FrameConfig as FrameConfig
    from worldmodel.training.config import TrainingConfig as TrainingConfig
    from worldmodel.training.config import learning_rate as learning_rate
    from worldmodel.training.decisions import FIT_FILE as FIT_FILE
    from worldmodel.training.encode import encode_store as encode_store
    from worldmodel.training.fit_cameras import CAMERAS as CAMERAS
    from worldmodel.training.fit_cameras import train_cameras as train_cameras
    from worldmodel.training.fit_vision import train_vae as train_vae
    from worldmodel.training.fit_world import fit as fit
    from worldmodel.training.frames import FrameData as FrameData
    from worldmodel.training.likelihood import baseline_nll as baseline_nll
    from worldmodel.training.likelihood import calibrate_termination as calibrate_termination
    from worldmodel.training.likelihood import platt_scaling as platt_scaling
    from worldmodel.training.likelihood import termination_logits as termination_logits
    from worldmodel.training.likelihood import termination_scores as termination_scores
    from worldmodel.training.log import MetricsLog as MetricsLog
    from worldmodel.training.log import read_metrics as read_metrics
    from worldmodel.training.loop import NonFiniteLossError as NonFiniteLossError
    from worldmodel.training.loop import TrainingResult as TrainingResult
    from worldmodel.training.loop import train as train
    from worldmodel.training.optimizers import make_optimizer as make_optimizer
    from worldmodel.training.optimizers import orthogonalize as orthogonalize
    from worldmodel.training.quality import TrainingQualityWarning as TrainingQualityWarning
    from worldmodel.training.reward_atoms import REWARD_COMPONENTS as REWARD_COMPONENTS
    from worldmodel.training.reward_atoms import find_atoms as find_atoms
    from worldmodel.training.windows import SequenceData as SequenceData
    from worldmodel.training.windows import WindowSampler as WindowSampler
else:
    __getattr__, __dir__, __all__ = attach(
        __name__,
        {
            "config": "DataConfig FrameConfig TrainingConfig learning_rate",
            "decisions": "FIT_FILE",
            "encode": "encode_store",
            "fit_cameras": "CAMERAS train_cameras",
            "fit_vision": "train_vae",
            "fit_world": "fit",
            "frames": "FrameData",
            "likelihood": "baseline_nll calibrate_termination platt_scaling termination_logits termination_scores",
            "log": "MetricsLog read_metrics",
            "loop": "NonFiniteLossError TrainingResult train",
            "optimizers": "make_optimizer orthogonalize",
            "quality": "TrainingQualityWarning",
            "reward_atoms": "REWARD_COMPONENTS find_atoms",
            "windows": "SequenceData WindowSampler",
        },
    )
