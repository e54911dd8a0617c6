"""Gaussian mixtures and the network heads that predict them.

A head owns its loss, its sampling, the meaning of temperature, and its number of random draws. It maps features to a
distribution and does not know where the features come from: `MixtureDensityNetwork` puts a head on a plain network, the
models package puts one on an LSTM. The formulas are in ``gaussian.py`` and ``heads.py``.

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
    from worldmodel.mixtures.gaussian import HALF_LOG_TWO_PI as HALF_LOG_TWO_PI
    from worldmodel.mixtures.gaussian import GaussianMixture as GaussianMixture
    from worldmodel.mixtures.gaussian import at_least_float32 as at_least_float32
    from worldmodel.mixtures.gaussian import categorical as categorical
    from worldmodel.mixtures.gaussian import check_temperature as check_temperature
    from worldmodel.mixtures.gaussian import shared_draws as shared_draws
    from worldmodel.mixtures.heads import Factorization as Factorization
    from worldmodel.mixtures.heads import MixtureHead as MixtureHead
    from worldmodel.mixtures.heads import NoiseType as NoiseType
    from worldmodel.mixtures.heads import check_noise as check_noise
    from worldmodel.mixtures.heads import soft_floor as soft_floor
    from worldmodel.mixtures.latent_head import LatentDistribution as LatentDistribution
    from worldmodel.mixtures.latent_head import LatentHead as LatentHead
    from worldmodel.mixtures.latent_head import latent_head_class as latent_head_class
    from worldmodel.mixtures.network import MixtureDensityNetwork as MixtureDensityNetwork
    from worldmodel.mixtures.reparameterization import reparameterize as reparameterize
    from worldmodel.mixtures.scalar_heads import RewardHead as RewardHead
    from worldmodel.mixtures.scalar_heads import TerminationHead as TerminationHead
else:
    __getattr__, __dir__, __all__ = attach(
        __name__,
        {
            "autoregressive": "AutoregressiveHead AutoregressiveMixture",
            "gaussian": "GaussianMixture HALF_LOG_TWO_PI at_least_float32 categorical check_temperature shared_draws",
            "heads": "Factorization MixtureHead NoiseType check_noise soft_floor",
            "latent_head": "LatentDistribution LatentHead latent_head_class",
            "network": "MixtureDensityNetwork",
            "reparameterization": "reparameterize",
            "scalar_heads": "RewardHead TerminationHead",
        },
    )
