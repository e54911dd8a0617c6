r"""M, the MDN-RNN of Ha & Schmidhuber (2018): an LSTM whose output parameterises a distribution over the next step.

From :math:`(z_t, a_t)` and its state the LSTM computes :math:`h_{t+1}`. Linear heads on it give
:math:`p(z_{t+1} \mid h_{t+1})`, a distribution over the reward :math:`r_t` and the log-odds that the episode terminates with
this step. A sequence (`MDNRNN.forward`) and one step of a dream (`MDNRNN.step`) are the same mathematics with the same weights.

Two choices differ from the paper's code:

- The latent head predicts the *change* z_{t+1} - z_t, in units of its standard deviation over the data, unless
  ``predict_change`` is False. The density is still that of z_{t+1}. dev/LOG.md has the measurement behind the default.
- The reward head has a likelihood: atoms for rewards that recur exactly, and a mixture for the others.

The head that predicts z is any `worldmodel.mixtures.LatentHead`, named by `MDNRNNConfig.latent_head`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from worldmodel.mixtures import (
    CONSTANTS,
    DEFAULT_MIN_SCALE,
    LatentLayout,
    RewardHead,
    TerminationHead,
    log_probs_by_kind,
)
from worldmodel.models.action_units import ActionUnits
from worldmodel.models.batch import DataStatistics, SequenceBatch
from worldmodel.models.extra_inputs import ExtraInputs
from worldmodel.models.fused_loss import fused_loss
from worldmodel.models.latent_frame import LatentFrame
from worldmodel.models.lstm import LayerNormLSTM, forget_past, run_lstm, stack_layers
from worldmodel.models.mdnrnn_config import AUTO_LATENT_HEAD, DEFAULT_LATENT_HEAD, MDNRNNConfig
from worldmodel.models.missing import check_head, masked_loss, masked_terms
from worldmodel.models.outcome import Outcome, Prediction, check_next, new_outcome_layers, scale_gradient, through_layers
from worldmodel.rng import BatchRows, fill_bernoulli
from worldmodel.runtime import check_integer, float32_default


class State(NamedTuple):
    """State of the LSTM: ``h`` and ``c``, each (num_layers, B, H)."""

    h: Tensor
    c: Tensor


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
        action_size: A, size of the action's feature vector; 0 for data without actions.
        config: architecture and loss; with ``termination_head`` None the model has that head, and with ``latent_head`` "auto" a
            `MixtureHead`. The model's ``config`` has the decision.
        layout: the kinds of the parts of z; None predicts all of it with one density, as does a layout of densities.
        extras: inputs beside z and the action; None for none.

    Raises:
        ValueError: if a size is out of range, ``latent_head`` is not a registered class or cannot be used with missing numbers,
            or ``layout`` is of another size.
        TypeError: if a size is not an integer.
    """

    change_scale: Tensor
    reward_mean: Tensor
    reward_scale: Tensor
    latent_low: Tensor
    latent_high: Tensor
    reward_low: Tensor
    reward_high: Tensor

    @float32_default()
    def __init__(
        self,
        latent_size: int,
        action_size: int,
        config: MDNRNNConfig | None = None,
        *,
        layout: LatentLayout | None = None,
        extras: ExtraInputs | None = None,
    ):
        super().__init__()
        latent_size = check_integer(latent_size, "latent_size", least=1)
        action_size = check_integer(action_size, "action_size", least=0)
        config = config or MDNRNNConfig()
        config = replace(
            config,
            termination_head=True if config.termination_head is None else config.termination_head,
            reward_components=1 if config.reward_components is None else config.reward_components,
            reward_atoms=config.reward_atoms or (),
            outcome_size=config.outcome_size or 0,
            latent_head=DEFAULT_LATENT_HEAD if config.latent_head == AUTO_LATENT_HEAD else config.latent_head,
            min_scale=DEFAULT_MIN_SCALE if config.min_scale is None else config.min_scale,
        )
        self.latent_size, self.action_size, self.config = latent_size, action_size, config
        self.extras = extras or ExtraInputs()
        input_size = latent_size + action_size + self.extras.size
        sizes = input_size, config.hidden_size, config.num_layers
        self.lstm = LayerNormLSTM(*sizes, eps=config.layer_norm_eps) if config.layer_norm else nn.LSTM(*sizes, batch_first=True)
        if isinstance(self.lstm, nn.LSTM) and not config.memory:
            forget_past(self.lstm)
        features = config.hidden_size + (input_size if config.skip else 0)
        self.layout = None if layout is None or layout.is_density else layout
        self.frame = LatentFrame(latent_size, predict_change=config.predict_change, layout=self.layout)
        self.latent_head = self.frame.new_head(features, config)
        check_head(self.latent_head, self.extras)
        wider = features + (config.outcome_size or 0)
        self.reward_head = RewardHead.from_config(wider, config) if config.reward_head else None
        self.termination_head = TerminationHead(wider, config.termination_weight) if config.termination_head else None
        self.outcome_layers = new_outcome_layers(config, features, latent_size, self.frame.num_changes)
        statistics = DataStatistics.neutral(latent_size)
        for name, value in vars(statistics).items():
            self.register_buffer(name, value)
        self.action_units = ActionUnits(action_size, self.extras)

    def config_to_json(self) -> dict[str, Any]:
        """Return the constructor arguments as JSON-serialisable data, the sizes first."""
        rest = ({} if self.layout is None else {"layout": self.layout.to_json()}) | self.latent_head.constants()
        rest |= self.extras.to_json()
        return {"latent_size": self.latent_size, "action_size": self.action_size, **self.config.to_json(), **rest}

    @classmethod
    def from_config(cls, data: dict[str, Any]) -> MDNRNN:
        """Make a model with fresh weights from what `config_to_json` returned."""
        fields = dict(data)
        layout = LatentLayout.from_json(fields.pop("layout")) if "layout" in fields else None
        constants = {name: fields.pop(name) for name in CONSTANTS if name in fields}
        extras, sizes = ExtraInputs.take_from(fields), (fields.pop("latent_size"), fields.pop("action_size"))
        model = cls(*sizes, MDNRNNConfig.from_json(fields), layout=layout, extras=extras)
        model.latent_head.set_constants(constants)
        return model

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

    @property
    def mean_reward(self) -> float:
        """Mean reward of the training data; 0 without a reward head."""
        return 0.0 if self.reward_head is None else self.reward_head.mean_reward(self.reward_mean).item()

    @property
    def state_size(self) -> int:
        """Hidden units that an agent sees of the last layer, H."""
        return self.config.hidden_size

    @property
    def is_fused(self) -> bool:
        """Whether the loss is computed on the raw outputs of the heads."""
        return self.latent_head.supports_raw

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
            action: (B, T, A) action features, in their own units; `ActionUnits` standardises them. `ExtraInputs` may follow.
            state: state before the first step; zeros if None.
            generator: source of dropout's randomness, in training only.

        Returns:
            The prediction with batch shape (B, T), and the state after the last step.

        Raises:
            ValueError: if a shape does not fit.
        """
        action = self.action_units(action, z.dtype)
        self.check_inputs(z, action, "B, T")
        output, state = self._run(torch.cat([z, action], dim=-1), state, generator)
        return self._predict(z, action, output, damped=True), state

    def step(self, z: Tensor, action: Tensor, state: State) -> tuple[Prediction, State]:
        """Predict one step for ``z`` (B, D) and ``action`` (B, A), batch shape (B,): `forward` with T = 1, without dropout."""
        action = self.action_units(action, z.dtype)
        state = self._advance(z, action, state)
        return self._predict(z, action, state.h[-1]), state

    def advance(self, z: Tensor, action: Tensor, state: State) -> State:
        """Advance the state by one step, without predicting: ``z`` (B, D), ``action`` (B, A).

        Raises:
            ValueError: if a shape does not fit.
        """
        return self._advance(z, self.action_units(action, z.dtype), state)

    def _advance(self, z: Tensor, action: Tensor, state: State) -> State:
        """`advance` with standardised actions."""
        self.check_inputs(z, action, "B")
        inputs = torch.cat([z, action], dim=-1)
        if isinstance(self.lstm, LayerNormLSTM):
            _, (h, c) = self.lstm(inputs.unsqueeze(1), state)
            return State(h, c)
        layers = []
        for weights, h, c in zip(self.lstm.all_weights, *state, strict=True):
            # The same as nn.LSTM with T = 1, without its overhead: 20 instead of 88 us at batch 1 (dev/LOG.md).
            inputs, cell = torch.lstm_cell(inputs, (h, c), *weights)
            layers.append((inputs, cell))
        return State(*(stack_layers(part) for part in zip(*layers, strict=True)))

    def step_losses(self, batch: SequenceBatch, *, generator: torch.Generator | None = None) -> StepLosses:
        """Compute the loss of every step of a batch, (B, T) each; steps outside the mask hold arbitrary numbers.

        Args:
            batch: the windows.
            generator: source of dropout's randomness, in training only.

        Raises:
            ValueError: if a shape does not fit; nothing is broadcast silently.
        """
        self._check_batch(batch)
        if self.extras.maskable:
            terms = masked_terms(self, batch, generator)
            return StepLosses(terms.total_latent, terms.reward, terms.termination)
        by_kind, reward, termination = self._losses_by_kind(batch, generator)
        return StepLosses(torch.stack(by_kind).sum(dim=0) if by_kind else torch.zeros_like(reward), reward, termination)

    def _losses_by_kind(self, batch: SequenceBatch, generator: torch.Generator | None) -> tuple[list[Tensor], Tensor, Tensor]:
        """Losses of each step, (B, T) each: of the latent by kind, of the reward and of the termination."""
        prediction, _ = self(batch.z[:, :-1], batch.action, generator=generator)
        after = batch.z[:, 1:]
        latent = [-part for part in log_probs_by_kind(prediction.latent, after).values()]
        reward = termination = after.new_zeros(after.shape[:-1])
        outcome = prediction.outcome(after)
        if outcome.reward is not None:
            reward = -outcome.reward.log_prob(batch.reward.unsqueeze(-1))
        if self.termination_head is not None:
            assert outcome.termination_logit is not None
            termination = self.termination_head.loss(outcome.termination_logit, batch.terminated)
        return latent, reward, termination

    def loss(self, batch: SequenceBatch, *, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Average the losses over the steps in the mask, the latent loss per dimension, with the weights of the authors' code.

        Args:
            batch: the windows.
            generator: source of dropout's randomness, in training only.

        Returns:
            The scalar ``latent / V + reward + termination``, and its terms: ``nll_per_dim`` (nats per dimension of z),
            ``reward_nll`` (nats) and ``termination_loss`` (nats, weighted). V is D, or with a layout its number of random
            variables; the terms of the latent are then by kind (`worldmodel.mixtures.composite_head.SubHead`).
        """
        self._check_batch(batch)
        if self.extras.maskable:
            return masked_loss(self, batch, generator)
        count = batch.mask.sum().clamp(min=1)
        kinds = self.frame.sub_heads(self.latent_head)
        if self.is_fused:
            mean, sums = fused_loss(self, batch, count, generator)
        else:
            by_kind, reward, termination = self._losses_by_kind(batch, generator)
            sums = torch.stack([torch.where(batch.mask, term, 0.0).sum() for term in (*by_kind, reward, termination)])
            mean = (sums[:-2].sum() / self.frame.num_variables + sums[-2] + sums[-1]) / count
        *latent, reward, termination = (sums.detach() / count).unbind()
        metrics = {metric: value / size for (metric, _, _, size), value in zip(kinds, latent, strict=True)}
        if self.reward_head is not None:
            metrics["reward_nll"] = reward
        if self.termination_head is not None:
            metrics["termination_loss"] = termination
        return mean, metrics

    def seen_after(self, z: Tensor, next_z: Tensor) -> tuple[Tensor, Tensor]:
        """What the outcome layers see of the step from ``z`` to ``next_z`` (..., D): z_{t+1} and the changes in their units."""
        return next_z, self.frame.changes(z, next_z, self.change_scale)

    def head_inputs(self, batch: SequenceBatch, *, generator: torch.Generator | None = None) -> Tensor:
        """Features (B, T, F) from which the heads predict each step of a batch.

        Args:
            batch: the windows.
            generator: source of dropout's randomness, in training only.
        """
        before = batch.z[:, :-1]
        action = self.action_units(batch.action, before.dtype)
        self.check_inputs(before, action, "B, T")
        outputs = self.lstm_outputs(torch.cat([before, action], dim=-1), generator=generator)
        return self._features(before, action, outputs)

    def head_target(self, z: Tensor, next_z: Tensor) -> Tensor:
        """What the latent head predicts of the step from ``z`` to ``next_z`` (..., D), in its units: (..., D)."""
        origin, unit = self.frame.of(z, self.change_scale)
        return (next_z - origin) / unit

    def lstm_outputs(
        self, inputs: Tensor, *, generator: torch.Generator | None = None, lengths: Tensor | None = None
    ) -> Tensor:
        """Outputs of the LSTM (B, T, H) from the initial state, after dropout.

        Args:
            inputs: (B, T, D + A) z and standardised actions.
            generator: source of dropout's randomness, in training only.
            lengths: (B,) steps of each window that count, descending; None takes all.
        """
        return self._run(inputs, None, generator, lengths)[0]

    def _run(
        self, inputs: Tensor, state: State | None, generator: torch.Generator | None, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Run the LSTM over (B, T, D + A): outputs (B, T, H), after dropout, and the state after the last step."""
        inputs = _dropout(inputs, self.config.input_dropout, self.training, generator)
        output, (h, c) = run_lstm(self.lstm, inputs, state, lengths)
        return _dropout(output, self.config.output_dropout, self.training, generator), State(h, c)

    def _check_batch(self, batch: SequenceBatch) -> None:
        for name in ("reward", "terminated", "mask"):
            if getattr(batch, name).shape != batch.action.shape[:-1]:
                expected, got = tuple(batch.action.shape[:-1]), tuple(getattr(batch, name).shape)
                raise ValueError(f"{name}: expected shape {expected}, got {got}")

    def check_inputs(self, z: Tensor, action: Tensor, leading: str) -> None:
        """Raise ValueError if ``z`` and ``action`` are not of M's sizes with ``leading`` dimensions, such as "B, T"."""
        d, a = self.latent_size, self.action_size + self.extras.size
        if z.ndim != leading.count(",") + 2 or z.shape[-1] != d:
            raise ValueError(f"z: expected shape ({leading}, {d}), got {tuple(z.shape)}")
        if action.shape != (*z.shape[:-1], a):
            raise ValueError(f"action: expected shape {(*z.shape[:-1], a)}, got {tuple(action.shape)}")

    def _features(self, z: Tensor, action: Tensor, h: Tensor) -> Tensor:
        """Inputs of the heads: h_{t+1} (..., H), followed by z_t (..., D) and a_t (..., A) with skip connections."""
        return torch.cat([h, z, action], dim=-1) if self.config.skip else h

    def _predict(self, z: Tensor, action: Tensor, h: Tensor, *, damped: bool = False) -> Prediction:
        """Apply the heads; ``damped`` reduces the gradients of the reward and the termination with respect to the features."""
        h = self._features(z, action, h)
        latent = self.latent_head(h)
        if self.config.predict_change or self.layout is not None:
            latent = latent.affine(*self.frame.of(z, self.change_scale))
        return Prediction(latent, partial(self._outcome, z, h, damped))

    def _outcome(self, z: Tensor, features: Tensor, damped: bool, next_z: Tensor | None) -> Outcome:
        """Reward and termination; see `Prediction`."""
        factors = {}
        if self.reward_head is not None:
            factors["reward"] = self.reward_head.feature_gradient if damped else 1.0  # which reads a number of the device
        if self.termination_head is not None:
            factors["termination"] = self.config.termination_gradient if damped else 1.0
        seen = {name: scale_gradient(features, factor) for name, factor in factors.items()}
        if self.outcome_layers:
            seen = through_layers(self.outcome_layers, seen, *self.seen_after(z, check_next(z, next_z)))
        reward = logit = None
        if self.reward_head is not None:
            reward = self.reward_head(seen["reward"], self.reward_mean, self.reward_scale)
        if self.termination_head is not None:
            logit = self.termination_head(seen["termination"])
        return Outcome(reward, logit)


def _dropout(x: Tensor, probability: float, training: bool, generator: torch.Generator | BatchRows | None) -> Tensor:
    """Inverted dropout with ``generator`` as the source of randomness; `nn.Dropout` uses the global state."""
    if not training or probability == 0:
        return x
    # numbers in the order of x's dimensions, whatever its strides: several ranks draw their rows of them
    keep = fill_bernoulli(torch.empty_like(x, memory_format=torch.contiguous_format), 1 - probability, generator)
    return x * keep / (1 - probability)
