"""Dream step in half precision: M's step and a sample of the next latent, in few matrix products.

It is the mathematics of `MDNRNN.step` followed by a sample, written for speed at the paper's sizes: the weights are cast and
stacked once, so that a layer of the LSTM is one product and all heads are another. The latent head then samples from its raw
outputs (`LatentHead.sample_raw`) and computes only what the sample needs. Cell, gates and the sample are in float32.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from worldmodel.dream.latent_world import Drawn
from worldmodel.mixtures import RewardHead
from worldmodel.models import MDNRNN, MDNRNNEnsemble, State, activate_gates, refuse_ensemble, stack_layers, stack_weights


class FastStep:
    """M's step and a sample of what it predicts, for a copy of its weights as they are now.

    Args:
        model: M, with an `nn.LSTM` and a latent head that supports raw outputs, such as mixtures whose components have a sigma
            for each dimension.
        dtype: dtype of the matrix products.

    Raises:
        ValueError: if ``model`` is of another kind.
    """

    def __init__(self, model: MDNRNN, dtype: torch.dtype = torch.bfloat16):
        refuse_ensemble(model, "dreams in half precision")
        if not applies(model):
            raise ValueError(
                "model: expected an LSTM without layer_norm and a latent head that supports raw outputs, such as mixtures with "
                f"a sigma for each component and dimension, to dream in half precision, got {model.config}"
            )
        self._model, self._dtype = model, dtype
        assert isinstance(model.lstm, nn.LSTM)
        self._layers = [stack_weights(*weights).detach().to(dtype).t().contiguous() for weights in model.lstm.all_weights]
        heads = [head for head in (model.latent_head, model.reward_head, model.termination_head) if head is not None]
        latent, *self._outcome = (head.linear.out_features for head in heads)
        seen = model.latent_head.linear.weight.shape[1]  # F; the others may see an outcome layer too
        layers = [cast(nn.Linear, layer.linear) for layer in model.outcome_layers.values()]
        weights = [head.linear.weight for head in heads] + [2 * layer.weight for layer in layers]
        self._heads = torch.cat([weight[:, :seen] for weight in weights]).detach().to(dtype).t().contiguous()
        self._bias = torch.cat([head.linear.bias for head in heads] + [2 * layer.bias for layer in layers]).detach()
        self._sizes = [latent, sum(self._outcome), len(self._bias) - latent - sum(self._outcome)]
        if layers:  # what they see of the next latent, and what the heads see of them, are few numbers: not in half precision
            both = torch.eye(2 * model.latent_size, dtype=torch.float64, device=self._bias.device)  # z_{t+1} and z_t
            after = torch.cat(model.seen_after(*reversed(both.chunk(2, dim=1))), dim=1)  # linear in both
            self._next = after @ torch.cat([2 * layer.weight[:, seen:] for layer in layers]).detach().double().t()
            self._next = self._next.to(self._bias.dtype)  # (2 D, U)
            by_units = torch.block_diag(*(head.linear.weight[:, seen:] for head in heads[1:])).detach()
            self._units = 2 * by_units.t().contiguous()  # (U of all layers, O of their heads)
            self._bias[latent : latent + len(by_units)] -= by_units.sum(dim=1)  # as tanh(x) is 2 sigmoid(2 x) - 1

    def __call__(
        self,
        z: Tensor,
        action: Tensor,
        state: State,
        *,
        temperature: float | Tensor,
        uniform: Tensor,
        normal: Tensor,
        reward_noise: tuple[Tensor, Tensor] | None = None,
    ) -> Drawn:
        """Advance by one step and sample z.

        Args:
            z: (B, D).
            action: (B, A) action features.
            state: state of the LSTM.
            temperature: tau >= 0, a number or (B,).
            uniform: (B, `LatentHead.num_uniforms`) in [0, 1).
            normal: (B, `LatentHead.num_normals`) standard normal.
            reward_noise: (B,) in [0, 1) and (B,) standard normal, to sample the reward; None for its expectation.
        """
        model = self._model
        action = model.action_units(action, z.dtype)
        lstm, h = self._advance(z, action, state)
        seen = torch.cat([h, z, action], dim=1) if model.config.skip else h
        raw = torch.add(seen.to(self._dtype) @ self._heads, self._bias)  # (B, O + U)
        latent, outcome, units = raw.split(self._sizes, dim=1)
        sample = model.latent_head.sample_raw(latent, temperature=temperature, uniform=uniform, normal=normal)
        sample = model.frame.next_z(sample, z, model.change_scale)
        if model.outcome_layers:
            both = torch.cat([sample.clamp(model.latent_low, model.latent_high), z], dim=1)
            outcome = torch.addmm(outcome, torch.addmm(units, both, self._next).sigmoid_(), self._units)
        outputs = iter(outcome.split(self._outcome, dim=1))
        reward = logit = None
        if model.reward_head is not None:
            reward = self._reward(model.reward_head, next(outputs), reward_noise)
        if model.termination_head is not None:
            logit = model.termination_head.raw_logit(next(outputs))
        return Drawn(sample, lstm, reward, logit)

    def _reward(self, head: RewardHead, raw: Tensor, noise: tuple[Tensor, Tensor] | None) -> Tensor:
        """Return expected or sampled rewards (B,)."""
        units = self._model.reward_mean, self._model.reward_scale
        if noise is None:
            return head.raw_expectation(raw, *units)
        return head.sample_raw(raw, *units, uniform=noise[0], normal=noise[1])

    def _advance(self, z: Tensor, action: Tensor, state: State) -> tuple[State, Tensor]:
        """Return the next state, and h of the last layer (B, H)."""
        one = z.new_ones(len(z), 1)
        below, layers = torch.cat([z, action], dim=1), []
        for weight, h, c in zip(self._layers, *state, strict=True):
            joined = torch.cat([below, one, h], dim=1).to(self._dtype)
            gates = c.new_empty(len(c), 4 * c.shape[1])
            i, f, g, o = activate_gates(joined @ weight, gates)
            cell = (f * c).addcmul_(i, g)
            below = torch.tanh(cell).mul_(o)
            layers.append((below, cell))
        return State(*(stack_layers(part) for part in zip(*layers, strict=True))), below


def applies(model: MDNRNN) -> bool:
    """Whether M is of a kind that `FastStep` supports."""
    return not isinstance(model, MDNRNNEnsemble) and isinstance(model.lstm, nn.LSTM) and model.latent_head.supports_raw
