"""Configuration of an `MDNRNN`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from worldmodel.mixtures import DEFAULT_MIN_SCALE, Factorization, NoiseType, check_atoms, check_noise
from worldmodel.runtime import check_flags, check_integers, check_numbers

AUTO_LATENT_HEAD, DEFAULT_LATENT_HEAD = "auto", "MixtureHead"
LAYER_NORM_EPS, EARLIER_LAYER_NORM_EPS = (
    1e-12,
    1e-5,
)  # TensorFlow's, and PyTorch's, which files without the field were made with


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """What M sees of the steps before and after the present one; part of `MDNRNNConfig`.

    Args:
        outcome_size: see `MDNRNNConfig`.
        memory: see `MDNRNNConfig`.

    Raises:
        ValueError: if the size is below 0.
        TypeError: if the size is not an integer, or ``memory`` not a boolean.
    """

    outcome_size: int | None = None  # before the fields of earlier versions, whose order is that of their files
    memory: bool = True

    def __post_init__(self) -> None:
        """Check both."""
        check_integers(self, {"outcome_size": 0}, optional=("outcome_size",))
        check_flags(self, "memory")


@dataclass(frozen=True, kw_only=True)
class MDNRNNConfig(StepConfig):
    """Architecture and loss of an `MDNRNN`, except the sizes that only the data decide.

    Args:
        hidden_size: H.
        num_layers: stacked LSTM layers.
        num_components: K.
        factorization: one mixture per dimension (the paper) or one over the whole vector.
        noise_type: covariance of the components; see `NoiseType`. With ``predict_change`` it is that of the change in its
            units, so that "isotropic" means one sigma relative to each dimension's typical change.
        fixed_noise_level: sigma of ``NoiseType.FIXED``, in the same units; None otherwise.
        min_scale: floor of the sigmas of z, in the same units, and of the reward's, in units of its standard deviation. None is
            0.03; `fit` then lowers it, to 0.003 at least, for numbers of z in which the data show less noise.
        predict_change: predict z_{t+1} - z_t, in units of its standard deviation over the data, rather than z_{t+1}.
        skip: the heads see z_t and a_t in addition to h_{t+1} (skip connections, as in Graves 2013); the paper's heads see h
            alone.
        reward_head: predict the reward.
        reward_components: components of the mixture of the rewards that are no atoms; 0 if the atoms are all rewards there are.
            None: `fit` takes 5, or 0 if the atoms make up its data; an `MDNRNN` that is made directly has 1.
        reward_atoms: rewards that recur exactly and get a probability of their own, as float32 numbers. None: `fit` finds them
            (see `find_atoms`); an `MDNRNN` that is made directly has none.
        outcome_size: units of a layer through which the heads of the reward and the termination see z_{t+1}, so that in a
            stochastic environment they fit where a step led (`worldmodel.models.outcome`). 0: they do not see it. None: `fit`
            takes 16; an `MDNRNN` that is made directly has 0, as files without the field.
        memory: the LSTM carries its state from step to step. False: each step starts from the zero state, for environments
            whose observation is the complete state. There a memory adds nothing, but M learns to read where it is from
            (z_t, h_t) together, so it needs more updates, and one unlikely sample of z_t makes the rest of a dream wrong.
        termination_head: predict whether the episode terminates (truncation is not termination). None: `fit` adds the head if
            any episode of the data terminates; an `MDNRNN` that is made directly has it.
        termination_weight: weight of the steps that terminate, in the loss (the paper's Doom code: 10).
        termination_gradient: factor from 0 to 1 of the termination loss's gradient with respect to the LSTM. Terminations are
            rare, and an LSTM that gets the full gradient may memorise them. `MDNRNN.step`, through which policies learn, has
            the full gradient.
        layer_norm: normalise the gates and the cell, as the authors' code can; slower, as it loops over time in Python.
        layer_norm_eps: added to the variances of ``layer_norm``; the default is TensorFlow's. Files without it have 1e-5.
        input_dropout: probability of zeroing an input of the LSTM, in training.
        output_dropout: probability of zeroing an output of the LSTM, in training.
        latent_head: class name of the head that predicts z, a subclass of `worldmodel.mixtures.LatentHead`. "auto": `fit` takes
            "AutoregressiveHead", in which dimensions depend on each other, if its held-out likelihood in a short training is
            better by more than its standard error, else "MixtureHead"; an `MDNRNN` that is made directly has the latter.

    Raises:
        ValueError: naming the field that is out of range, or ``memory`` and ``layer_norm``, whose LSTM always remembers.
        TypeError: naming the field of another type.
    """

    hidden_size: int = 256
    num_layers: int = 1
    num_components: int = 5
    factorization: Factorization = Factorization.PER_DIMENSION
    noise_type: NoiseType = NoiseType.DIAGONAL
    fixed_noise_level: float | None = None
    min_scale: float | None = None
    predict_change: bool = True
    skip: bool = True
    reward_head: bool = True
    reward_components: int | None = None
    reward_atoms: tuple[float, ...] | None = None
    termination_head: bool | None = None
    termination_weight: float = 1.0
    termination_gradient: float = 1.0
    layer_norm: bool = False
    layer_norm_eps: float = LAYER_NORM_EPS
    input_dropout: float = 0.0
    output_dropout: float = 0.0
    latent_head: str = AUTO_LATENT_HEAD

    def __post_init__(self) -> None:
        """Check every field."""
        super().__post_init__()
        check_integers(self, dict.fromkeys(("hidden_size", "num_layers", "num_components"), 1))
        object.__setattr__(self, "factorization", Factorization(self.factorization))
        object.__setattr__(self, "noise_type", NoiseType(self.noise_type))
        dropouts = dict.fromkeys(("input_dropout", "output_dropout"), "[0, 1)")
        check_numbers(
            self, {**dropouts, "termination_weight": "(0, inf)", "layer_norm_eps": "(0, inf)", "termination_gradient": "[0, 1]"}
        )
        scales = ("fixed_noise_level", "min_scale")
        check_numbers(self, dict.fromkeys(scales, "(0, inf)"), optional=scales)
        check_flags(self, "predict_change", "skip", "reward_head", "layer_norm", optional=("termination_head",))
        if self.layer_norm and not self.memory:
            raise ValueError("memory, layer_norm: expected at most one of memory=False and layer_norm=True, got both")
        self._check_reward()
        least = DEFAULT_MIN_SCALE if self.min_scale is None else self.min_scale
        check_noise(self.noise_type, self.fixed_noise_level, least)

    def _check_reward(self) -> None:
        """Check the fields of the reward head, and store the atoms as sorted float32 numbers."""
        if self.reward_atoms is not None:
            object.__setattr__(self, "reward_atoms", check_atoms(self.reward_atoms))
        check_integers(self, {"reward_components": 0}, optional=("reward_components",))
        if self.reward_components == 0 and self.reward_atoms == ():
            raise ValueError("reward_components: expected an integer >= 1 without reward_atoms, got 0")

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON-serialisable data; without the later fields that have the value that earlier versions had.

        Files of earlier versions have no such fields, and the fingerprint of a world model is a digest of this data.
        """
        values = {name: getattr(value, "value", value) for name, value in asdict(self).items()}
        earlier: dict[str, tuple[Any, ...]] = {
            "latent_head": (DEFAULT_LATENT_HEAD,),
            "reward_components": (None, 1),
            "reward_atoms": (None, ()),
            "outcome_size": (None, 0),
            "memory": (True,),
        }
        for name, same in earlier.items():
            if values[name] in same:
                del values[name]
        if not self.layer_norm or self.layer_norm_eps == EARLIER_LAYER_NORM_EPS:
            del values["layer_norm_eps"]
        return values

    def identity(self) -> dict[str, Any]:
        """Return all fields for the record of a run, without the later ones that have their default."""
        later = ("reward_components", "reward_atoms", "outcome_size", "memory", "layer_norm_eps")
        defaults = {field.name: field.default for field in fields(self)}
        values = {name: value for name, value in asdict(self).items() if name not in later or value != defaults[name]}
        earlier: dict[str, Any] = {}  # the defaults of earlier versions
        if self.latent_head == AUTO_LATENT_HEAD:
            earlier["latent_head"] = DEFAULT_LATENT_HEAD
        if self.min_scale is None:
            earlier["min_scale"] = DEFAULT_MIN_SCALE
        return values | earlier

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> MDNRNNConfig:
        """Make a configuration from the output of `to_json`, of this version or an earlier one."""
        earlier = {"layer_norm_eps": EARLIER_LAYER_NORM_EPS} if data.get("layer_norm") else {}
        return cls(**{"latent_head": DEFAULT_LATENT_HEAD, **earlier, **data})
