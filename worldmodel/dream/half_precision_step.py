r"""A step of many dreams with matrix products in half precision and a draw that touches only what is chosen.

It is the mathematics of `MDNRNN.step` and `GaussianMixture.sample` for an LSTM with a sigma for each component and dimension,
as the paper has it, written for speed at the paper's sizes: weights are cast and stacked once, so that a layer of the LSTM is
one product and all heads another; and of K components, the floor of sigma and the affine map are computed for the chosen one
alone. The component is chosen by one uniform number against the running sum of the weights. Cell, gates and the draw are in
float32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worldmodel.dream.latent_world import Drawn
from worldmodel.mixtures import Factorization, MixtureHead, fused
from worldmodel.models import MDNRNN, State, activate_gates, stack_weights

BELOW_ONE = 1 - 2.0**-22  # a uniform number times this times a sum is less than the sum, in float32 too


class FastStep:
    """M's step and a draw from what it predicts, for a copy of its weights as they are now.

    Args:
        model: M, with an `nn.LSTM` and mixtures, joint or per dimension, whose components have a sigma for each dimension.
        dtype: of the matrix products.

    Raises:
        ValueError: if ``model`` is of another kind.
    """

    def __init__(self, model: MDNRNN, dtype: torch.dtype = torch.bfloat16):
        if not applies(model):
            raise ValueError(
                "model: expected an LSTM without layer_norm and mixtures with a sigma for each component and dimension, "
                f"which alone can be dreamed in half precision, got {model.config}"
            )
        self._model, self._dtype = model, dtype
        self._joint = model.config.factorization is Factorization.JOINT
        assert isinstance(model.lstm, nn.LSTM)
        self._layers = [stack_weights(*weights).detach().to(dtype).t().contiguous() for weights in model.lstm.all_weights]
        heads = [head for head in (model.latent_head, model.reward_head, model.termination_head) if head is not None]
        linear = [head.linear if isinstance(head, MixtureHead) else head for head in heads]
        self._heads = torch.cat([layer.weight for layer in linear]).detach().to(dtype).t().contiguous()
        self._bias = torch.cat([layer.bias for layer in linear]).detach()

    @property
    def num_choices(self) -> int:
        """Components that a dream chooses in a step: one for each dimension, or one where they are joint."""
        return 1 if self._joint else self._model.config.latent_size

    def __call__(
        self, z: Tensor, action: Tensor, state: State, *, temperature: float | Tensor, uniform: Tensor, normal: Tensor
    ) -> Drawn:
        """Advance by one step and draw z.

        Args:
            z: (B, D).
            action: (B, A) action features.
            state: of the LSTM.
            temperature: tau >= 0, a number or (B,).
            uniform: (B, `num_choices`) in [0, 1), chooses the components.
            normal: (B, D), the noise.
        """
        lstm, h = self._advance(z, action, state)
        seen = torch.cat([h, z.to(h.dtype), action.to(h.dtype)], dim=1) if self._model.config.skip else h
        raw = (seen @ self._heads).to(self._bias.dtype).add_(self._bias)  # (B, O)
        count, config = self._model.latent_head.linear.out_features, self._model.config
        parameters = fused.mixture_outputs(raw[:, :count], config.num_components, z.shape[1], joint=self._joint)
        drawn = draw(*parameters, config.min_scale, temperature=temperature, uniform=uniform, normal=normal)
        if self._model.config.predict_change:
            drawn = drawn.mul_(self._model.change_scale).add_(z)
        reward = None
        if self._model.reward_head is not None:
            reward = raw[:, count + 1] * self._model.reward_scale + self._model.reward_mean  # of logit, mean, log sigma
        return Drawn(drawn, lstm, reward, None if self._model.termination_head is None else raw[:, -1])

    def _advance(self, z: Tensor, action: Tensor, state: State) -> tuple[State, Tensor]:
        """The state after (z, a), in the precision of ``state``, and h of the last layer (B, H) in that of the products."""
        one = z.new_ones(len(z), 1)
        below, layers = torch.cat([z, action], dim=1), []
        for weight, h, c in zip(self._layers, *state, strict=True):
            joined = torch.cat([part.to(self._dtype) for part in (below, one, h)], dim=1)
            gates = c.new_empty(len(c), 4 * c.shape[1])
            i, f, g, o = activate_gates(joined @ weight, gates)
            cell = (f * c).addcmul_(i, g)
            below = torch.tanh(cell).mul_(o)
            layers.append((below, cell))
        return State(*(torch.stack(part) for part in zip(*layers, strict=True))), below.to(self._dtype)


def applies(model: MDNRNN) -> bool:
    """Whether M is of the kind that `FastStep` knows."""
    return isinstance(model.lstm, nn.LSTM) and fused.applies(model.latent_head)


def draw(
    logits: Tensor,
    means: Tensor,
    raw_log_scales: Tensor,
    min_scale: float,
    *,
    temperature: float | Tensor,
    uniform: Tensor,
    normal: Tensor,
) -> Tensor:
    """Draw from mixtures at a temperature, as `GaussianMixture.sample` does, in the units of the outputs.

    Args:
        logits: (B, K, D) of mixtures per dimension, or (B, K, 1) of joint ones.
        means: (B, K, D).
        raw_log_scales: (B, K, D).
        min_scale: floor of the sigmas.
        temperature: tau >= 0, a number or (B,); at 0 the heaviest component's mean, the first among equals.
        uniform: (B, D) or (B, 1) in [0, 1), one for each choice of a component.
        normal: (B, D).

    Returns:
        (B, D).
    """
    tau = torch.as_tensor(temperature, dtype=logits.dtype, device=logits.device).reshape(-1, 1)  # (1, 1) or (B, 1)
    coldest = torch.finfo(logits.dtype).tiny  # below it 1 / tau overflows
    weights = ((logits - logits.amax(dim=1, keepdim=True)) / tau.clamp(min=coldest).unsqueeze(1)).exp_()
    aim = weights.sum(dim=1).mul_(uniform * BELOW_ONE * (tau >= coldest))  # 0 finds the first that weighs anything
    mean, log_scale, passed = means[:, 0], raw_log_scales[:, 0], weights[:, 0].clone()
    for k in range(1, weights.shape[1]):
        beyond = aim >= passed
        mean, log_scale = torch.where(beyond, means[:, k], mean), torch.where(beyond, raw_log_scales[:, k], log_scale)
        passed += weights[:, k]
    sigma = (2 * log_scale).clamp_(max=fused.LARGEST_LOG_VARIANCE).exp_().add_(min_scale**2).sqrt_()
    return torch.addcmul(mean, sigma, normal * tau.sqrt())
