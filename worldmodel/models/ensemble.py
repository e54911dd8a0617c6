r"""An ensemble of MDN-RNNs: K models of the same data, whose disagreement shows where none of them should be trusted.

All members share V, the layout of z, the sizes and the statistics of the data; they differ in their initial weights and in
the episodes that they were trained on. The state of an ensemble holds the states of all members, which all advance at every
step. The prediction of a sequence (`MDNRNNEnsemble.forward`), by which likelihoods are computed, is the mixture of the members'
predictions with equal weights. A dream (`MDNRNNEnsemble.step`) follows the member that its state names, so that its steps are
consistent with each other; as long as the state names none, the prediction is the mixture.

Deep ensembles: Lakshminarayanan et al. 2017; of dynamics models: Chua et al. 2018 (PETS).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from worldmodel.mixtures import MemberMixture
from worldmodel.models.batch import DataStatistics
from worldmodel.models.mdnrnn import MDNRNN, State
from worldmodel.models.outcome import Outcome, Prediction
from worldmodel.runtime import check_integer

SIZE = "ensemble"  # of the number of members, in the JSON of a world model
SHARED = frozenset(
    (
        *("latent_size", "action_size", "config", "layout", "frame", "action_units", "extras"),
        *("latent_head", "reward_head", "termination_head", "outcome_layers"),
        *DataStatistics.__dataclass_fields__,
    )
)


class MDNRNNEnsemble(MDNRNN):
    """K models (`MDNRNN`) in the place of one: sizes, configuration, statistics and kinds of heads are those of the first.

    Its state (`State`) has one more row than M has layers, (1 + num_layers, B, K * H). The first row of ``h`` begins with the
    number of the member that each dream follows, 1 to K, or 0 for none. The others are the layers, with the members side by
    side.

    Args:
        members: the models, at least 2, of the same sizes and configuration.

    Raises:
        ValueError: if there are fewer, or one differs from the first.
    """

    def __init__(self, members: Sequence[MDNRNN]):
        nn.Module.__init__(self)
        if len(members) < 2:
            raise ValueError(f"members: expected at least 2, got {len(members)}")
        first, *others = ((one.latent_size, one.action_size, one.config, one.layout, one.extras) for one in members)
        if any(other != first for other in others):
            raise ValueError(f"members: expected models of the same sizes and configuration as the first, {first}")
        self.models = nn.ModuleList(members)

    def __getattr__(self, name: str) -> Any:
        """Return what all members share from the first."""
        return getattr(self.members[0], name) if name in SHARED else super().__getattr__(name)

    @property
    def members(self) -> list[MDNRNN]:
        """The K models."""
        return cast(list[MDNRNN], list(self.models))

    @property
    def state_size(self) -> int:
        """Hidden units of all members together, K * H."""
        return len(self.models) * super().state_size

    @property
    def is_fused(self) -> bool:
        """False: the likelihood is that of a mixture."""
        return False

    def config_to_json(self) -> dict[str, Any]:
        """Return what `model_from_config` takes: the first member's configuration, and the number of members."""
        return {**self.members[0].config_to_json(), SIZE: len(self.models)}

    def set_statistics(self, statistics: DataStatistics) -> None:
        """Set the statistics of all members; see `MDNRNN.set_statistics`."""
        for member in self.members:
            member.set_statistics(statistics)

    def initial_state(self, batch_size: int) -> State:
        """Return the state at the start of every episode, zeros, which names no member: (1 + num_layers, B, K * H) each."""
        zeros = self.change_scale.new_zeros(1 + self.config.num_layers, batch_size, self.state_size)
        return State(zeros, zeros.clone())

    def forward(
        self, z: Tensor, action: Tensor, state: State | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Prediction, State]:
        """Predict each next step of a batch of sequences by the mixture of all members; see `MDNRNN.forward`."""
        state = self.initial_state(len(z)) if state is None else state
        states = self._split(state)
        found = [member(z, action, own, generator=generator) for member, own in zip(self.members, states, strict=True)]
        predictions, after = zip(*found, strict=True)
        return _mixed(predictions, self._equal_weights()), self._join(after, state)

    def step(self, z: Tensor, action: Tensor, state: State) -> tuple[Prediction, State]:
        """Predict one step by the member that the state of each dream names, or by the mixture if it names none.

        Args:
            z: (B, D).
            action: (B, A).
            state: of all members.
        """
        after = self.advance(z, action, state)
        number = after.h[0, :, :1]  # (B, 1)
        followed = number == torch.arange(1, len(self.models) + 1, device=z.device)  # (B, K)
        log_weights = torch.where(number == 0, self._equal_weights(), followed.to(z.dtype).log())
        return _mixed(self._predictions(z, action, after), log_weights), after

    def advance(self, z: Tensor, action: Tensor, state: State) -> State:
        """Advance the states of all members by one step; see `MDNRNN.advance`."""
        states = self._split(state)
        return self._join([member.advance(z, action, own) for member, own in zip(self.members, states, strict=True)], state)

    def predict_from(self, z: Tensor, action: Tensor, after: State) -> MemberMixture:
        """What all members predict of z_{t+1}, for ``z`` (B, D) and ``action`` (B, A), given the state *after* this step."""
        return MemberMixture([one.latent for one in self._predictions(z, action, after)], self._equal_weights())

    def follow(self, state: State, uniform: Tensor, *, again: bool = False) -> State:
        """Choose the member that each dream follows.

        Args:
            state: of all members.
            uniform: (B,) random numbers in [0, 1), which choose the members.
            again: choose for all dreams, rather than for those that follow none.

        Returns:
            The state with the numbers of the members.
        """
        present = state.h[0, :, 0]
        chosen = (1 + (uniform * len(self.models)).floor()).clamp(max=len(self.models)).to(present.dtype)
        h = state.h.clone()
        h[0, :, 0] = chosen if again else torch.where(present == 0, chosen, present)
        return State(h, state.c)

    def _predictions(self, z: Tensor, action: Tensor, after: State) -> list[Prediction]:
        """Apply the heads of all members to the state after a step."""
        action = self.action_units(action, z.dtype)
        return [member._predict(z, action, own.h[-1]) for member, own in zip(self.members, self._split(after), strict=True)]

    def _split(self, state: State) -> list[State]:
        """Return the state of each member, (num_layers, B, H) each."""
        parts = ([one.contiguous() for one in part[1:].chunk(len(self.models), dim=-1)] for part in state)
        return [State(*own) for own in zip(*parts, strict=True)]

    def _join(self, states: Sequence[State], before: State) -> State:
        """Return the state of all members; it names the members that the state ``before`` names."""
        parts = zip(before, zip(*states, strict=True), strict=True)
        return State(*(torch.cat([old[:1], torch.cat(new, dim=-1)]) for old, new in parts))

    def _equal_weights(self) -> Tensor:
        """Log of equal weights, (K,)."""
        return self.change_scale.new_full((len(self.models),), -math.log(len(self.models)))


def members_of(model: MDNRNN) -> list[MDNRNN]:
    """Return the members of an ensemble, or the one model itself."""
    return model.members if isinstance(model, MDNRNNEnsemble) else [model]


def model_from_config(data: dict[str, Any]) -> MDNRNN:
    """Make a model or an ensemble with fresh weights from what its `config_to_json` returned.

    Raises:
        ValueError: if the number of members is below 2.
        TypeError: if it is not an integer.
    """
    fields = dict(data)
    if SIZE not in fields:
        return MDNRNN.from_config(fields)
    size = check_integer(fields.pop(SIZE), SIZE, least=2)
    return MDNRNNEnsemble([MDNRNN.from_config(fields) for _ in range(size)])


def refuse_ensemble(model: MDNRNN, what: str) -> None:
    """Raise if a model is an ensemble, which ``what`` does not support.

    Raises:
        ValueError: naming it.
    """
    if isinstance(model, MDNRNNEnsemble):
        raise ValueError(
            f"world: expected a single M for {what}, got an ensemble of {len(model.models)}; fit one without ensemble, or take "
            "a member: WorldModel(..., mdnrnn=world.mdnrnn.members[0])"
        )


def _mixed(predictions: Sequence[Prediction], log_weights: Tensor) -> Prediction:
    """Mix predictions by weights (K,) or (..., K)."""
    latent = MemberMixture([prediction.latent for prediction in predictions], log_weights)
    return Prediction(latent, partial(_mixed_outcome, predictions, log_weights))


def _mixed_outcome(predictions: Sequence[Prediction], log_weights: Tensor, next_z: Tensor | None) -> Outcome:
    """Mix reward and termination; the log-odds are those of the mean probability."""
    outcomes = [prediction.outcome(cast(Tensor, next_z)) for prediction in predictions]
    reward = None
    if outcomes[0].reward is not None:
        reward = MemberMixture([outcome.reward for outcome in outcomes], log_weights)
    if outcomes[0].termination_logit is None:
        return Outcome(reward, None)
    logits = torch.stack([cast(Tensor, outcome.termination_logit) for outcome in outcomes], dim=-1)  # (..., K)
    ends, goes_on = ((log_weights + logsigmoid(x)).logsumexp(dim=-1) for x in (logits, -logits))
    return Outcome(reward, ends - goes_on)
