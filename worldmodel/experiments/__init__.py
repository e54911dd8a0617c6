"""Complete experiments: the loop of collecting, training and evaluating, and the experiments of the paper.

`iterate` repeats the loop until a target is reached; `Reproduction` runs an experiment of Ha & Schmidhuber (2018) with the
numbers of a `Preset`. Both record every stage and resume after an interruption. Only presets and the order of stages live
here: each stage is one call of a lower package.

Example:
    >>> from worldmodel.experiments import PRESETS
    >>> sorted(PRESETS)
    ['car-racing', 'doom']
    >>> PRESETS["doom"].vision.config.latent_size
    64
"""

from typing import TYPE_CHECKING

from worldmodel.lazy import attach

if TYPE_CHECKING:
    from worldmodel.experiments.car_racing import CAR_RACING_LOOP as CAR_RACING_LOOP
    from worldmodel.experiments.car_racing import LOOPS as LOOPS
    from worldmodel.experiments.car_racing import LoopPreset as LoopPreset
    from worldmodel.experiments.car_racing import small_loop as small_loop
    from worldmodel.experiments.iteration import SCORES_FILE as SCORES_FILE
    from worldmodel.experiments.iteration import iterate as iterate
    from worldmodel.experiments.iteration_config import IterationConfig as IterationConfig
    from worldmodel.experiments.iteration_config import Round as Round
    from worldmodel.experiments.iteration_config import RoundOptions as RoundOptions
    from worldmodel.experiments.iteration_config import best_round as best_round
    from worldmodel.experiments.iteration_config import summarize as summarize
    from worldmodel.experiments.loop_experiment import LoopExperiment as LoopExperiment
    from worldmodel.experiments.loop_experiment import loop_table as loop_table
    from worldmodel.experiments.presets import CAR_RACING as CAR_RACING
    from worldmodel.experiments.presets import DOOM as DOOM
    from worldmodel.experiments.presets import PRESETS as PRESETS
    from worldmodel.experiments.presets import DynamicsPreset as DynamicsPreset
    from worldmodel.experiments.presets import ImprovementPreset as ImprovementPreset
    from worldmodel.experiments.presets import Preset as Preset
    from worldmodel.experiments.presets import VisionPreset as VisionPreset
    from worldmodel.experiments.presets import small as small
    from worldmodel.experiments.reproduction import Reproduction as Reproduction
    from worldmodel.experiments.results import Stages as Stages
    from worldmodel.experiments.results import table as table
else:
    __getattr__, __dir__, __all__ = attach(
        __name__,
        {
            "car_racing": "CAR_RACING_LOOP LOOPS LoopPreset small_loop",
            "iteration": "SCORES_FILE iterate",
            "iteration_config": "IterationConfig Round RoundOptions best_round summarize",
            "loop_experiment": "LoopExperiment loop_table",
            "presets": "CAR_RACING DOOM DynamicsPreset ImprovementPreset PRESETS Preset VisionPreset small",
            "reproduction": "Reproduction",
            "results": "Stages table",
        },
    )
