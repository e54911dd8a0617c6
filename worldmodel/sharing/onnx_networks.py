"""The networks that are exported: each takes and returns plain tensors and is made of plain operations.

Random numbers are inputs, so that a runtime without a generator of its own can sample every kind of head, and so that the same
numbers give the same step in torch and elsewhere. The temperature is an input too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import gymnasium as gym
import torch
from torch import Tensor, nn

from worldmodel.agents import Controller
from worldmodel.mixtures import CompositeHead, GaussianMixture, LatentHead, MixtureHead
from worldmodel.models import MDNRNN, State, Vision, WorldModel, latent_features
from worldmodel.spaces import FlatSpace, build_value, leaf_values, leaves

BELOW_ONE = 1 - 2**-24  # keeps uniform * sum below the sum in float32


class StepNetwork(nn.Module):
    """One step of a dream: z, state, action and random numbers in; next z, state, rewards and termination out.

    The inputs of `forward` are z (B, D), h and c (L, B, H), temperature (B,), uniform (B, `num_uniforms`) in [0, 1),
    normal (B, `num_normals`), and the leaves of the action (B, ...), of which a world without actions has none. The outputs are
    the next z, h and c, and, if M has the heads, the expected and the sampled reward (B,) and the probability of termination
    (B,). The next z and the rewards are clipped to the bounds of dreams.

    Raises:
        ValueError: if the latent head can not be sampled from given random numbers.
    """

    def __init__(self, world: WorldModel):
        super().__init__()
        self.model: MDNRNN = world.mdnrnn
        self.action_features = world.action_features
        check_head(self.model.latent_head)
        self.has_reward, self.has_termination = self.model.reward_head is not None, self.model.termination_head is not None
        self._places = places(self.model.latent_head)
        self.num_uniforms = self.model.latent_head.num_uniforms + self.has_reward  # the last one is the reward's
        self.num_normals = self.model.latent_head.num_normals + self.has_reward

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs, in their order."""
        rewards = ["reward", "sampled_reward"] if self.has_reward else []
        return ["next_z", "next_h", "next_c", *rewards, *(["termination"] if self.has_termination else [])]

    def forward(
        self, z: Tensor, h: Tensor, c: Tensor, temperature: Tensor, uniform: Tensor, normal: Tensor, *action: Tensor
    ) -> tuple[Tensor, ...]:
        """Advance by one step; see the class."""
        model = self.model
        features = self.action_features.flatten(join(self.action_features.space, action)) if action else z[:, :0]
        prediction, state = model.step(z, features, State(h, c))
        seen = state.h[-1]
        if model.config.skip:
            seen = torch.cat([seen, z, model.action_units(features, z.dtype)], dim=-1)
        own = uniform[:, : model.latent_head.num_uniforms], normal[:, : model.latent_head.num_normals]
        sample = sample_head(model.latent_head, seen, temperature, *own)
        sample = sample[:, self._places] if self._places else sample
        next_z = model.frame.next_z(sample, z, model.change_scale).clamp(model.latent_low, model.latent_high)
        outputs = [next_z, *state]
        outcome = prediction.outcome(next_z)
        if outcome.reward is not None:
            sampled = self._sample_reward(seen, z, next_z, uniform[:, -1], normal[:, -1])
            rewards = outcome.reward.expectation()[..., 0], sampled
            outputs += [reward.clamp(model.reward_low, model.reward_high) for reward in rewards]
        if outcome.termination_logit is not None:
            outputs.append(outcome.termination_logit.sigmoid())
        return tuple(outputs)

    def _sample_reward(self, seen: Tensor, z: Tensor, next_z: Tensor, uniform: Tensor, normal: Tensor) -> Tensor:
        model, head = self.model, self.model.reward_head
        assert head is not None
        if model.outcome_layers:
            seen = model.outcome_layers["reward"](seen, *model.seen_after(z, next_z))
        return head.sample_raw(head.linear(seen), model.reward_mean, model.reward_scale, uniform=uniform, normal=normal)


class EncoderNetwork(nn.Module):
    """V's encoder: normal numbers (B, D) and the leaves of observations (B, ...) in; a sample z, mean and log-variance out.

    With normal numbers of 0, z is the mean.
    """

    def __init__(self, vision: Vision):
        super().__init__()
        self.vision = vision

    def forward(self, normal: Tensor, *observation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode; see the class."""
        mean, log_variance = self.vision.encode(join(self.vision.observation_space, observation))
        return mean + (0.5 * log_variance).exp() * normal, mean.clone(), log_variance.clone()


class DecoderNetwork(nn.Module):
    """V's decoder: z (B, D) in; the leaves of the observations (B, ...) out, in the dtypes of the space."""

    def __init__(self, vision: Vision):
        super().__init__()
        self.vision = vision

    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        """Decode; see the class."""
        return split(self.vision.observation_space, self.vision.decode(z))


class ControllerNetwork(nn.Module):
    """A controller: z (B, D), h and c (L, B, H) in, or those that it sees; the leaves of its actions (B, ...) out."""

    def __init__(self, controller: Controller):
        super().__init__()
        self.controller = controller

    def forward(self, z: Tensor, h: Tensor | None = None, c: Tensor | None = None) -> tuple[Tensor, ...]:
        """Act; see the class."""
        missing = z.new_zeros(1, 1, 1)
        state = State(missing if h is None else h, missing if c is None else c)
        action = self.controller(latent_features(z, state, self.controller.features))
        return split(self.controller.action_features.space, action)


def join(space: gym.Space, parts: Sequence[Tensor]) -> object:
    """Return a value of a space from its leaves, in the order of the space."""
    return build_value(space, dict(zip((path for path, _ in leaves(space)), parts, strict=True)))


def split(space: gym.Space, value: object) -> tuple[Tensor, ...]:
    """Return the leaves of a value, in the order of the space."""
    found = leaf_values(value)
    return tuple(cast(Tensor, found[path]) for path, _ in leaves(space))


def split_action(features: FlatSpace, value: object) -> dict[str, Tensor]:
    """Return the leaves of an action by the names of the step's inputs; none without actions: onnxruntime fails at size 0."""
    if features.size == 0:
        return {}
    return dict(zip(leaf_names("action", features.space), split(features.space, value), strict=True))


def leaf_names(kind: str, space: gym.Space) -> list[str]:
    """Return the names of the leaves of a space: "action" or "action/path"."""
    return [f"{kind}/{path}".rstrip("/") for path, _ in leaves(space)]


def check_head(head: LatentHead) -> None:
    """Raise unless a head can be sampled from given random numbers.

    Raises:
        ValueError: naming its class.
    """
    parts = [sub.head for sub in head.sub_heads] if isinstance(head, CompositeHead) else [head]
    for part in parts:
        if not part.supports_raw and not isinstance(part, MixtureHead):
            raise ValueError(
                f"latent_head: expected one that samples from given random numbers, got {type(part).__name__}; implement "
                "supports_raw and sample_raw (LatentHead)"
            )


def places(head: LatentHead) -> list[int]:
    """Return where each number of z is in what `sample_head` returns; nothing if it is in order."""
    if not isinstance(head, CompositeHead):
        return []
    columns = torch.arange(head.dim)
    order = [column for sub in head.sub_heads for column in columns[sub.columns].tolist()]
    order += sorted(set(columns.tolist()) - set(order))
    return [order.index(column) for column in columns.tolist()]


def sample_head(head: LatentHead, features: Tensor, temperature: Tensor, uniform: Tensor, normal: Tensor) -> Tensor:
    """Sample what a head predicts, in its units, from given random numbers: the distribution of ``head(features).sample``.

    Args:
        head: any that passes `check_head`.
        features: (B, F).
        temperature: (B,).
        uniform: (B, `LatentHead.num_uniforms`) in [0, 1).
        normal: (B, `LatentHead.num_normals`).

    Returns:
        (B, D); constants are 0. The columns of a composite head are in the order of its heads; `places` puts them in order.
    """
    if isinstance(head, CompositeHead):
        heads = [sub.head for sub in head.sub_heads]
        uniforms = uniform.split([each.num_uniforms for each in heads], dim=1)
        normals = normal.split([each.num_normals for each in heads], dim=1)
        parts = [sample_head(each, features, temperature, u, n) for each, u, n in zip(heads, uniforms, normals, strict=True)]
        constants = features.new_zeros(features.shape[0], head.dim - sum(part.shape[1] for part in parts))
        return torch.cat([*parts, constants], dim=1)
    if head.supports_raw:
        return head.sample_raw(head.linear(features), temperature=temperature, uniform=uniform, normal=normal)
    mixture = head(features)
    assert isinstance(mixture, GaussianMixture)
    return sample_mixture(mixture, temperature, uniform, normal)


def sample_mixture(mixture: GaussianMixture, temperature: Tensor, uniform: Tensor, normal: Tensor) -> Tensor:
    """Sample (B, D) from mixtures whose components have any covariance; see `sample_head`."""
    log_weights = mixture.log_weights  # (B, K, D) per dimension, or (B, K)
    per_dimension = log_weights.ndim == 3
    logits = log_weights if per_dimension else log_weights.unsqueeze(-1)  # (B, K, D) or (B, K, 1)
    tau, least = temperature.view(-1, 1, 1), torch.finfo(logits.dtype).tiny
    weights = ((logits - logits.amax(dim=1, keepdim=True)) / tau.clamp(min=least)).exp()
    passed = weights.cumsum(dim=1)
    aim = passed[:, -1:] * (uniform * BELOW_ONE).unsqueeze(1) * (tau >= least)
    chosen = (aim >= passed).sum(dim=1, keepdim=True)  # (B, 1, D) or (B, 1, 1)
    one_hot = (chosen == torch.arange(logits.shape[1]).view(1, -1, 1)).to(logits.dtype)
    mean = (one_hot * mixture.mean).sum(dim=1)
    noise = normal * temperature.sqrt().unsqueeze(-1)
    if mixture.scale_tril is None:
        return mean + (one_hot * mixture.log_scale.exp()).sum(dim=1) * noise
    factor = (one_hot.unsqueeze(-1) * mixture.scale_tril).sum(dim=1)  # (B, D, D)
    return mean + (factor @ noise.unsqueeze(-1))[..., 0]
