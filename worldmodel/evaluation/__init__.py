"""TODO evaluation."""

from typing import TYPE_CHECKING

from worldmodel.lazy import attach

if TYPE_CHECKING:
    from worldmodel.evaluation.config import EvaluationConfig as EvaluationConfig
    from worldmodel.evaluation.evaluating import Evaluation as Evaluation
    from worldmodel.evaluation.evaluating import evaluate as evaluate
    from worldmodel.evaluation.faithfulness import Probe as Probe
    from worldmodel.evaluation.faithfulness import fixed_policies as fixed_policies
    from worldmodel.evaluation.faithfulness import probe as probe
    from worldmodel.evaluation.replay import replay as replay
else:
    __getattr__, __dir__, __all__ = attach(
        __name__,
        {
            "config": "EvaluationConfig",
            "evaluating": "Evaluation evaluate",
            "faithfulness": "Probe fixed_policies probe",
            "replay": "replay",
        },
    )
