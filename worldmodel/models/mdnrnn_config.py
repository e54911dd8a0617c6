"""Configuration of an `MDNRNN`."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from worldmodel.mixtures import Factorization, NoiseType, check_noise
from worldmodel.runtime import check_integers

AUTO_LATENT_HEAD, DEFAULT_LATENT_HEAD = "auto", "MixtureHead"


@dataclass(frozen=True, kw_only=True)
class MDNRNNConfig:
    """Architecture and loss of an `MDNRNN`, except the sizes that only the data decide.

    Args:
        hidden_size: H.
        num_layers: stacked LSTM layers.
        num_components: K.
        factorization: one mixture per dimension (the paper) or one over the whole vector.
        noise_type: covariance of the components; see `NoiseType`. With ``predict_change`` it is that of the change in its
            units, so that "isotropic" means one sigma relative to each dimension's typical change.
        fixed_noise_level: sigma of ``NoiseType.FIXED``, in the same units; None otherwise.
        min_scale: floor of the sigmas of z, in the same units, and of the reward's, in units of its standard deviation.
        predict_change: predict z_{t+1} - z_t, in units of its standard deviation over the data, rather than z_{t+1}.
        skip: the heads see z_t and a_t in addition to h_{t+1} (skip connections, as in Graves 2013); the paper's heads see h
            alone.
        reward_head: predict the reward.
        termination_head: predict whether the episode terminates (truncation is not termination). None: `fit` adds the head if
            any episode of the data terminates; an `MDNRNN` that is made directly has it.
        termination_weight: weight of the steps that terminate, in the loss (the paper's Doom code: 10).
        termination_gradient: factor from 0 to 1 of the termination loss's gradient with respect to the LSTM. Terminations are
            rare, and an LSTM that gets the full gradient may memorise them. `MDNRNN.step`, through which policies learn, has
            the full gradient.
        layer_norm: normalise the gates and the cell, as the authors' code can; slower, as it loops over time in Python.
        input_dropout: probability of zeroing an input of the LSTM, in training.
        output_dropout: probability of zeroing an output of the LSTM, in training.
        latent_head: class name of the head that predicts z, a subclass of `worldmodel.mixtures.LatentHead`. "auto": `fit` takes
            "AutoregressiveHead", in which dimensions depend on each other, if its held-out likelihood in a short training is
            better by more than its standard error, else "MixtureHead"; an `MDNRNN` that is made directly has the latter.
        below_scale: factor of the outputs below the diagonal with ``NoiseType.FULL``. None is 1 / D with that noise, else 1.

    Raises:
        ValueError: naming the field that is out of range.
        TypeError: naming the size that is not an integer.
    """

    hidden_size: int = 256
    num_layers: int = 1
    num_components: int = 5
    factorization: Factorization = Factorization.PER_DIMENSION
    noise_type: NoiseType = NoiseType.DIAGONAL
    fixed_noise_level: float | None = None
    min_scale: float = 0.003
    predict_change: bool = True
    skip: bool = True
    reward_head: bool = True
    termination_head: bool | None = None
    termination_weight: float = 1.0
    termination_gradient: float = 1.0
    layer_norm: bool = False
    input_dropout: float = 0.0
    output_dropout: float = 0.0
    latent_head: str = AUTO_LATENT_HEAD
    below_scale: float | None = None

    def __post_init__(self) -> None:
        """Check every field."""
        object.__setattr__(self, "factorization", Factorization(self.factorization))
        object.__setattr__(self, "noise_type", NoiseType(self.noise_type))
        check_integers(self, dict.fromkeys(("hidden_size", "num_layers", "num_components"), 1))
        for name in ("input_dropout", "output_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a probability in [0, 1), got {getattr(self, name)}")
        if not 0 < self.termination_weight < math.inf:
            raise ValueError(f"termination_weight: expected a positive number, got {self.termination_weight}")
        if self.below_scale is not None and not 0 < self.below_scale < math.inf:
            raise ValueError(f"below_scale: expected None or a positive number, got {self.below_scale}")
        if not 0 <= self.termination_gradient <= 1:
            raise ValueError(f"termination_gradient: expected a number in [0, 1], got {self.termination_gradient}")
        check_noise(self.noise_type, self.fixed_noise_level, self.min_scale)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON-serialisable data; without what earlier versions lack, if it has their value.

        Files of earlier versions have no such field, and the fingerprint of a world model is a digest of this data.
        """
        fields = {name: getattr(value, "value", value) for name, value in asdict(self).items()}
        if self.latent_head == DEFAULT_LATENT_HEAD:
            del fields["latent_head"]
        if self.below_scale in (None, 1.0):
            del fields["below_scale"]
        return fields
