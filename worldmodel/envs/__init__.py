"""Gymnasium environments made from a world model, and the real ones of the paper.

`DreamEnv` and `DreamVectorEnv` are dreams behind the Gymnasium interface, so that any reinforcement learning library can
train in them; `LatentEnv` and `LatentVectorEnv` wrap a real environment and return M's features as observations. The steps
themselves are computed in the dream package. Environments do not import agents.

Example:
    >>> import gymnasium as gym
    >>> import numpy as np
    >>> from worldmodel.envs import AreaResize
    >>> camera = gym.Env()
    >>> camera.observation_space = gym.spaces.Box(0, 255, (96, 96, 3), np.uint8)
    >>> AreaResize(camera, size=64).observation_space.shape
    (64, 64, 3)
"""

from typing import TYPE_CHECKING

from worldmodel.lazy import attach

if TYPE_CHECKING:
    from worldmodel.envs.dream_env import DreamEnv as DreamEnv
    from worldmodel.envs.dream_env import DreamVectorEnv as DreamVectorEnv
    from worldmodel.envs.frames import FramesAsChannels as FramesAsChannels
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
    from worldmodel.envs.settings import ChangeableDreams as ChangeableDreams
    from worldmodel.envs.settings import DreamSettings as DreamSettings
else:
    __getattr__, __dir__, __all__ = attach(
        __name__,
        {
            "dream_env": "DreamEnv DreamVectorEnv",
            "frames": "FramesAsChannels",
            "latent_env": "LatentEnv LatentVectorEnv",
            "options": "DreamOptions",
            "paper": "AreaResize CAR_STEPS DOOM_ACTIONS DOOM_STEPS",
            "rendering": "BAR CLASSIC ObservationRenderer",
            "settings": "ChangeableDreams DreamSettings",
        },
    )
