r"""Differentiable dreams: rollouts that a policy can be trained through by backpropagation, and returns to train it on.

`imagine` has the same dynamics as `Dreams.rollout` (in float32, and without sampled terminations, the same numbers for the same
generator and actions), but keeps the graph: from the rewards back through M and the samples of z (`GaussianMixture.rsample`) to
the policy. No dream terminates. Instead each step has a continuation probability, which is differentiable; a sampled
termination is not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worldmodel.dream.agent import LatentState
from worldmodel.dream.dreams import Dreams
from worldmodel.dream.rewards import check_rewards
from worldmodel.models import FeatureKind
from worldmodel.runtime import check_integer

DifferentiablePolicy = Callable[[Tensor], Tensor]  # features (B, F) -> action features (B, A); may have `features`


@dataclass(frozen=True)
class Imagination:
    """B imagined trajectories of T steps, with the graph back to the policy.

    Args:
        features: (B, T + 1, F) the policy's input at each step, and after the last.
        z: (B, T + 1, D).
        action: (B, T, A) action features.
        reward: (B, T) expected rewards, or those of the dreams' reward function.
        continuation: (B, T) continuation probability after each step; ones without a termination head.
    """

    features: Tensor
    z: Tensor
    action: Tensor
    reward: Tensor
    continuation: Tensor

    @property
    def survival(self) -> Tensor:
        """Probability that the episode has not terminated before each step, (B, T), 1 at the first: weight of the step."""
        survival = self.continuation.cumprod(dim=1)
        return torch.cat([torch.ones_like(survival[:, :1]), survival[:, :-1]], dim=1)


def imagine(
    dreams: Dreams, policy: DifferentiablePolicy, horizon: int, *, generator: torch.Generator, start: LatentState | None = None
) -> Imagination:
    """Dream ``horizon`` steps, with gradients from everything in the result to the policy and to ``start``.

    The weights of the world get no gradient. The dreams' termination rule and reward mode are not used: a sampled atom of the
    reward has no gradient, so rewards are expectations. A reward function must be differentiable.

    Args:
        dreams: the world, the temperature, the number of dreams B.
        policy: features (B, F) -> *action features* (B, A), the form in which M takes actions: for a Box with finite bounds
            numbers in [-1, 1] (from ``world.action_features.squash``), for a discrete action a one-hot vector (for a gradient,
            make it straight-through, for example). An agent does not fit, because its actions have no gradient. The attribute
            ``features`` names the kind of features ("zh" without it).
        horizon: number of steps T.
        generator: source of randomness.
        start: initial state; from the world's start states if None.

    Raises:
        ValueError: if ``horizon`` is below 1, there are no rewards or constant ones, ``start`` is of another number of dreams
            or holds a terminated one, the policy's result has another shape, or the reward function is not differentiable.
        TypeError: if the policy's result is not a tensor.
    """
    kind: FeatureKind = getattr(policy, "features", "zh")
    state = dreams.start(generator=generator) if start is None else start
    _check(dreams, state, horizon)
    expected = (dreams.batch_size, dreams.world.mdnrnn.action_size)
    states, columns = [state], []
    for _ in range(horizon):
        action = policy(state.features(kind))
        if not isinstance(action, Tensor):
            raise TypeError(f"policy: expected a tensor of action features, got {type(action).__name__}")
        if action.shape != expected:
            raise ValueError(f"policy: expected action features of shape {expected}, got {tuple(action.shape)}")
        state, reward, continuation = _step(dreams, state, action, generator)
        states.append(state)
        columns.append((action, reward, continuation))
    features = torch.stack([state.features(kind) for state in states], dim=1)
    z = torch.stack([state.z for state in states], dim=1)
    return Imagination(features, z, *(torch.stack(column, dim=1) for column in zip(*columns, strict=True)))


def lambda_returns(reward: Tensor, continuation: Tensor, value: Tensor, *, discount: float, lambda_: float) -> Tensor:
    r"""Lambda returns: a weighted mean of the n-step returns up to the horizon.

    Sutton & Barto 2018, section 12.1; Hafner et al. 2020, equation 6:

    .. math:: R_t = r_t + \gamma c_t \, ((1 - \lambda) \, v_{t+1} + \lambda R_{t+1}), \quad R_T = v_T

    Args:
        reward: (..., T).
        continuation: (..., T) continuation probability after each step, or 0 and 1.
        value: (..., T + 1) values of the states; the first is not used.
        discount: gamma in [0, 1].
        lambda_: in [0, 1]; 0 is the one-step return, 1 the return up to the horizon.

    Returns:
        (..., T), differentiable with respect to all three.

    Raises:
        ValueError: if the shapes do not fit or a number is out of range.
    """
    if (
        reward.ndim == 0
        or reward.shape[-1] == 0
        or continuation.shape != reward.shape
        or value.shape != (*reward.shape[:-1], reward.shape[-1] + 1)
    ):
        got = ", ".join(str(tuple(part.shape)) for part in (reward, continuation, value))
        raise ValueError(
            f"reward, continuation, value: expected shapes (..., T), (..., T), (..., T + 1) with T >= 1, got {got}"
        )
    for name, number in {"discount": discount, "lambda_": lambda_}.items():
        if not 0 <= number <= 1:
            raise ValueError(f"{name}: expected a number in [0, 1], got {number}")
    ahead, returns = value[..., -1], []
    for t in reversed(range(reward.shape[-1])):
        ahead = reward[..., t] + discount * continuation[..., t] * ((1 - lambda_) * value[..., t + 1] + lambda_ * ahead)
        returns.append(ahead)
    return torch.stack(returns[::-1], dim=-1)


def _step(dreams: Dreams, state: LatentState, action: Tensor, generator: torch.Generator) -> tuple[LatentState, Tensor, Tensor]:
    """`Dreams.step` with gradients: the next state, the expected reward (B,) and the continuation probability (B,)."""
    with _fixed(dreams.world):
        prediction, lstm = dreams.world.mdnrnn.step(state.z, dreams.timed(action), dreams.following(state.lstm, generator))
        z = dreams.bound(prediction.latent.rsample(dreams.temperature, num_groups=dreams.num_groups, generator=generator))
        outcome = prediction.outcome(z)
        if dreams.reward is None:
            assert outcome.reward is not None
            reward = dreams.bound_reward(outcome.reward.expectation())
        else:
            reward = dreams.reward.of_dreams(state.z, action, z, state.alive)
            if action.requires_grad and not reward.requires_grad:
                raise ValueError(
                    f"reward: expected a differentiable function, got {dreams.reward.name}, whose result has no gradient; "
                    "compute it with torch operations on its arguments, or search with evolve or ppo, which need no gradient"
                )
        if dreams.penalty is not None:
            reward = reward - dreams.penalties(state.z, action, lstm, generator=generator)
    logit = outcome.termination_logit
    continuation = torch.ones_like(reward) if logit is None else torch.sigmoid(-logit)
    return LatentState(z, lstm, state.alive), reward, continuation


@contextlib.contextmanager
def _fixed(module: nn.Module) -> Iterator[None]:
    """Exclude a module's weights from the graph that is recorded inside."""
    learned = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        for parameter in learned:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)


def _check(dreams: Dreams, state: LatentState, horizon: int) -> None:
    check_integer(horizon, "horizon", least=1)
    check_rewards(dreams.world, dreams.reward)
    if state.z.shape[0] != dreams.batch_size:
        raise ValueError(f"start: expected the states of {dreams.batch_size} dreams, got {state.z.shape[0]}")
    if not bool(state.alive.all()):
        raise ValueError(f"start: expected running dreams, got a terminated one at index {int(state.alive.int().argmin())}")
