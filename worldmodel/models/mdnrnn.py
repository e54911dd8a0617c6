r"""M, the MDN-RNN of Ha & Schmidhuber (2018): an LSTM whose output parameterises a distribution over the next step.

From :math:`(z_t, a_t)` and its state the LSTM computes :math:`h_{t+1}`. Linear heads on it give
:math:`p(z_{t+1} \mid h_{t+1})`, a Gaussian over the reward :math:`r_t` and the log-odds that the episode terminates with this
step. A sequence (`MDNRNN.forward`) and one step of a dream (`MDNRNN.step`) are the same mathematics with the same weights.

Two choices differ from the paper's code:

- The latent head predicts the *change* z_{t+1} - z_t, in units of its standard deviation over the data, unless
  ``predict_change`` is False. The density is still that of z_{t+1}. dev/LOG.md has the measurement behind the default.
- The reward head is a Gaussian too, so that it has a likelihood.

M does not know what kind of head predicts z: that is a `worldmodel.mixtures.LatentHead`, named by `MDNRNNConfig.latent_head`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from worldmodel.mixtures import (
    GaussianMixture,
    LatentDistribution,
    NoiseType,
    RewardHead,
    TerminationHead,
    fused,
    latent_head_class,
)
from worldmodel.models.batch import DataStatistics, SequenceBatch
from worldmodel.models.lstm import LayerNormLSTM, run_lstm, runs_in_loop
from worldmodel.models.mdnrnn_config import AUTO_LATENT_HEAD, DEFAULT_LATENT_HEAD, MDNRNNConfig
from worldmodel.runtime import check_integer

INITIAL_STEPS = 16_384  # the initial components of the latent head fit so many steps at most
STATE_RIDGE, INPUT_RIDGE = 1e-2, 1e-6  # of that fit: penalties of h, which changes in training, and of z and a


class State(NamedTuple):
    """State of the LSTM: ``h`` and ``c``, each (num_layers, B, H)."""

    h: Tensor
    c: Tensor


@dataclass(frozen=True)
class Prediction:
    """M's prediction of the next step, for every element of the batch shape (...).

    Args:
        latent: distribution over z_{t+1}, batch shape (...).
        reward: Gaussian over r_t as a one-component mixture over one number, batch shape (...); None without the head.
        termination_logit: (...) log-odds that the episode terminates with this step; None without the head.
    """

    latent: LatentDistribution
    reward: GaussianMixture | None
    termination_logit: Tensor | None


@dataclass(frozen=True)
class StepLosses:
    """Losses of each step before any averaging, each (B, T) in nats.

    Args:
        latent: -log p(z_{t+1}), summed over D.
        reward: -log p(r_t); zeros without the head.
        termination: weighted cross-entropy of the termination; zeros without the head.
    """

    latent: Tensor
    reward: Tensor
    termination: Tensor


class MDNRNN(nn.Module):
    """The recurrent world model: `forward` over sequences, `step` in dreams, `advance` if only the state is needed.

    Args:
        latent_size: D, size of z.
        action_size: A, size of the action's feature vector.
        config: architecture and loss; with ``termination_head`` None the model has that head, and with ``latent_head`` "auto" a
            `MixtureHead`. The model's ``config`` has the decision.

    Raises:
        ValueError: if a size is below 1, or ``latent_head`` is not a registered class.
        TypeError: if a size is not an integer.
    """

    change_scale: Tensor
    reward_mean: Tensor
    reward_scale: Tensor
    latent_low: Tensor
    latent_high: Tensor
    reward_low: Tensor
    reward_high: Tensor

    def __init__(self, latent_size: int, action_size: int, config: MDNRNNConfig | None = None):
        super().__init__()
        latent_size, action_size = (
            check_integer(size, name, least=1) for name, size in (("latent_size", latent_size), ("action_size", action_size))
        )
        config = config or MDNRNNConfig()
        if config.termination_head is None:
            config = replace(config, termination_head=True)
        if config.latent_head == AUTO_LATENT_HEAD:
            config = replace(config, latent_head=DEFAULT_LATENT_HEAD)
        if config.below_scale is None:
            config = replace(config, below_scale=1 / latent_size if config.noise_type is NoiseType.FULL else 1.0)
        self.latent_size, self.action_size, self.config = latent_size, action_size, config
        input_size = latent_size + action_size
        lstm = LayerNormLSTM if config.layer_norm else nn.LSTM
        self.lstm = lstm(input_size, config.hidden_size, config.num_layers, batch_first=True)
        features = config.hidden_size + (input_size if config.skip else 0)
        self.latent_head = latent_head_class(config.latent_head).from_config(features, latent_size, config)
        self.reward_head = RewardHead(features, config.min_scale) if config.reward_head else None
        self.termination_head = TerminationHead(features, config.termination_weight) if config.termination_head else None
        statistics = DataStatistics.neutral(latent_size)
        for name, value in vars(statistics).items():
            self.register_buffer(name, value)

    def config_to_json(self) -> dict[str, Any]:
        """Return the constructor arguments as JSON-serialisable data, the sizes first."""
        return {"latent_size": self.latent_size, "action_size": self.action_size, **self.config.to_json()}

    @classmethod
    def from_config(cls, data: dict[str, Any]) -> MDNRNN:
        """Make a model with fresh weights from what `config_to_json` returned."""
        fields = {"below_scale": 1.0} | data  # files of earlier versions lack it
        return cls(fields.pop("latent_size"), fields.pop("action_size"), MDNRNNConfig(**fields))

    def set_statistics(self, statistics: DataStatistics) -> None:
        """Set the units of the heads and the bounds of dreams, usually from the training data.

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

    @torch.no_grad()
    def initialise_latent_head(self, batches: Iterable[SequenceBatch]) -> None:
        """Start the latent head near the targets of a few training batches; see `LatentHead.initialise`."""
        features, targets, missing = [], [], INITIAL_STEPS
        for batch in batches:
            before = batch.z[:, :-1]
            output, _ = self._run(before, batch.action, None, None)
            features.append(self._features(before, batch.action, output)[batch.mask][:missing])
            targets.append(self._latent_target(batch.z)[batch.mask][:missing])
            missing -= len(targets[-1])
            if missing <= 0:
                break
        found = torch.cat(features)
        ridge = found.new_full((found.shape[1],), INPUT_RIDGE)
        ridge[: self.config.hidden_size] = STATE_RIDGE
        self.latent_head.initialise(found, torch.cat(targets), ridge)

    def _latent_target(self, z: Tensor) -> Tensor:
        """Return what the latent head predicts of z (B, T + 1, D), in its units: (B, T, D)."""
        return (z[:, 1:] - z[:, :-1]) / self.change_scale if self.config.predict_change else z[:, 1:]

    def initial_state(self, batch_size: int) -> State:
        """Return the state at the start of every episode, zeros: (num_layers, B, H) each."""
        zeros = self.change_scale.new_zeros(self.config.num_layers, batch_size, self.config.hidden_size)
        return State(zeros, zeros.clone())

    def forward(
        self, z: Tensor, action: Tensor, state: State | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Prediction, State]:
        """Predict each next step of a batch of sequences.

        Args:
            z: (B, T, D).
            action: (B, T, A) action features.
            state: state before the first step; zeros if None.
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
        """Compute the loss of every step of a batch, (B, T) each; steps outside the mask hold arbitrary numbers.

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
        if self.termination_head is not None:
            assert prediction.termination_logit is not None
            termination = self.termination_head.loss(prediction.termination_logit, batch.terminated)
        return StepLosses(latent, reward, termination)

    def loss(self, batch: SequenceBatch, *, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Average the losses over the steps in the mask, the latent loss per dimension, with the weights of the authors' code.

        Args:
            batch: the windows.
            generator: source of dropout's randomness, in training only.

        Returns:
            The scalar ``latent / D + reward + termination``, and its terms: ``nll_per_dim`` (nats per dimension of z),
            ``reward_nll`` (nats) and ``termination_loss`` (nats, weighted).
        """
        self._check_batch(batch)
        count = batch.mask.sum().clamp(min=1)
        if self.latent_head.supports_raw:
            total, sums = self._fused_losses(batch, generator)
        else:
            losses = self.step_losses(batch, generator=generator)
            sums = torch.stack([torch.where(batch.mask, term, 0.0).sum() for term in vars(losses).values()])
            total = sums[0] / self.latent_size + sums[1] + sums[2]
        latent, reward, termination = (sums.detach() / count).unbind()
        metrics = {"nll_per_dim": latent / self.latent_size}
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
        unit = self.change_scale if config.predict_change else torch.ones_like(self.change_scale)
        target = self._latent_target(batch.z)[mask]  # (N, D)
        terms = [fused.LossTerm(self.latent_head, target, divisor=self.latent_size)]
        if self.reward_head is not None:
            reward = ((batch.reward - self.reward_mean) / self.reward_scale)[mask].unsqueeze(-1)
            terms.append(fused.LossTerm(self.reward_head, reward))
        if self.termination_head is not None:
            terminated = batch.terminated[mask].to(before.dtype)
            terms.append(fused.LossTerm(self.termination_head, terminated, feature_gradient=config.termination_gradient))
        features = self._features(before, batch.action, output).flatten(0, 1)
        total, found = fused.heads_loss(features, mask.flatten().nonzero()[:, 0], terms)
        parts, zero = iter(found.unbind()), found.new_zeros(())
        present = (True, self.reward_head is not None, self.termination_head is not None)
        sums = torch.stack([next(parts) if here else zero for here in present])
        volume = unit.log().sum(), self.reward_scale.log().sum() * config.reward_head  # densities are of z and r, not in units
        sums = sums + len(target) * torch.stack([*volume, torch.zeros_like(volume[0])])
        return total + len(target) * (volume[0] / self.latent_size + volume[1]), sums

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
        d, a = self.latent_size, self.action_size
        if z.ndim != leading.count(",") + 2 or z.shape[-1] != d:
            raise ValueError(f"z: expected shape ({leading}, {d}), got {tuple(z.shape)}")
        if action.shape != (*z.shape[:-1], a):
            raise ValueError(f"action: expected shape {(*z.shape[:-1], a)}, got {tuple(action.shape)}")

    def _features(self, z: Tensor, action: Tensor, h: Tensor) -> Tensor:
        """Inputs of the heads: h_{t+1} (..., H), followed by z_t (..., D) and a_t (..., A) with skip connections."""
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
            logit = self.termination_head(_damped(h, termination_gradient))
        return Prediction(latent, reward, logit)


def _damped(x: Tensor, factor: float) -> Tensor:
    """Return the same numbers, with their gradient multiplied by ``factor``."""
    return x if factor == 1 else x.detach().lerp(x, factor)


def _dropout(x: Tensor, probability: float, training: bool, generator: torch.Generator | None) -> Tensor:
    """Inverted dropout with ``generator`` as the source of randomness; `nn.Dropout` uses the global state."""
    if not training or probability == 0:
        return x
    keep = torch.empty_like(x).bernoulli_(1 - probability, generator=generator)
    return x * keep / (1 - probability)
