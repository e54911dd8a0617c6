"""V, M, and the world model that joins them.

V (`Vision`) maps an observation to a latent vector z and back: `StateNormalizer` for vectors, `ConvVAE` for images. M
(`MDNRNN`) predicts the next z, the reward and the termination from z and the action. `WorldModel` is both, with the
environment's spaces and start states, and is what is saved and loaded. Models know nothing of training or of dreams.

Example:
    >>> import numpy as np
    >>> from gymnasium.spaces import Box
    >>> from worldmodel.models import StateNormalizer
    >>> vision = StateNormalizer(Box(-np.inf, np.inf, (1,), np.float32))
    >>> mean, log_variance = vision.fit([np.array([[1.0], [3.0]])]).encode(np.array([[2.0], [3.0]]))
    >>> mean.flatten()
    tensor([0., 1.])
"""

from typing import TYPE_CHECKING

from worldmodel.lazy import attach

if TYPE_CHECKING:
    from worldmodel.models.action_units import ActionUnits as ActionUnits
    from worldmodel.models.batch import DataStatistics as DataStatistics
    from worldmodel.models.batch import SequenceBatch as SequenceBatch
    from worldmodel.models.batch import hold_last as hold_last
    from worldmodel.models.cameras import Cameras as Cameras
    from worldmodel.models.encoded import DTYPES as DTYPES
    from worldmodel.models.encoded import EncodedObservations as EncodedObservations
    from worldmodel.models.encoded import EncodedSteps as EncodedSteps
    from worldmodel.models.encoded import Encoder as Encoder
    from worldmodel.models.encoded import encode_all as encode_all
    from worldmodel.models.encoded import encode_episodes as encode_episodes
    from worldmodel.models.encoded import encoded_bytes as encoded_bytes
    from worldmodel.models.encoded import encoded_form as encoded_form
    from worldmodel.models.encoded import encoded_with as encoded_with
    from worldmodel.models.encoded import gather as gather
    from worldmodel.models.ensemble import MDNRNNEnsemble as MDNRNNEnsemble
    from worldmodel.models.ensemble import members_of as members_of
    from worldmodel.models.ensemble import model_from_config as model_from_config
    from worldmodel.models.ensemble import refuse_ensemble as refuse_ensemble
    from worldmodel.models.extra_inputs import ExtraInputs as ExtraInputs
    from worldmodel.models.extra_inputs import check_elapsed as check_elapsed
    from worldmodel.models.extra_inputs import with_elapsed as with_elapsed
    from worldmodel.models.features import FEATURE_KINDS as FEATURE_KINDS
    from worldmodel.models.features import FeatureKind as FeatureKind
    from worldmodel.models.features import FeatureSpace as FeatureSpace
    from worldmodel.models.features import Origin as Origin
    from worldmodel.models.features import check_features as check_features
    from worldmodel.models.features import feature_size as feature_size
    from worldmodel.models.features import feature_space as feature_space
    from worldmodel.models.features import latent_features as latent_features
    from worldmodel.models.layout import find_layout as find_layout
    from worldmodel.models.layout import vision_for as vision_for
    from worldmodel.models.lstm import HalfPrecisionLayer as HalfPrecisionLayer
    from worldmodel.models.lstm import LayerNormLSTM as LayerNormLSTM
    from worldmodel.models.lstm import activate_gates as activate_gates
    from worldmodel.models.lstm import run_lstm as run_lstm
    from worldmodel.models.lstm import stack_layers as stack_layers
    from worldmodel.models.lstm import stack_weights as stack_weights
    from worldmodel.models.mdnrnn import MDNRNN as MDNRNN
    from worldmodel.models.mdnrnn import State as State
    from worldmodel.models.mdnrnn_config import AUTO_LATENT_HEAD as AUTO_LATENT_HEAD
    from worldmodel.models.mdnrnn_config import DEFAULT_LATENT_HEAD as DEFAULT_LATENT_HEAD
    from worldmodel.models.mdnrnn_config import MDNRNNConfig as MDNRNNConfig
    from worldmodel.models.missing import Filled as Filled
    from worldmodel.models.missing import check_maskable as check_maskable
    from worldmodel.models.missing import fill_missing as fill_missing
    from worldmodel.models.missing import fill_step as fill_step
    from worldmodel.models.missing import filled_batches as filled_batches
    from worldmodel.models.missing import held_batches as held_batches
    from worldmodel.models.missing import maskable_columns as maskable_columns
    from worldmodel.models.missing import masked_terms as masked_terms
    from worldmodel.models.missing import with_indicators as with_indicators
    from worldmodel.models.outcome import DEFAULT_OUTCOME_SIZE as DEFAULT_OUTCOME_SIZE
    from worldmodel.models.outcome import Outcome as Outcome
    from worldmodel.models.outcome import Prediction as Prediction
    from worldmodel.models.state_normalizer import StateNormalizer as StateNormalizer
    from worldmodel.models.vae import IN_USE as IN_USE
    from worldmodel.models.vae import ConvVAE as ConvVAE
    from worldmodel.models.vae import FrameBatch as FrameBatch
    from worldmodel.models.vae import VAEConfig as VAEConfig
    from worldmodel.models.vae import divergence as divergence
    from worldmodel.models.vision import VISION_FILE as VISION_FILE
    from worldmodel.models.vision import VISION_FILES as VISION_FILES
    from worldmodel.models.vision import Vision as Vision
    from worldmodel.models.vision import draw_latent as draw_latent
    from worldmodel.models.world import WORLD_FILE as WORLD_FILE
    from worldmodel.models.world import WORLD_FILES as WORLD_FILES
    from worldmodel.models.world import WorldModel as WorldModel
    from worldmodel.models.world import open_world as open_world
    from worldmodel.models.world import require_world as require_world
else:
    __getattr__, __dir__, __all__ = attach(
        __name__,
        {
            "action_units": "ActionUnits",
            "batch": "DataStatistics SequenceBatch hold_last",
            "cameras": "Cameras",
            "encoded": (
                "DTYPES EncodedObservations EncodedSteps Encoder encode_all encode_episodes encoded_bytes "
                "encoded_form encoded_with gather"
            ),
            "extra_inputs": "ExtraInputs check_elapsed with_elapsed",
            "ensemble": "MDNRNNEnsemble members_of model_from_config refuse_ensemble",
            "features": (
                "FEATURE_KINDS FeatureKind FeatureSpace Origin check_features feature_size feature_space latent_features"
            ),
            "layout": "find_layout vision_for",
            "lstm": "HalfPrecisionLayer LayerNormLSTM activate_gates run_lstm stack_layers stack_weights",
            "mdnrnn": "MDNRNN State",
            "mdnrnn_config": "AUTO_LATENT_HEAD DEFAULT_LATENT_HEAD MDNRNNConfig",
            "missing": (
                "Filled check_maskable fill_missing fill_step filled_batches held_batches maskable_columns "
                "masked_terms with_indicators"
            ),
            "outcome": "DEFAULT_OUTCOME_SIZE Outcome Prediction",
            "state_normalizer": "StateNormalizer",
            "vae": "ConvVAE FrameBatch IN_USE VAEConfig divergence",
            "vision": "VISION_FILE VISION_FILES Vision draw_latent",
            "world": "WORLD_FILE WORLD_FILES WorldModel open_world require_world",
        },
    )
