"""Gaussian mixtures and the network heads that predict them.

A head owns its loss, its sampling, the meaning of temperature, and the number of random numbers per sample. It maps
features from any network to a distribution: `MixtureDensityNetwork` puts a head on a perceptron, the models package on an
LSTM. The formulas are in ``gaussian.py`` and ``heads.py``.

Example:
    >>> import torch
    >>> from worldmodel.mixtures import GaussianMixture
    >>> mean = torch.tensor([[-1.0], [2.0]])  # K = 2 components, D = 1
    >>> mixture = GaussianMixture(torch.tensor([0.25, 0.75]).log(), mean, torch.zeros(2, 1))
    >>> mixture.expectation()
    tensor([1.2500])
    >>> mixture.sample(temperature=0.0)  # the mode of the heaviest component
    tensor([2.])
"""

from typing import TYPE_CHECKING

from worldmodel.lazy import attach

if TYPE_CHECKING:
    from worldmodel.mixtures.autoregressive import AutoregressiveHead as AutoregressiveHead
    from worldmodel.mixtures.autoregressive import AutoregressiveMixture as AutoregressiveMixture
    from worldmodel.mixtures.composite_head import LIKELIHOODS as LIKELIHOODS
    from worldmodel.mixtures.composite_head import CompositeDistribution as CompositeDistribution
    from worldmodel.mixtures.composite_head import CompositeHead as CompositeHead
    from worldmodel.mixtures.composite_head import SubHead as SubHead
    from worldmodel.mixtures.conditioning import condition as condition
    from worldmodel.mixtures.conditioning import count_observed as count_observed
    from worldmodel.mixtures.conditioning import log_prob_of_numbers as log_prob_of_numbers
    from worldmodel.mixtures.conditioning import marginal_log_prob as marginal_log_prob
    from worldmodel.mixtures.conditioning import marginal_log_probs as marginal_log_probs
    from worldmodel.mixtures.conditioning import mean_given as mean_given
    from worldmodel.mixtures.conditioning import sample_given as sample_given
    from worldmodel.mixtures.discrete_heads import Bits as Bits
    from worldmodel.mixtures.discrete_heads import BitsHead as BitsHead
    from worldmodel.mixtures.discrete_heads import ChoiceHead as ChoiceHead
    from worldmodel.mixtures.discrete_heads import OneHot as OneHot
    from worldmodel.mixtures.discrete_heads import Segments as Segments
    from worldmodel.mixtures.gaussian import HALF_LOG_TWO_PI as HALF_LOG_TWO_PI
    from worldmodel.mixtures.gaussian import GaussianMixture as GaussianMixture
    from worldmodel.mixtures.gaussian import at_least_float32 as at_least_float32
    from worldmodel.mixtures.gaussian import categorical as categorical
    from worldmodel.mixtures.gaussian import check_temperature as check_temperature
    from worldmodel.mixtures.gaussian import shared_draws as shared_draws
    from worldmodel.mixtures.heads import DEFAULT_MIN_SCALE as DEFAULT_MIN_SCALE
    from worldmodel.mixtures.heads import Factorization as Factorization
    from worldmodel.mixtures.heads import MixtureHead as MixtureHead
    from worldmodel.mixtures.heads import NoiseType as NoiseType
    from worldmodel.mixtures.heads import check_noise as check_noise
    from worldmodel.mixtures.heads import soft_floor as soft_floor
    from worldmodel.mixtures.latent_head import CONSTANTS as CONSTANTS
    from worldmodel.mixtures.latent_head import LatentDistribution as LatentDistribution
    from worldmodel.mixtures.latent_head import LatentHead as LatentHead
    from worldmodel.mixtures.latent_head import latent_head_class as latent_head_class
    from worldmodel.mixtures.layout import COPIED as COPIED
    from worldmodel.mixtures.layout import DENSITIES as DENSITIES
    from worldmodel.mixtures.layout import LatentLayout as LatentLayout
    from worldmodel.mixtures.layout import LatentPart as LatentPart
    from worldmodel.mixtures.layout import PartKind as PartKind
    from worldmodel.mixtures.member_mixture import MemberMixture as MemberMixture
    from worldmodel.mixtures.member_mixture import log_probs_by_kind as log_probs_by_kind
    from worldmodel.mixtures.mixed import MixedDistribution as MixedDistribution
    from worldmodel.mixtures.network import MixtureDensityNetwork as MixtureDensityNetwork
    from worldmodel.mixtures.reparameterization import reparameterize as reparameterize
    from worldmodel.mixtures.reward_head import RewardDistribution as RewardDistribution
    from worldmodel.mixtures.reward_head import RewardHead as RewardHead
    from worldmodel.mixtures.reward_head import check_atoms as check_atoms
    from worldmodel.mixtures.scalar_heads import TerminationHead as TerminationHead
    from worldmodel.mixtures.unchanged_head import UnchangedHead as UnchangedHead
    from worldmodel.mixtures.unchanged_head import UnchangedOrDensity as UnchangedOrDensity
else:
    __getattr__, __dir__, __all__ = attach(
        __name__,
        {
            "autoregressive": "AutoregressiveHead AutoregressiveMixture",
            "composite_head": "CompositeDistribution CompositeHead LIKELIHOODS SubHead",
            "conditioning": (
                "condition count_observed log_prob_of_numbers marginal_log_prob marginal_log_probs mean_given sample_given"
            ),
            "discrete_heads": "Bits BitsHead ChoiceHead OneHot Segments",
            "gaussian": "GaussianMixture HALF_LOG_TWO_PI at_least_float32 categorical check_temperature shared_draws",
            "heads": "DEFAULT_MIN_SCALE Factorization MixtureHead NoiseType check_noise soft_floor",
            "latent_head": "CONSTANTS LatentDistribution LatentHead latent_head_class",
            "layout": "COPIED DENSITIES LatentLayout LatentPart PartKind",
            "member_mixture": "MemberMixture log_probs_by_kind",
            "mixed": "MixedDistribution",
            "network": "MixtureDensityNetwork",
            "reparameterization": "reparameterize",
            "reward_head": "RewardDistribution RewardHead check_atoms",
            "scalar_heads": "TerminationHead",
            "unchanged_head": "UnchangedHead UnchangedOrDensity",
        },
    )
