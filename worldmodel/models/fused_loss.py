"""M's loss with all heads in one function: what `worldmodel.mixtures.fused` needs of a batch, and the units of the result."""

from __future__ import annotations

from typing import Protocol, cast

import torch
from torch import Tensor, nn

from worldmodel.mixtures import LatentHead, RewardHead, TerminationHead, fused
from worldmodel.models.action_units import ActionUnits
from worldmodel.models.batch import SequenceBatch
from worldmodel.models.latent_frame import LatentFrame
from worldmodel.models.lstm import LayerNormLSTM, runs_in_loop
from worldmodel.models.mdnrnn_config import MDNRNNConfig


class Parts(Protocol):
    """The parts of M that its loss needs; `worldmodel.models.MDNRNN` describes them."""

    config: MDNRNNConfig
    lstm: nn.LSTM | LayerNormLSTM
    frame: LatentFrame
    latent_head: LatentHead
    reward_head: RewardHead | None
    termination_head: TerminationHead | None
    outcome_layers: nn.ModuleDict
    action_units: ActionUnits
    change_scale: Tensor
    reward_mean: Tensor
    reward_scale: Tensor

    def lstm_outputs(
        self, inputs: Tensor, *, generator: torch.Generator | None = None, lengths: Tensor | None = None
    ) -> Tensor:
        """Outputs of the LSTM (B, T, H) for inputs (B, T, D + A), after dropout."""
        ...

    def check_inputs(self, z: Tensor, action: Tensor, leading: str) -> None:
        """Raise if the sizes are not those of M."""
        ...

    def head_target(self, z: Tensor, next_z: Tensor) -> Tensor:
        """What the latent head predicts (..., D)."""
        ...

    def seen_after(self, z: Tensor, next_z: Tensor) -> tuple[Tensor, Tensor]:
        """What the outcome layers see of the next latent."""
        ...


def fused_loss(model: Parts, batch: SequenceBatch, count: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Average M's loss over the counted steps.

    Args:
        model: M, whose latent head supports raw outputs.
        batch: the windows.
        count: number of steps that count, at least 1.
        generator: source of dropout's randomness, in training only.

    Returns:
        The scalar to minimise, and the sums of its terms without gradient: the latent by kind, reward and termination, 0 for a
        head that there is not.
    """
    lengths = None
    if runs_in_loop(model.lstm, batch.z.device):
        batch, lengths = batch.longest_first()
    rows = counted_rows(batch.mask, count)
    z = by_time(batch.z)  # (T + 1, B, D), as the LSTM computes
    action = model.action_units(by_time(batch.action), z.dtype)
    model.check_inputs(z[:-1].transpose(0, 1), action.transpose(0, 1), "B, T")
    inputs = torch.cat([z[:-1], action], dim=-1)
    h = model.lstm_outputs(inputs.transpose(0, 1), generator=generator, lengths=lengths)
    before, after = (select(part, rows) for part in (z[:-1], z[1:]))  # (N, D)
    target = model.head_target(before, after)
    more = torch.cat(model.seen_after(before, after), dim=-1) if model.outcome_layers else None
    terms, volumes = _terms(model, batch, rows, target)
    total, found = fused.heads_loss(
        h.transpose(0, 1).flatten(0, 1), rows, terms,
        inputs=select(inputs, rows) if model.config.skip else None, more=more, scale=1 / count.to(target.dtype),
    )  # fmt: skip
    volume = torch.stack(volumes)
    found = found + volume
    total = total + (volume / volume.new_tensor([term.divisor for term in terms])).sum() / count
    if model.reward_head is not None and model.termination_head is not None:
        return total, found
    zero = found.new_zeros(1)  # in the place of a head that there is not
    kinds = len(terms) - (model.reward_head is not None) - (model.termination_head is not None)
    reward = zero if model.reward_head is None else found[kinds : kinds + 1]
    termination = zero if model.termination_head is None else found[-1:]
    return total, torch.cat([found[:kinds], reward, termination])


def by_time(steps: Tensor) -> Tensor:
    """Return (T, B, ...) of (B, T, ...)."""
    return steps.transpose(0, 1).contiguous()


def select(steps: Tensor, rows: Tensor | None) -> Tensor:
    """Return rows (N, ...) of (T, B, ...), flattened to (T B, ...); None returns all."""
    flat = steps.flatten(0, 1)
    return flat if rows is None else flat.index_select(0, rows)


def counted_rows(mask: Tensor, count: Tensor) -> Tensor | None:
    """Return the indices (N,) of the steps of a mask (B, T) that count, by time; None if all do, which only a CPU looks up."""
    if mask.device.type == "cpu" and int(count) == mask.numel():
        return None
    return mask.t().flatten().nonzero()[:, 0]


def _terms(
    model: Parts, batch: SequenceBatch, rows: Tensor | None, target: Tensor
) -> tuple[list[fused.LossTerm], list[Tensor]]:
    """The heads with their targets, and what the units add to the sum of each, as densities are of z and r, not in units."""
    terms, volumes, zero = [], [], target.new_zeros(())
    log_unit = model.frame.units(model.change_scale).log()  # (D,)
    for _, head, columns, _ in model.frame.sub_heads(model.latent_head):
        own = target[:, columns]
        terms.append(fused.LossTerm(head, own, divisor=model.frame.num_variables))
        volumes.append(head.log_volume(own, log_unit[columns]))
    layers = {name: cast(nn.Linear, layer.linear) for name, layer in model.outcome_layers.items()}
    if (rewards := model.reward_head) is not None:
        reward = rewards.targets(select(by_time(batch.reward), rows), model.reward_mean, model.reward_scale)
        layer, factor = layers.get("reward"), rewards.feature_gradient
        terms.append(fused.LossTerm(rewards, reward, feature_gradient=factor, layer=layer))
        volumes.append(model.reward_scale.log().sum() * (len(target) * rewards.density_share(reward)))
    if model.termination_head is not None:
        terminated = select(by_time(batch.terminated), rows).to(target.dtype)
        layer, factor = layers.get("termination"), model.config.termination_gradient
        terms.append(fused.LossTerm(model.termination_head, terminated, feature_gradient=factor, layer=layer))
        volumes.append(zero)
    return terms, volumes
