"""World models with random or hand-set weights, and an environment with an exact world model."""

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from worldmodel.mixtures import LatentLayout, LatentPart
from worldmodel.models import MDNRNN, MDNRNNConfig, StateNormalizer, WorldModel
from worldmodel.spaces import FlatSpace

LONG_EPISODES = {"recipes": [{"max_steps": 1000}]}  # else the horizon of dreams would be a guess, with a warning

KINDS = (  # of the numbers in z, and how many
    ("continuous", 2),
    ("choice", 3),
    ("mostly_unchanged", 2),
    ("choice", 2),
    ("bits", 2),
    ("constant", 1),
    ("integer", 1),
    ("episode_constant", 1),
)


class WalkEnv(gym.Env):
    """Walk with a random start and deterministic steps.

    A step is x += (action - 1) / 4 and y += x / 8 with x before the step. The reward is x - y / 2,
    both before the step. The walk terminates when x reaches 1. All numbers are short binary
    fractions, which float32 represents exactly.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.y = int(self.np_random.integers(-2, 3)) / 4, 0.0
        return np.array([self.x, self.y]), {}

    def step(self, action):
        reward = self.x - self.y / 2
        self.x, self.y = self.x + (int(action) - 1) / 4, self.y + self.x / 8
        return np.array([self.x, self.y]), reward, self.x >= 1, False, {}


def random_world(
    action_space=None, observation_space=None, *, seed=0, starts=7, vision_scale=1.0, termination_bias=0.0, **mdnrnn
):
    """Return a world model with random weights and standard normal start states."""
    generator = torch.Generator().manual_seed(seed)
    vision = StateNormalizer(observation_space or spaces.Box(-np.inf, np.inf, (2,), np.float64))
    vision.scale.fill_(vision_scale)
    action_space = spaces.Discrete(3) if action_space is None else action_space
    config = MDNRNNConfig(**{"hidden_size": 5, "num_components": 2, **mdnrnn})
    model = MDNRNN(vision.latent_size, FlatSpace(action_space).size, config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5, generator=generator)
        if model.termination_head is not None:
            model.termination_head.bias.fill_(termination_bias)
    model.latent_low.fill_(-20.0)  # dreams of a random model would diverge
    model.latent_high.fill_(20.0)
    start = torch.randn(starts, vision.latent_size, generator=generator)
    noiseless = torch.full_like(start, -torch.inf)
    return WorldModel(
        vision, model, action_space, start_mean=start, start_log_variance=noiseless, provenance=LONG_EPISODES
    ).eval()


MIXED = spaces.Dict(
    {
        "a": spaces.Box(-np.inf, np.inf, (7,), np.float32),
        "b": spaces.Discrete(3),
        "c": spaces.Discrete(2, start=4),
        "d": spaces.MultiBinary(2),
    }
)


def mixed_world(action_space=None, space=MIXED, kinds=KINDS, **fields):
    """Return a world of every kind of number, with random weights."""
    parts, start = [], 0
    for number, (kind, size) in enumerate(kinds):
        parts.append(LatentPart(name=f"n{number}", kind=kind, start=start, size=size))
        start += size
    vision = StateNormalizer(space)
    actions = action_space or spaces.Dict({"x": spaces.Box(-2, 3, (2,)), "y": spaces.MultiDiscrete([2, 3])})
    assert vision.latent_size == start
    config = MDNRNNConfig(**{"hidden_size": 6, "num_components": 3, **fields})
    torch.manual_seed(0)
    model = MDNRNN(start, FlatSpace(actions).size, config, layout=LatentLayout(tuple(parts)))
    means = torch.randn(4, start)
    return WorldModel(vision, model, actions, start_mean=means, start_log_variance=torch.full_like(means, -torch.inf)).eval()


def walk_world(**mdnrnn):
    """Return a world model of `WalkEnv` that is exact at temperature 0.

    Latents are z = ((x - 1/2) / (1/2), y / 2). Its LSTM has random weights, so that h shows whether
    the state was advanced correctly. The heads ignore h.
    """
    world = random_world(WalkEnv.action_space, WalkEnv.observation_space, num_components=1, **mdnrnn)
    world.vision.mean.copy_(torch.tensor([0.5, 0.0]))
    world.vision.scale.copy_(torch.tensor([0.5, 2.0]))
    model, h = world.mdnrnn, world.mdnrnn.config.hidden_size
    with torch.no_grad():
        for head in (model.latent_head.linear, model.reward_head.linear, model.termination_head):
            head.weight.zero_()
            head.bias.zero_()
        logits = 2  # the first outputs of the latent head are the logits, one component for each dimension
        model.latent_head.linear.weight[logits, h + 2 :] = torch.tensor([-0.5, 0.0, 0.5])  # change of z_0 by each action
        model.latent_head.linear.weight[logits + 1, h] = 1 / 32
        model.latent_head.linear.bias[logits + 1] = 1 / 32
        model.reward_head.linear.weight[1, h : h + 2] = torch.tensor([0.5, -1.0])
        model.reward_head.linear.bias[1] = 0.5
        # log-odds beyond 1000, so that a sampled termination equals one by threshold
        model.termination_head.weight[0, h] = 0.5e5
        model.termination_head.weight[0, h + 2 :] = torch.tensor([-0.25e5, 0.0, 0.25e5])
        model.termination_head.bias[0] = (0.5 - 0.9) * 1e5
    starts = torch.stack(torch.broadcast_tensors((torch.arange(-2, 3) / 4 - 0.5) / 0.5, torch.zeros(5)), dim=1)
    return WorldModel(
        world.vision,
        model,
        world.action_space,
        start_mean=starts,
        start_log_variance=torch.full_like(starts, -torch.inf),
        provenance=LONG_EPISODES,
    ).eval()


def same_bits(a, b):
    """Return whether two dataclasses, dicts, tuples, arrays or tensors hold the same bits; None equals None."""
    if a is None or b is None:
        return a is b
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return all(same_bits(a[key], b[key]) for key in a)
    if isinstance(a, tuple):
        return all(same_bits(x, y) for x, y in zip(a, b, strict=True))
    return all(same_bits(x, y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True))
