r"""M's head for the reward: atoms (values that recur exactly) and a Gaussian mixture for everything else.

With one component and no atoms it is a plain Gaussian. The raw outputs are, in this order, the logits of the A atoms and of the
density (A + 1, or A if there is no density, or none if there is no atom), then K logits, K means and K raw log-scales of the
mixture. Its parameters are in the units that `MDNRNN` keeps, ``reward_mean`` and ``reward_scale``; sigma has a soft floor in
these units (see `worldmodel.mixtures.soft_floor`), which `RewardHead.set_floor` lowers if rare large rewards inflate the unit.
Atoms are in the reward's own unit and have no floor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from worldmodel.mixtures.gaussian import GaussianMixture, at_least_float32
from worldmodel.mixtures.heads import BELOW_ONE, DEFAULT_MIN_SCALE, raw_mixture_nll, soft_floor
from worldmodel.mixtures.initialization import SMALLEST_RIDGE, fit_choice, fit_components
from worldmodel.mixtures.mixed import MixedDistribution
from worldmodel.runtime import check_integer

RewardDistribution = GaussianMixture | MixedDistribution
# Factor of the gradient of the reward's loss with respect to the LSTM. The sharp density of a rare reward has gradients that
# are many times those of z; a factor of 1 costs z up to 0.03 nats per dimension, and the reward gains little (dev/LOG.md).
FEATURE_GRADIENT = 0.1
LEAST_STEPS, MIXTURE_STEPS = 100, 16_384  # fewest and most rewards from which the mixture's first components are found
SMALLEST_RATIO = 1e-3  # of the robust deviation to the standard deviation, for the floor of sigma


class RewardHead(nn.Module):
    """A linear layer from features to a distribution over the reward.

    Args:
        in_features: F, size of the features.
        min_scale: floor of the mixture's standard deviations, in units of ``reward_scale``; see `set_floor`.
        num_components: K, components of the mixture; 0 if the atoms are all rewards there are.
        atoms: A different numbers that are predicted exactly; they are stored as float32 numbers, in ascending order.

    Raises:
        ValueError: if there is neither an atom nor a component, or an atom is given twice or is not finite.
    """

    atoms: Tensor
    frequencies: Tensor
    log_floor: Tensor

    def __init__(self, in_features: int, min_scale: float, *, num_components: int = 1, atoms: Sequence[float] = ()):
        super().__init__()
        self.min_scale, self.num_components = (
            min_scale,
            check_integer(num_components, "num_components", least=0 if atoms else 1),
        )
        values = torch.tensor(check_atoms(atoms), dtype=torch.float32)
        self._num_logits = len(values) + (self.num_components > 0) if atoms else 0
        self.linear = nn.Linear(in_features, self._num_logits + 3 * self.num_components)
        self.register_buffer("atoms", values, persistent=False)  # `MDNRNNConfig.reward_atoms` holds them
        self.register_buffer(
            "frequencies", torch.full((self._num_logits,), 1 / max(1, self._num_logits)), persistent=bool(atoms)
        )

        self._flexible = self._num_logits > 0 or self.num_components > 1  # more than the Gaussian of earlier versions
        floor = torch.full((1,), math.log(min_scale))
        self.register_buffer("log_floor", floor, persistent=self._flexible and self.num_components > 0)

    @property
    def target_weight(self) -> None:
        """None: the head does not see the target."""
        return None

    @classmethod
    def from_config(cls, in_features: int, config: Any) -> RewardHead:
        """Make a head with fresh weights from the fields of an `MDNRNNConfig`."""
        least = DEFAULT_MIN_SCALE if config.min_scale is None else config.min_scale
        return cls(in_features, least, num_components=config.reward_components, atoms=config.reward_atoms)

    @property
    def feature_gradient(self) -> float:
        """Factor of the loss's gradient with respect to the LSTM in training; 1 for the Gaussian of earlier versions.

        It is proportional to the floor of sigma, because the gradient of a density is inversely proportional to its sigma.
        """
        return FEATURE_GRADIENT * math.exp(self.log_floor.item()) / self.min_scale if self._flexible else 1.0

    @property
    def numbers_per_sample(self) -> int:
        """Random numbers of a sample: exponential ones that choose atom and component, and a pair for the noise."""
        return self._num_logits + (self.num_components + 2 if self.num_components else 0)

    @torch.no_grad()
    def set_base_rates(self, frequencies: Tensor) -> None:
        """Start from the frequencies of the data: (A + 1,) steps with each atom, and with any other reward.

        Without them a rare atom starts with a probability of 1 / (A + 1), and its first updates unlearn that. The means of the
        mixture start spread over the data's range, at the quantiles of a normal distribution.
        """
        if self._num_logits:
            rates = frequencies[: self._num_logits].to(self.frequencies)
            self.frequencies.copy_(rates / rates.sum())
            self.linear.bias[: self._num_logits] = ((rates + 0.5) / (rates + 0.5).sum()).log()
        if self.num_components > 1:
            k = self.num_components
            spread = torch.special.ndtri((torch.arange(k, dtype=torch.float64) + 0.5) / k)
            self.linear.bias[self._num_logits + k : self._num_logits + 2 * k] = spread.to(self.linear.bias)

    @torch.no_grad()
    def set_floor(self, others: Tensor, scale: Tensor) -> None:
        """Set the floor of sigma to ``min_scale`` times a robust deviation of the rewards that are no atoms.

        Rare large rewards increase the standard deviation, in whose units the mixture is, but not the noise of the others. The
        robust deviation is 1.48 times the median absolute one, which is the standard deviation of a Gaussian.

        Args:
            others: (N,) rewards that are no atoms.
            scale: (1,) their standard deviation. The floor is at most ``min_scale`` times it, also if half of the rewards are
                equal, whose robust deviation is 0.
        """
        if len(others) and "log_floor" in self.state_dict():
            deviation = 1.4826 * (others - others.median()).abs().median()
            ratio = torch.where(deviation > 0, (deviation / scale).clamp(min=SMALLEST_RATIO, max=1.0), 1.0)
            self.log_floor.copy_(math.log(self.min_scale) + ratio.log())

    @torch.no_grad()
    def initialise(self, inputs: Tensor, target: Tensor, columns: slice) -> None:
        """Start from regressions on M's inputs: a logistic one of the atoms, a mixture of linear ones of the other rewards.

        Rare rewards have small gradients, so that training alone takes long to find large coefficients.

        Args:
            inputs: (N, I), z and the action's features.
            target: of the same steps, from `targets`.
            columns: where the head sees the inputs, I of its features.
        """
        k, c = self.num_components, self._num_logits
        weight, bias = self.linear.weight, self.linear.bias
        if c > 1:
            bias[:c], weight[:c, columns] = fit_choice(inputs, target[:, 0].long(), bias[:c].exp())
        others = target[:, 0] == len(self.atoms) if len(self.atoms) else torch.ones_like(target[:, 0], dtype=torch.bool)
        rows = others.nonzero()[:MIXTURE_STEPS, 0]
        if k and len(rows) >= LEAST_STEPS:
            ridge = inputs.new_full(inputs.shape[1:], SMALLEST_RIDGE)
            found = fit_components(inputs[rows], target[rows, -1:], ridge, k)
            bias[c:] = torch.cat([part[:, 0] for part in (found.log_weights, found.bias, found.log_scale)])
            weight[c + k : c + 2 * k] *= found.log_scale.exp()
            weight[c:, columns] = torch.cat([found.gate[:, 0], found.weight[:, 0], torch.zeros_like(found.gate[:, 0])])

    def mean_reward(self, density_mean: Tensor) -> Tensor:
        """Return the mean reward of the data, (1,), given that of the rewards that are no atoms, (1,)."""
        if not self._num_logits:
            return density_mean
        mean = (self.frequencies[: len(self.atoms)] * self.atoms).sum().reshape(1)
        return mean + self.frequencies[-1] * density_mean if self.num_components else mean

    def forward(self, features: Tensor, mean: Tensor | float = 0.0, scale: Tensor | float = 1.0) -> RewardDistribution:
        """Turn features (..., F) into a batch of distributions over the reward, events of shape (1,).

        Args:
            features: (..., F).
            mean: (1,) origin of the mixture's parameters.
            scale: (1,) unit of the mixture's parameters.
        """
        return self.distribution(at_least_float32(self.linear(features)), mean, scale)

    def distribution(self, raw: Tensor, mean: Tensor | float = 0.0, scale: Tensor | float = 1.0) -> RewardDistribution:
        """Turn raw outputs (..., O) into distributions; see `forward`."""
        choice, logits, centers, raw_log_scale = self._split(raw)
        if not self.num_components:
            return MixedDistribution(choice.log_softmax(dim=-1), self.atoms)
        log_scale = self._with_floor(raw_log_scale)
        density = GaussianMixture(logits.log_softmax(dim=-1), centers.unsqueeze(-1), log_scale.unsqueeze(-1))
        density = density.affine(*(torch.as_tensor(x, dtype=raw.dtype, device=raw.device).reshape(1) for x in (mean, scale)))
        return MixedDistribution(choice.log_softmax(dim=-1), self.atoms, density) if len(self.atoms) else density

    def targets(self, reward: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        """Prepare rewards (N,) for `raw_nll`: (N, 1) in units of ``scale``, with atoms (N, 2), the atom's index first.

        The index is A for a reward that is no atom.
        """
        value = ((reward - mean) / scale).unsqueeze(-1)
        if not len(self.atoms):
            return value
        equal = reward.float().unsqueeze(-1) == self.atoms.float()  # (N, A)
        index = torch.where(equal.any(dim=-1), equal.int().argmax(dim=-1), len(self.atoms))
        return torch.cat([index.to(value.dtype).unsqueeze(-1), value], dim=-1)

    def density_share(self, target: Tensor) -> Tensor | float:
        """Return the fraction of the targets (N, ...) that the density predicts: 1 without atoms."""
        if not len(self.atoms):
            return 1.0
        return (target[:, 0] == len(self.atoms)).to(target.dtype).mean() if len(target) else 0.0

    def raw_nll(self, raw: Tensor, target: Tensor, *, gradient: bool) -> Tensor:
        """Sum -log p over the steps, in nats; overwrite ``raw`` with the gradient if requested.

        Args:
            raw: (N, O) raw outputs.
            target: (N, 1) or (N, 2), from `targets`. Densities are those of the value in units of ``scale``.
            gradient: whether to overwrite ``raw``.
        """
        if not len(self.atoms):
            return self._density_nll(raw, target, gradient)
        index, value = target[:, 0].long(), target[:, 1:]
        choice = raw[:, : self._num_logits]
        rest = index == len(self.atoms)
        column = index.clamp(max=self._num_logits - 1).unsqueeze(-1)
        log_weights = choice.log_softmax(dim=-1)
        loss = -log_weights.gather(1, column).sum()
        if not self.num_components:
            loss = loss + torch.where(rest, torch.inf, 0.0).sum()  # impossible: a reward that is none of the atoms
        if gradient:
            choice.copy_(log_weights.exp_()).scatter_add_(1, column, choice.new_full(column.shape, -1.0))
        if not self.num_components:
            return loss
        density, rows = raw[:, self._num_logits :], rest.nonzero()[:, 0]
        outputs = density[rows]  # a copy
        loss = loss + self._density_nll(outputs, value[rows], gradient)
        if gradient:
            density.zero_().index_copy_(0, rows, outputs)
        return loss

    def raw_expectation(self, raw: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        """Return the mean reward (N,) of raw outputs (N, O)."""
        if not self._num_logits and self.num_components == 1:
            return raw[:, 1] * scale + mean
        log_weights, centers, _ = self._outcomes(raw, mean, scale)
        return (log_weights.exp() * centers).sum(dim=-1)

    def sample_raw(self, raw: Tensor, mean: Tensor, scale: Tensor, *, uniform: Tensor, normal: Tensor) -> Tensor:
        """Sample rewards (N,) from the distributions of raw outputs.

        Args:
            raw: (N, O).
            mean: (1,) origin of the mixture's parameters.
            scale: (1,) their unit.
            uniform: (N,) in [0, 1), chooses atom or component.
            normal: (N,) standard normal.
        """
        log_weights, centers, sigmas = self._outcomes(raw, mean, scale)
        passed = log_weights.exp().cumsum(dim=-1)  # (N, A + K)
        aim = passed[:, -1:] * (uniform * BELOW_ONE).unsqueeze(-1)
        index = (aim >= passed).sum(dim=-1, keepdim=True).clamp(max=passed.shape[1] - 1)
        return (centers.gather(1, index) + sigmas.gather(1, index) * normal.unsqueeze(-1))[:, 0]

    def _density_nll(self, raw: Tensor, target: Tensor, gradient: bool) -> Tensor:
        """Loss of raw outputs (N, 3 K) of the mixture and values (N, 1)."""
        parts = (part.unsqueeze(-1) for part in raw.split([self.num_components] * 3, dim=1))
        logits, mean, raw_log_scale = parts
        floor = self.log_floor.exp() if self._flexible else self.min_scale
        return raw_mixture_nll(logits, mean, raw_log_scale, target, floor, gradient=gradient)

    def _outcomes(self, raw: Tensor, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights, means and sigmas (N, A + K) of all atoms, whose sigma is 0, and components."""
        choice, logits, centers, raw_log_scale = self._split(raw)
        atoms = self.atoms.to(raw.dtype).expand(raw.shape[0], -1)
        if not self.num_components:
            return choice.log_softmax(dim=-1), atoms, torch.zeros_like(atoms)
        sigma = self._with_floor(raw_log_scale).exp() * scale
        log_weights = logits.log_softmax(dim=-1)
        if not self._num_logits:
            return log_weights, centers * scale + mean, sigma
        choice = choice.log_softmax(dim=-1)
        joint = torch.cat([choice[:, :-1], choice[:, -1:] + log_weights], dim=-1)
        return joint, torch.cat([atoms, centers * scale + mean], dim=-1), torch.cat([torch.zeros_like(atoms), sigma], dim=-1)

    def _with_floor(self, raw_log_scale: Tensor) -> Tensor:
        if not self._flexible:
            return soft_floor(raw_log_scale, self.min_scale)
        return 0.5 * torch.logaddexp(2 * raw_log_scale, 2 * self.log_floor)

    def _split(self, raw: Tensor) -> tuple[Tensor, ...]:
        """Views of raw outputs (..., O): the choice of an atom, and logits, means and raw log-scales of the mixture."""
        return raw.split([self._num_logits] + [self.num_components] * 3, dim=-1)


def check_atoms(atoms: Sequence[float]) -> tuple[float, ...]:
    """Return atoms as the float32 numbers that are stored, in ascending order.

    Raises:
        ValueError: if one is not finite in float32 or is given twice.
    """
    values = torch.tensor([float(atom) for atom in atoms], dtype=torch.float32, device="cpu").tolist()
    if not all(math.isfinite(value) for value in values) or len(set(values)) < len(values):
        raise ValueError(f"reward_atoms: expected different finite float32 numbers, got {tuple(atoms)}")
    return tuple(sorted(values))
