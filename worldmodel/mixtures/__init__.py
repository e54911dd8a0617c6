"""TODO mixtures."""

from typing import TYPE_CHECKING

from worldmodel.lazy import attach

if TYPE_CHECKING:
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
            "gaussian": "GaussianMixture HALF_LOG_TWO_PI at_least_float32 categorical check_temperature shared_draws",
            "heads": "Factorization MixtureHead NoiseType check_noise soft_floor",
            "latent_head": "LatentDistribution LatentHead latent_head_class",
            "network": "MixtureDensityNetwork",
            "reparameterization": "reparameterize",
            "scalar_heads": "RewardHead TerminationHead",
        },
    )
