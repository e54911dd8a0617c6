"""Controllers with random weights for the tests."""

import numpy as np
import torch
from gymnasium import spaces

from worldmodel.agents import Controller
from worldmodel.models import feature_size

DICT = spaces.Dict(
    {
        "push": spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 1.0], np.float32)),
        "kind": spaces.Discrete(3, start=5),
        "many": spaces.MultiDiscrete([2, 3]),
        "bits": spaces.MultiBinary(2),
    }
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_controller(world, *, features="zh", seed=0, scale=1.0, bias=True, hidden_size=None):
    size = feature_size(world, features)
    controller = Controller(size, world.action_space, features=features, bias=bias, hidden_size=hidden_size)
    with torch.no_grad():
        for number, parameter in enumerate(controller.parameters()):
            parameter.normal_(std=scale, generator=generator(seed + 100 * number * (hidden_size is not None)))
    return controller


def weights(controller):
    return torch.nn.utils.parameters_to_vector(controller.parameters()).detach()
