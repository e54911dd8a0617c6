"""M's head for the termination."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from worldmodel.mixtures.gaussian import at_least_float32


class TerminationHead(nn.Linear):
    """A linear layer from features to the log-odds that the episode terminates with this step.

    Args:
        in_features: F, size of the features.
        positive_weight: weight in the loss of the steps that terminate.
    """

    def __init__(self, in_features: int, positive_weight: float = 1.0):
        super().__init__(in_features, 1)
        self.positive_weight = positive_weight

    @property
    def linear(self) -> nn.Linear:
        """The layer that computes the raw output: itself."""
        return self

    @property
    def target_weight(self) -> None:
        """None: the head does not see the target."""
        return None

    def forward(self, features: Tensor) -> Tensor:
        """Turn features (..., F) into log-odds (...), in float32 or better."""
        return at_least_float32(super().forward(features)[..., 0])

    def loss(self, logit: Tensor, terminated: Tensor) -> Tensor:
        """Weighted cross-entropy of each step, in nats.

        Args:
            logit: (...) log-odds.
            terminated: (...) bool.

        Returns:
            (...).
        """
        return self._cross_entropy(logit, terminated.to(logit.dtype), "none")

    def raw_nll(self, raw: Tensor, target: Tensor, *, gradient: bool) -> Tensor:
        """Sum the weighted cross-entropy over the steps, and overwrite ``raw`` with the gradient if requested.

        Args:
            raw: (N, 1) log-odds.
            target: (N,) 0 or 1, in the dtype of ``raw``.
            gradient: whether to overwrite ``raw``.
        """
        logit, weight = self.raw_logit(raw), self.positive_weight
        loss = self._cross_entropy(logit, target, "sum")
        if gradient and weight == 1:
            logit.sigmoid_().sub_(target)
        elif gradient:
            logit.sigmoid_().mul_(1 + (weight - 1) * target).sub_(weight * target)
        return loss

    def raw_logit(self, raw: Tensor) -> Tensor:
        """Return the log-odds (N,) of raw outputs (N, 1), as a view."""
        return raw[:, 0]

    def _cross_entropy(self, logit: Tensor, target: Tensor, reduction: str) -> Tensor:
        pos_weight = None if self.positive_weight == 1 else logit.new_tensor(self.positive_weight)
        return functional.binary_cross_entropy_with_logits(logit, target, pos_weight=pos_weight, reduction=reduction)
