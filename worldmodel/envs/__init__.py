"""Gymnasium environments: dreams, real environments in latent space, and the environments of the paper."""

from typing import TYPE_CHECKING

from worldmodel.lazy import attach

if TYPE_CHECKING:
    from worldmodel.envs.dream_env import DreamEnv as DreamEnv
    from worldmodel.envs.dream_env import DreamVectorEnv as DreamVectorEnv
    from worldmodel.envs.latent_env import LatentEnv as LatentEnv
    from worldmodel.envs.latent_env import LatentVectorEnv as LatentVectorEnv
    from worldmodel.envs.options import DreamOptions as DreamOptions
    from worldmodel.envs.paper import CAR_STEPS as CAR_STEPS
    from worldmodel.envs.paper import DOOM_ACTIONS as DOOM_ACTIONS
    from worldmodel.envs.paper import DOOM_STEPS as DOOM_STEPS
    from worldmodel.envs.paper import AreaResize as AreaResize
    from worldmodel.envs.rendering import BAR as BAR
    from worldmodel.envs.rendering import CLASSIC as CLASSIC
    from worldmodel.envs.rendering import ObservationRenderer as ObservationRenderer
else:
    __getattr__, __dir__, __all__ = attach(
        __name__,
        {
            "dream_env": "DreamEnv DreamVectorEnv",
            "latent_env": "LatentEnv LatentVectorEnv",
            "options": "DreamOptions",
            "paper": "AreaResize CAR_STEPS DOOM_ACTIONS DOOM_STEPS",
            "rendering": "BAR CLASSIC ObservationRenderer",
        },
    )
