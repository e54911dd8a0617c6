r"""M, the MDN-RNN of Ha & Schmidhuber (2018): an LSTM whose output parameterises a distribution over what comes next.

From :math:`(z_t, a_t)` and its state the LSTM computes :math:`h_{t+1}`, and linear heads on it give
:math:`p(z_{t+1} \mid h_{t+1})`, a Gaussian over the reward :math:`r_t` and the log-odds that the episode ends with this step. A
whole sequence (`forward`) and one step of a dream (`step`) are the same mathematics with the same weights.

Two choices that the paper's code does not make:

- The latent head predicts the *change* z_{t+1} - z_t, in units of its standard deviation over the data, unless
  ``predict_change`` is off. The density is of z_{t+1} all the same. dev/LOG.md has the measurement behind the default.
- The reward head is a Gaussian too, so that it has a likelihood.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from worldmodel.mixtures import Factorization, GaussianMixture, MixtureHead, NoiseType, at_least_float32, check_noise, fused
from worldmodel.models.batch import DataStatistics, SequenceBatch
from worldmodel.models.lstm import LayerNormLSTM, run_lstm, runs_in_loop
from worldmodel.runtime import check_integers


@dataclass(frozen=True, kw_only=True)
class MDNRNNConfig:
    """Size and shape of an `MDNRNN`.

    Args:
        latent_size: D, size of z.
        action_size: A, size of the action's feature vector.
        hidden_size: H.
        num_layers: stacked LSTM layers.
        num_components: K.
        factorization: one mixture per dimension (the paper) or one over the whole vector.
        noise_type: covariance of the components; see `NoiseType`. With ``predict_change`` it is that of the change in its
            units, so that "isotropic" means one sigma relative to each dimension's typical change.
        fixed_noise_level: sigma of ``NoiseType.FIXED``, in the same units; None otherwise.
        min_scale: floor of the sigmas of z, in the same units, and of the reward's, in units of its standard deviation.
        predict_change: predict z_{t+1} - z_t, in units of its standard deviation over the data, rather than z_{t+1}.
        skip: the heads see z_t and a_t beside h_{t+1} (skip connections, as in Graves 2013); the paper's heads see h alone.
        reward_head: predict the reward.
        termination_head: predict whether the episode terminates (truncation is not termination).
        termination_weight: weight of the steps that terminate, in the loss (the paper's Doom code: 10).
        termination_gradient: how much of the termination loss's gradient goes on into the LSTM, 0 to 1. Ends are rare, and an
            LSTM that all of it reaches may learn them by heart. `MDNRNN.step`, through which policies learn, has all of it.
        layer_norm: normalise the gates and the cell, as the authors' code can; slower, as it loops over time in Python.
        input_dropout: probability of zeroing an input of the LSTM, in training.
        output_dropout: probability of zeroing an output of the LSTM, in training.

    Raises:
        ValueError: naming the field that is out of range.
    """

    latent_size: int
    action_size: int
    hidden_size: int = 256
    num_layers: int = 1
    num_components: int = 5
    factorization: Factorization = Factorization.PER_DIMENSION
    noise_type: NoiseType = NoiseType.DIAGONAL
    fixed_noise_level: float | None = None
    min_scale: float = 0.03
    predict_change: bool = True
    skip: bool = True
    reward_head: bool = True
    termination_head: bool = True
    termination_weight: float = 1.0
    termination_gradient: float = 1.0
    layer_norm: bool = False
    input_dropout: float = 0.0
    output_dropout: float = 0.0

    def __post_init__(self) -> None:
        """Check every field."""
        object.__setattr__(self, "factorization", Factorization(self.factorization))
        object.__setattr__(self, "noise_type", NoiseType(self.noise_type))
        sizes = ("latent_size", "action_size", "hidden_size", "num_layers", "num_components")
        check_integers(self, dict.fromkeys(sizes, 1))
        for name in ("input_dropout", "output_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a probability in [0, 1), got {getattr(self, name)}")
        if not 0 < self.termination_weight < torch.inf:
            raise ValueError(f"termination_weight: expected a positive number, got {self.termination_weight}")
        if not 0 <= self.termination_gradient <= 1:
            raise ValueError(f"termination_gradient: expected a number in [0, 1], got {self.termination_gradient}")
        check_noise(self.noise_type, self.fixed_noise_level, self.min_scale)


class State(NamedTuple):
    """State of the LSTM: ``h`` and ``c``, each (num_layers, B, H)."""

    h: Tensor
    c: Tensor


@dataclass(frozen=True)
class Prediction:
    """What M says about the next step, for every element of the batch shape (...).

    Args:
        latent: mixture over z_{t+1}, batch shape (...).
        reward: Gaussian over r_t as a one-component mixture over one number, batch shape (...); None without the head.
        termination_logit: (...) log-odds that the episode terminates with this step; None without the head.
    """

    latent: GaussianMixture
    reward: GaussianMixture | None
    termination_logit: Tensor | None


@dataclass(frozen=True)
class StepLosses:
    """Loss of each step before any average, each (B, T) in nats.

    Args:
        latent: -log p(z_{t+1}), summed over D.
        reward: -log p(r_t); zeros without the head.
        termination: weighted cross-entropy of the termination; zeros without the head.
    """

    latent: Tensor
    reward: Tensor
    termination: Tensor


class MDNRNN(nn.Module):
    """The recurrent world model: `forward` over sequences, `step` in dreams, `advance` where only the state is needed."""

    change_scale: Tensor
    reward_mean: Tensor
    reward_scale: Tensor
    latent_low: Tensor
    latent_high: Tensor
    reward_low: Tensor
    reward_high: Tensor

    def __init__(self, config: MDNRNNConfig):
        super().__init__()
        self.config = config
        input_size = config.latent_size + config.action_size
        lstm = LayerNormLSTM if config.layer_norm else nn.LSTM
        self.lstm = lstm(input_size, config.hidden_size, config.num_layers, batch_first=True)
        features = config.hidden_size + (input_size if config.skip else 0)
        self.latent_head = MixtureHead(
            features,
            config.latent_size,
            config.num_components,
            factorization=config.factorization,
            noise_type=config.noise_type,
            fixed_noise_level=config.fixed_noise_level,
            min_scale=config.min_scale,
        )
        self.reward_head = MixtureHead(features, 1, 1, min_scale=config.min_scale) if config.reward_head else None
        self.termination_head = nn.Linear(features, 1) if config.termination_head else None
        statistics = DataStatistics.neutral(config.latent_size)
        for name, value in vars(statistics).items():
            self.register_buffer(name, value)

    def set_statistics(self, statistics: DataStatistics) -> None:
        """Set the units in which the heads work and the bounds of dreams, usually from the training data.

        Raises:
            ValueError: if a shape does not fit or a scale is not positive and finite.
        """
        for name, value in vars(statistics).items():
            expected = getattr(self, name).shape
            if value.shape != expected:
                raise ValueError(f"{name}: expected shape {tuple(expected)}, got {tuple(value.shape)}")
            if name.endswith("scale") and not bool((torch.isfinite(value) & (value > 0)).all()):
                raise ValueError(f"{name}: expected positive finite numbers, got {value}")
        for name, value in vars(statistics).items():  # all or none
            getattr(self, name).copy_(value)

    def initial_state(self, batch_size: int) -> State:
        """Zeros, as every episode begins: (num_layers, B, H) each."""
        zeros = self.change_scale.new_zeros(self.config.num_layers, batch_size, self.config.hidden_size)
        return State(zeros, zeros.clone())

    def forward(
        self, z: Tensor, action: Tensor, state: State | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Prediction, State]:
        """Predict each next step of a batch of sequences.

        Args:
            z: (B, T, D).
            action: (B, T, A) action features.
            state: where the sequences start from; zeros if None.
            generator: source of dropout's randomness, in training only.

        Returns:
            The prediction with batch shape (B, T), and the state after the last step.

        Raises:
            ValueError: if a shape does not fit.
        """
        output, state = self._run(z, action, state, generator)
        output = _dropout(output, self.config.output_dropout, self.training, generator)
        return self._predict(z, action, output, termination_gradient=self.config.termination_gradient), state

    def step(self, z: Tensor, action: Tensor, state: State) -> tuple[Prediction, State]:
        """Predict one step for ``z`` (B, D) and ``action`` (B, A), batch shape (B,): `forward` with T = 1, without dropout."""
        state = self.advance(z, action, state)
        return self._predict(z, action, state.h[-1]), state

    def advance(self, z: Tensor, action: Tensor, state: State) -> State:
        """Advance the state by one step, without predicting: ``z`` (B, D), ``action`` (B, A).

        Raises:
            ValueError: if a shape does not fit.
        """
        self._check_inputs(z, action, "B")
        inputs = torch.cat([z, action], dim=-1)
        if isinstance(self.lstm, LayerNormLSTM):
            _, (h, c) = self.lstm(inputs.unsqueeze(1), state)
            return State(h, c)
        layers = []
        for weights, h, c in zip(self.lstm.all_weights, *state, strict=True):
            # The same as nn.LSTM with T = 1, without its overhead: 20 instead of 88 us at batch 1 (dev/LOG.md).
            inputs, cell = torch.lstm_cell(inputs, (h, c), *weights)
            layers.append((inputs, cell))
        return State(*(torch.stack(part) for part in zip(*layers, strict=True)))

    def step_losses(self, batch: SequenceBatch, *, generator: torch.Generator | None = None) -> StepLosses:
        """Compute the loss of every step of a batch, (B, T) each; steps outside the mask hold numbers without meaning.

        Args:
            batch: the windows.
            generator: source of dropout's randomness, in training only.

        Raises:
            ValueError: if a shape does not fit; nothing is broadcast silently.
        """
        self._check_batch(batch)
        prediction, _ = self(batch.z[:, :-1], batch.action, generator=generator)
        latent = -prediction.latent.log_prob(batch.z[:, 1:])
        reward = termination = torch.zeros_like(latent)
        if prediction.reward is not None:
            reward = -prediction.reward.log_prob(batch.reward.unsqueeze(-1))
        if prediction.termination_logit is not None:
            termination = functional.binary_cross_entropy_with_logits(
                prediction.termination_logit,
                batch.terminated.to(latent.dtype),
                pos_weight=latent.new_tensor(self.config.termination_weight),
                reduction="none",
            )
        return StepLosses(latent, reward, termination)

    def loss(self, batch: SequenceBatch, *, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Average the losses over the steps in the mask, the latent's per dimension, as the authors' code weighs them.

        Args:
            batch: the windows.
            generator: source of dropout's randomness, in training only.

        Returns:
            The scalar ``latent / D + reward + termination``, and its terms: ``nll_per_dim`` (nats per dimension of z),
            ``reward_nll`` (nats) and ``termination_loss`` (nats, weighted).
        """
        self._check_batch(batch)
        count = batch.mask.sum().clamp(min=1)
        if fused.applies(self.latent_head):
            total, sums = self._fused_losses(batch, generator)
        else:
            losses = self.step_losses(batch, generator=generator)
            sums = torch.stack([torch.where(batch.mask, term, 0.0).sum() for term in vars(losses).values()])
            total = sums[0] / self.config.latent_size + sums[1] + sums[2]
        latent, reward, termination = (sums.detach() / count).unbind()
        metrics = {"nll_per_dim": latent / self.config.latent_size}
        if self.reward_head is not None:
            metrics["reward_nll"] = reward
        if self.termination_head is not None:
            metrics["termination_loss"] = termination
        return total / count, metrics

    def _fused_losses(self, batch: SequenceBatch, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """The loss summed over the counted steps, and its terms, summed too: (3,) latent, reward and termination."""
        lengths = None
        if runs_in_loop(self.lstm, batch.z.device):
            batch, lengths = batch.longest_first()
        before, config, mask = batch.z[:, :-1], self.config, batch.mask
        output, _ = self._run(before, batch.action, None, generator, lengths)
        output = _dropout(output, config.output_dropout, self.training, generator)
        origin, unit = (before, self.change_scale) if config.predict_change else (0.0, torch.ones_like(self.change_scale))
        targets = fused.Targets(
            ((batch.z[:, 1:] - origin) / unit)[mask],
            ((batch.reward - self.reward_mean) / self.reward_scale)[mask].unsqueeze(-1) if config.reward_head else None,
            batch.terminated[mask].to(before.dtype) if config.termination_head else None,
            num_components=config.num_components,
            min_scale=config.min_scale,
            termination_weight=config.termination_weight,
            joint=config.factorization is Factorization.JOINT,
            termination_gradient=config.termination_gradient,
        )
        heads = [head for head in (self.latent_head, self.reward_head, self.termination_head) if head is not None]
        linear = [head.linear if isinstance(head, MixtureHead) else head for head in heads]
        total, terms = fused.heads_loss(
            self._features(before, batch.action, output).flatten(0, 1),
            mask.flatten().nonzero()[:, 0],
            torch.cat([layer.weight for layer in linear]),
            torch.cat([layer.bias for layer in linear]),
            targets,
        )
        volume = unit.log().sum(), self.reward_scale.log().sum() * config.reward_head  # densities are of z and r, not in units
        counted = len(targets.latent)
        terms = terms + counted * torch.stack([*volume, torch.zeros_like(volume[0])])
        return total + counted * (volume[0] / config.latent_size + volume[1]), terms

    def _run(
        self,
        z: Tensor,
        action: Tensor,
        state: State | None,
        generator: torch.Generator | None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """Run the LSTM over (B, T, D) and (B, T, A): outputs (B, T, H) and the state after the last step."""
        self._check_inputs(z, action, "B, T")
        inputs = _dropout(torch.cat([z, action], dim=-1), self.config.input_dropout, self.training, generator)
        output, (h, c) = run_lstm(self.lstm, inputs, state, lengths)
        return output, State(h, c)

    def _check_batch(self, batch: SequenceBatch) -> None:
        for name in ("reward", "terminated", "mask"):
            if getattr(batch, name).shape != batch.action.shape[:-1]:
                expected, got = tuple(batch.action.shape[:-1]), tuple(getattr(batch, name).shape)
                raise ValueError(f"{name}: expected shape {expected}, got {got}")

    def _check_inputs(self, z: Tensor, action: Tensor, leading: str) -> None:
        d, a = self.config.latent_size, self.config.action_size
        if z.ndim != leading.count(",") + 2 or z.shape[-1] != d:
            raise ValueError(f"z: expected shape ({leading}, {d}), got {tuple(z.shape)}")
        if action.shape != (*z.shape[:-1], a):
            raise ValueError(f"action: expected shape {(*z.shape[:-1], a)}, got {tuple(action.shape)}")

    def _features(self, z: Tensor, action: Tensor, h: Tensor) -> Tensor:
        """What the heads see: h_{t+1} (..., H), and z_t (..., D) and a_t (..., A) beside it where inputs skip the LSTM."""
        return torch.cat([h, z, action], dim=-1) if self.config.skip else h

    def _predict(self, z: Tensor, action: Tensor, h: Tensor, *, termination_gradient: float = 1.0) -> Prediction:
        """Apply the heads."""
        h = self._features(z, action, h)
        latent = self.latent_head(h)
        if self.config.predict_change:
            latent = latent.affine(z, self.change_scale)
        reward = None if self.reward_head is None else self.reward_head(h).affine(self.reward_mean, self.reward_scale)
        logit = None
        if self.termination_head is not None:
            logit = at_least_float32(self.termination_head(_damped(h, termination_gradient))[..., 0])
        return Prediction(latent, reward, logit)


def _damped(x: Tensor, factor: float) -> Tensor:
    """The same numbers, through which a gradient goes back times ``factor``."""
    return x if factor == 1 else x.detach().lerp(x, factor)


def _dropout(x: Tensor, probability: float, training: bool, generator: torch.Generator | None) -> Tensor:
    """Inverted dropout that draws from ``generator`` and not, as `nn.Dropout`, from the global state."""
    if not training or probability == 0:
        return x
    keep = torch.empty_like(x).bernoulli_(1 - probability, generator=generator)
    return x * keep / (1 - probability)
