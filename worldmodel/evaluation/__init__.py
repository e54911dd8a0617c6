"""Scores of agents in the real environment, in dreams and against random play; faithfulness of dreams.

`evaluate` scores one agent everywhere. `probe` asks whether dreams rank fixed policies as the real environment does, which
tells whether a search in these dreams can succeed. `likelihood` and `open_loop` score a world on held-out episodes without an
environment. Evaluation uses agents, dreams and data, and none of them imports it, so
no score can leak into training.

Example:
    >>> from gymnasium.spaces import Discrete
    >>> from worldmodel.evaluation import fixed_policies
    >>> list(fixed_policies(Discrete(2), names=["left", "right"]))[:3]
    ['always left', 'always right', 'uniform']
"""

from typing import TYPE_CHECKING

from worldmodel.lazy import attach

if TYPE_CHECKING:
    from worldmodel.evaluation.anomalies import Surprise as Surprise
    from worldmodel.evaluation.anomalies import Threshold as Threshold
    from worldmodel.evaluation.anomalies import calibrate_surprise as calibrate_surprise
    from worldmodel.evaluation.anomalies import sensors_of as sensors_of
    from worldmodel.evaluation.anomalies import surprise as surprise
    from worldmodel.evaluation.config import EvaluationConfig as EvaluationConfig
    from worldmodel.evaluation.evaluating import Evaluation as Evaluation
    from worldmodel.evaluation.evaluating import evaluate as evaluate
    from worldmodel.evaluation.faithfulness import Probe as Probe
    from worldmodel.evaluation.faithfulness import fixed_policies as fixed_policies
    from worldmodel.evaluation.faithfulness import probe as probe
    from worldmodel.evaluation.forecasting import OpenLoop as OpenLoop
    from worldmodel.evaluation.forecasting import crps as crps
    from worldmodel.evaluation.forecasting import open_loop as open_loop
    from worldmodel.evaluation.held_out import Likelihood as Likelihood
    from worldmodel.evaluation.held_out import likelihood as likelihood
    from worldmodel.evaluation.imputation import impute as impute
    from worldmodel.evaluation.replaying import episode_uncertainty as episode_uncertainty
    from worldmodel.evaluation.replaying import replay as replay
    from worldmodel.evaluation.reward_replays import RewardReplays as RewardReplays
    from worldmodel.evaluation.reward_replays import replay_rewards as replay_rewards
else:
    __getattr__, __dir__, __all__ = attach(
        __name__,
        {
            "anomalies": "Surprise Threshold calibrate_surprise sensors_of surprise",
            "config": "EvaluationConfig",
            "evaluating": "Evaluation evaluate",
            "faithfulness": "Probe fixed_policies probe",
            "forecasting": "OpenLoop crps open_loop",
            "held_out": "Likelihood likelihood",
            "imputation": "impute",
            "replaying": "episode_uncertainty replay",
            "reward_replays": "RewardReplays replay_rewards",
        },
    )
