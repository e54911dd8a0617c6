"""The interface of V: an observation becomes the mean and log-variance of a latent z, and z becomes an observation again.

A new V is one file: a subclass of `Vision`, which registers itself under its class name. Files name that class, so a saved V or
world model opens once the module of its V is imported; those of this package are found without. Only ``observation_space``,
``latent_size`` and `Vision.encode` are required. `worldmodel.models.StateNormalizer` is the V for vectors,
`worldmodel.models.ConvVAE` the one for images. One rule, z ~ N(mean, exp(log_variance)), holds for every V: a V without noise
returns a log-variance of minus infinity.
"""

from __future__ import annotations

import abc
import copy
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import gymnasium as gym
import torch
from torch import Tensor, nn

from worldmodel.rng import Source, fill_normal
from worldmodel.runtime import (
    InvalidFileError,
    ModelFiles,
    Registry,
    UnknownClassError,
    choose_device,
    digest_tensors,
    files,
    float32_default,
    local_path,
)
from worldmodel.spaces import ImageLayout, Value, space_from_json, space_to_json

VISION_FORMAT, VISION_VERSION = "worldmodel.vision", 3  # version 1 fingerprints the complete configuration
VISION_FILE = "vision.json"
VISION_FILES = ModelFiles(marker=VISION_FILE, stem="vision", format=VISION_FORMAT, version=VISION_VERSION)
MAX_WEIGHT = 1e6
UNNAMED_CLASS = "ConvVAE"  # class of a `VISION_FILE` that names none

V = TypeVar("V", bound="Vision")


def draw_latent(mean: Tensor, log_variance: Tensor, *, generator: Source = None) -> Tensor:
    """Sample z ~ N(mean, exp(log_variance)), elementwise; a log-variance of -inf gives exactly the mean.

    Args:
        mean: (..., D).
        log_variance: (..., D).
        generator: source of randomness, on the device of ``mean``.

    Returns:
        (..., D).
    """
    noise = fill_normal(torch.empty_like(mean), generator)
    return mean + (0.5 * log_variance).exp() * noise


class Vision(nn.Module, abc.ABC):
    """Base class of every V: a module that encodes observations of a space into ``latent_size`` numbers and decodes them.

    Attributes:
        latent_size: D.
        provenance: JSON-serialisable record of where the weights come from; saved with V.
    """

    latent_size: int
    provenance: dict[str, Any]

    def __init__(self) -> None:
        super().__init__()
        self.provenance = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Register the class, so that files can name it."""
        super().__init_subclass__(**kwargs)
        _REGISTRY.add(cls)

    @classmethod
    def from_config(cls, observation_space: gym.Space, config: Mapping[str, Any]) -> Vision:
        """Make an untrained V from its observation space and what `config_to_json` returned."""
        return cls(observation_space, **config)  # type: ignore[call-arg]

    @property
    @abc.abstractmethod
    def observation_space(self) -> gym.Space:
        """Space of the observations."""

    @abc.abstractmethod
    def encode(self, observation: Value) -> tuple[Tensor, Tensor]:
        """Turn observations with any leading dimensions (...) into the mean and log-variance of z, (..., D) each."""

    def decode(self, z: Tensor) -> Value:
        """Turn latents (..., D) into observations of the space, as nested tensors.

        Raises:
            NotImplementedError: if V has no decoder; see `has_decoder`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no decoder")

    @property
    def has_decoder(self) -> bool:
        """Whether V implements `decode`; dreams need it to return or render observations."""
        return callable(self.decode) and type(self).decode is not Vision.decode

    @property
    def image_layout(self) -> ImageLayout | None:
        """The image in the observations that V encodes; None if it encodes vectors only."""
        return None

    @property
    def image_layouts(self) -> list[ImageLayout]:
        """All images in the observations that V encodes, in the order of their latents."""
        return [] if self.image_layout is None else [self.image_layout]

    @property
    def image_latent_sizes(self) -> list[int]:
        """Number of the latents of each image."""
        return [] if self.image_layout is None else [self.image_latent_size]

    @property
    def image_latent_size(self) -> int:
        """Number of the latents, from the first, that encode the image."""
        return 0 if self.image_layout is None else self.latent_size

    @property
    def vector_part(self) -> Any:
        """The `StateNormalizer` of the numbers of z after those of the image; None if there are none or V has no such part."""
        return None

    def fit(self: V, observations: Iterable[Value]) -> V:
        """Fit V to batches of observations in one pass, for a V that can be fitted that way.

        `worldmodel.training.fit` calls it if ``vision`` is a class.

        Args:
            observations: batches with one leading dimension.

        Returns:
            Itself.

        Raises:
            NotImplementedError: if V is trained in another way.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot be fitted in one pass; train it and pass the trained V")

    def config_to_json(self) -> dict[str, Any]:
        """Return the constructor arguments, except the observation space, as JSON-serialisable data."""
        return {}

    def form_to_json(self) -> dict[str, Any]:
        """Return the arguments that affect the encoding, except class, space and weights, as JSON-serialisable data."""
        return {}

    @property
    def fingerprint(self) -> str:
        """A hex digest of class, form, space and weights; equal ones encode alike, on any device."""
        content = [type(self).__name__, self.form_to_json(), space_to_json(self.observation_space)]
        return hashlib.sha256((json.dumps(content) + digest_tensors(self.state_dict())).encode()).hexdigest()

    def save_pretrained(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write V as a directory: ``vision.json`` and ``vision-DIGEST.safetensors``.

        Raises:
            FileExistsError: if ``path`` holds something that may not be replaced.
            ValueError: if a weight is not finite; nothing is written then.
        """
        self._check_finite()
        VISION_FILES.save(path, self._content(), self.state_dict(), overwrite=overwrite)

    def write(self, directory: Path, *, provenance: Mapping[str, Any] | None = None) -> None:
        """Write the two files into an existing directory, weights first, each atomically.

        Args:
            directory: the directory; the caller has checked that its files may be replaced.
            provenance: new value of ``provenance``; None keeps the current one.

        Raises:
            ValueError: if a weight is not finite; nothing is written then.
        """
        self._check_finite()
        self.provenance = copy.deepcopy(dict(provenance or self.provenance))
        VISION_FILES.write(directory, self._content(), self.state_dict())

    def _content(self) -> dict[str, Any]:
        name = type(self).__name__
        return {
            **({} if name == UNNAMED_CLASS else {"class": name}),
            "config": self.config_to_json(),
            "observation_space": space_to_json(self.observation_space),
            "fingerprint": self.fingerprint,
            "provenance": self.provenance,
        }

    @classmethod
    def from_pretrained(cls: type[V], path: str | Path, *, device: str | torch.device = "cpu") -> V:
        """Open a directory that `save_pretrained` or `train_vae` wrote, on a device, in evaluation mode.

        ``Vision.from_pretrained`` opens every V; that of a subclass refuses others.

        Raises:
            FileNotFoundError: if there is no V in ``path``.
            ValueError: if it is damaged, not of this format, of a newer version or of another class.
        """
        path = local_path(path)
        device = choose_device(device)
        saved = VISION_FILES.read(path)
        content = saved.content
        try:
            kind = vision_class(str(content.get("class", UNNAMED_CLASS)))
        except UnknownClassError as error:
            raise InvalidFileError(f"{path}: {error}") from error
        if not issubclass(kind, cls):
            raise InvalidFileError(f"{path}: expected a {cls.__name__}, got a {kind.__name__}")
        try:
            check_config_sizes(content["config"], saved.shapes)
            with torch.random.fork_rng(devices=[]), float32_default():  # the random weights are replaced at once
                vision = kind.from_config(space_from_json(content["observation_space"]), content["config"])
            weights = saved.weights()
            files.check_weights(weights, most=MAX_WEIGHT)
            vision.load_state_dict(weights)
            vision.provenance = content["provenance"]
            if content["version"] > 1 and vision.fingerprint != content["fingerprint"]:
                raise ValueError("the fingerprint is not the one recorded; one of the two files was changed or replaced")
        except InvalidFileError:
            raise
        except (*(AttributeError, LookupError, TypeError, RuntimeError), ValueError, ArithmeticError, MemoryError) as error:
            detail = f"{type(error).__name__}: {error}" if isinstance(error, LookupError) else str(error)
            raise InvalidFileError(f"{path}: expected a complete V, got a damaged one: {detail}") from error
        assert isinstance(vision, cls)
        return vision.to(device).eval()

    def _check_finite(self) -> None:
        files.check_weights(self.state_dict(), most=float("inf"))


def check_config_sizes(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise if a number in a configuration is too large for weights of these shapes, before a module is made with it.

    Args:
        config: JSON, nested or not.
        shapes: shape of each weight.

    Raises:
        ValueError: naming the number.
    """
    elements = sum(math.prod(shape) for shape in shapes.values())
    for name, value in config.items():
        if isinstance(value, Mapping):
            check_config_sizes(value, shapes)
        most = len(shapes) if name in ("num_layers", "ensemble") else max(elements, 1024)  # each has weights of its own
        if isinstance(value, int) and value > most:
            raise ValueError(f"{name}: expected at most {most} for weights of {elements} numbers, got {value}")


_REGISTRY: Registry[Vision] = Registry("vision", "worldmodel.models")


def vision_to_json(vision: Vision) -> dict[str, Any]:
    """Return class and configuration of a V, without weights, as JSON-serialisable data."""
    return {"class": type(vision).__name__, "config": vision.config_to_json()}


def vision_from_json(data: Any, observation_space: gym.Space) -> Vision:
    """Make an untrained V from what `vision_to_json` returned; version 1 of the format has the class name only.

    Raises:
        UnknownClassError: if no V of that name is registered.
    """
    name, config = (data, {}) if isinstance(data, str) else (data["class"], data["config"])
    return vision_class(name).from_config(observation_space, config)


def vision_class(name: str) -> type[Vision]:
    """Return the V of a class name: one of this package, or any subclass of `Vision` imported so far.

    Raises:
        UnknownClassError: if there is none; names the classes that there are.
    """
    return _REGISTRY.find(name)
