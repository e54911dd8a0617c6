"""World models without training: linear, with known densities."""

import numpy as np
import torch
from gymnasium import spaces

from worldmodel.data import Episode
from worldmodel.mixtures import Factorization, NoiseType
from worldmodel.models import MDNRNN, MDNRNNConfig, StateNormalizer, WorldModel

DECAY, SD = 0.9, 0.5


def linear_world(dim=1, correlation=0.0, extras=None):
    """z' = 0.9 z + 0.5 e, with noise that two numbers share by a correlation."""
    config = MDNRNNConfig(
        hidden_size=2,
        num_components=1,
        factorization=Factorization.JOINT,
        noise_type=NoiseType.FULL,
        min_scale=1e-4,
        reward_head=False,
        termination_head=False,
    )
    model = MDNRNN(dim, 1, config, extras=extras).double()
    linear = model.latent_head.linear
    with torch.no_grad():
        linear.weight.zero_()
        linear.bias.zero_()
        for d in range(dim):
            linear.weight[1 + d, 2 + d] = DECAY - 1
            linear.bias[1 + dim + d] = np.log(SD)
        if dim == 2:
            model.latent_head.below_scale = 1.0
            linear.bias[-2:] = torch.tensor([np.log(SD * np.sqrt(1 - correlation**2)), SD * correlation])
    vision = StateNormalizer(spaces.Box(-np.inf, np.inf, (dim,), np.float64)).double()
    start = torch.linspace(-1, 1, 50).double().unsqueeze(1).expand(50, dim).clone()
    world = WorldModel(vision, model, spaces.Box(-1, 1, (1,)), start_mean=start, start_log_variance=start * 0 - torch.inf)
    return world.eval()


def episode(observations, number=0):
    """Return an episode without rewards and ends."""
    zeros, flags = np.zeros(len(observations) - 1), np.zeros(len(observations) - 1, dtype=bool)
    return Episode(
        observations=observations,
        actions=zeros[:, None],
        rewards=zeros,
        terminations=flags,
        truncations=flags,
        episode_id=number,
    )
