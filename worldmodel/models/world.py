"""`WorldModel`: V, M, the spaces and a bank of real start states, saved as one directory.

The directory holds ``world.json`` (readable: configuration, spaces, provenance of the data) and ``weights.safetensors``
(weights, normaliser, start states). Nothing in it can run code. The JSON contains the digest of the weights, so a truncated,
changed or exchanged weights file is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn

from worldmodel.mixtures import LatentLayout, LatentPart, PartKind
from worldmodel.models.mdnrnn import MDNRNN
from worldmodel.models.vision import Vision, draw_latent, vision_from_json, vision_to_json
from worldmodel.rng import Source
from worldmodel.runtime import UnknownClassError, choose_device, files
from worldmodel.spaces import FlatSpace, Value, space_from_json, space_to_json
from worldmodel.version import __version__

WORLD_FORMAT, WORLD_VERSION = "worldmodel.world", 2
WORLD_FILE: str = "world.json"
WEIGHTS_FILE: str = "weights.safetensors"
DREAM_BOUNDS = ("latent_low", "latent_high", "reward_low", "reward_high")  # of M; infinite if it was given none


class WorldModel(nn.Module):
    """A learned world: it encodes and decodes observations, and predicts the next step.

    Args:
        vision: V.
        mdnrnn: M, with V's latent size and the action space's feature size.
        action_space: space of the actions.
        start_mean: (N, D) mean of V's posterior for the first observations of N real episodes.
        start_log_variance: (N, D) its log-variance.
        provenance: JSON-serialisable record of its origin: environment id and arguments, data fingerprint, training results.

    Raises:
        ValueError: if the parts do not fit each other.
    """

    start_mean: Tensor
    start_log_variance: Tensor

    def __init__(
        self,
        vision: Vision,
        mdnrnn: MDNRNN,
        action_space: gym.Space,
        *,
        start_mean: Tensor,
        start_log_variance: Tensor,
        provenance: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.vision = vision
        self.mdnrnn = mdnrnn
        self.action_features = FlatSpace(action_space)
        self.provenance = dict(provenance or {})
        if (vision.latent_size, self.action_features.size) != (mdnrnn.latent_size, mdnrnn.action_size):
            raise ValueError(
                f"mdnrnn: expected latent size {vision.latent_size} and action size {self.action_features.size}, "
                f"got {mdnrnn.latent_size} and {mdnrnn.action_size}"
            )
        if start_mean.ndim != 2 or start_mean.shape[1] != vision.latent_size or start_mean.shape[0] == 0:
            raise ValueError(f"start_mean: expected shape (N, {vision.latent_size}) with N >= 1, got {tuple(start_mean.shape)}")
        if start_log_variance.shape != start_mean.shape:
            raise ValueError(
                f"start_log_variance: expected shape {tuple(start_mean.shape)}, got {tuple(start_log_variance.shape)}"
            )
        self.register_buffer("start_mean", start_mean)
        self.register_buffer("start_log_variance", start_log_variance)

    @property
    def observation_space(self) -> gym.Space:
        """Space of the observations that V encodes."""
        return self.vision.observation_space

    @property
    def action_space(self) -> gym.Space:
        """Space of the actions."""
        return self.action_features.space

    @property
    def layout(self) -> LatentLayout:
        """The parts of z and their kinds: as `fit` found them, or one density, as in worlds of earlier versions."""
        if self.mdnrnn.layout is not None:
            return self.mdnrnn.layout
        if "layout" in self.provenance:
            return LatentLayout.from_json(self.provenance["layout"])
        images = self.vision.image_layout is not None and self.vision.image_latent_size == self.vision.latent_size
        kind = PartKind.IMAGE if images else PartKind.CONTINUOUS
        return LatentLayout((LatentPart(name="", kind=kind, start=0, size=self.mdnrnn.latent_size),))

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.start_mean.device

    @property
    def fingerprint(self) -> str:
        """A hex digest of configuration, weights, normaliser and start states; equal models have equal ones, on any device."""
        content = json.dumps(self.mdnrnn.config_to_json()) + files.digest_tensors(self.state_dict())
        if self.vision.config_to_json():
            content += json.dumps(vision_to_json(self.vision))
        return hashlib.sha256(content.encode()).hexdigest()

    @torch.no_grad()
    def encode(self, observation: Value, *, generator: Source = None) -> Tensor:
        """Sample z from V's posterior for observations with any leading dimensions (...): (..., D)."""
        return draw_latent(*self.vision.encode(observation), generator=generator)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Value:
        """Turn latents (..., D) into observations of the space, as nested tensors."""
        return self.vision.decode(z)

    def check_spaces(self, observation_space: gym.Space, action_space: gym.Space, *, source: str) -> None:
        """Raise if the spaces of an environment or data set are not this model's.

        Raises:
            ValueError: naming the source and the space that differs.
        """
        for name, expected, actual in (
            ("observation space", self.observation_space, observation_space),
            ("action space", self.action_space, action_space),
        ):
            if expected != actual:
                raise ValueError(f"{source}: expected the world model's {name} {expected}, got {actual}")

    def save_pretrained(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the world model as a directory.

        Args:
            path: the directory; absent, empty, or an earlier world model.
            overwrite: replace an earlier world model; other files in its directory stay.

        Raises:
            FileExistsError: if ``path`` holds something that may not be replaced.
            ValueError: if a weight is not finite; nothing is written then.
        """
        self._check_finite()
        directory = files.prepare_directory(path, marker=WORLD_FILE, format=WORLD_FORMAT, overwrite=overwrite)
        self.write(directory)

    def write(self, directory: Path) -> None:
        """Write the two files into an existing directory, weights first, each atomically.

        The caller has checked that its files may be replaced.

        Raises:
            ValueError: if a weight is not finite; nothing is written then.
        """
        self._check_finite()
        files.save_tensors(directory / WEIGHTS_FILE, self.state_dict())
        content = {
            "library_version": __version__,
            "vision": vision_to_json(self.vision),
            "mdnrnn": self.mdnrnn.config_to_json(),
            "observation_space": space_to_json(self.observation_space),
            "action_space": space_to_json(self.action_space),
            "num_start_states": self.start_mean.shape[0],
            "weights_sha256": files.digest(directory / WEIGHTS_FILE),
            "provenance": self.provenance,
        }
        files.write_json(directory / WORLD_FILE, content, format=WORLD_FORMAT, version=WORLD_VERSION)

    @classmethod
    def from_pretrained(cls, path: str | Path, *, device: str | torch.device = "cpu") -> WorldModel:
        """Open a directory that `save_pretrained` wrote, on a device, in evaluation mode.

        Raises:
            FileNotFoundError: if there is no world model in ``path``.
            ValueError: if it is damaged, not of this format, of a newer version, or its V or latent head is an unknown class.
        """
        path = Path(path)
        device = choose_device(device)
        if not (path / WORLD_FILE).is_file():
            unfinished = "; the training in this directory is not finished: resume it" if (path / "training").is_dir() else ""
            raise FileNotFoundError(f"{path}: expected a world model directory with {WORLD_FILE}, found none{unfinished}")
        content = files.read_json(path / WORLD_FILE, format=WORLD_FORMAT, version=WORLD_VERSION)
        weights, _ = files.load_tensors(path / WEIGHTS_FILE)
        try:
            if files.digest(path / WEIGHTS_FILE) != content["weights_sha256"]:
                raise ValueError(
                    "the digest of the weights is not the one recorded; one of the two files was changed or replaced"
                )
            start = torch.zeros(content["num_start_states"], content["mdnrnn"]["latent_size"])
            with torch.random.fork_rng(devices=[]):  # the random weights are replaced at once
                mdnrnn = MDNRNN.from_config(content["mdnrnn"])
                vision = vision_from_json(content["vision"], space_from_json(content["observation_space"]))
            world = cls(
                vision,
                mdnrnn,
                space_from_json(content["action_space"]),
                start_mean=start,
                start_log_variance=start.clone(),
                provenance=content["provenance"],
            )
            world.load_state_dict(weights)
            world._check_finite()
        except UnknownClassError as error:
            raise ValueError(f"{path}: {error}") from error
        except (AttributeError, IndexError, KeyError, TypeError, RuntimeError, ValueError) as error:
            detail = f"{type(error).__name__}: {error}" if isinstance(error, LookupError) else str(error)
            raise ValueError(f"{path}: expected a complete world model, got a damaged one: {detail}") from error
        return world.to(device).eval()

    def _check_finite(self) -> None:
        for name, tensor in self.state_dict().items():
            may_be_infinite = name in ("start_log_variance", *(f"mdnrnn.{bound}" for bound in DREAM_BOUNDS))
            if bool(tensor.isnan().any()) or (not may_be_infinite and bool(tensor.isinf().any())):
                raise ValueError(f"{name}: expected finite numbers, got NaN or infinity")


def open_world(world: WorldModel | str | Path, device: str | torch.device | None = None) -> WorldModel:
    """Return a world model as it is, or open the one in a directory on a device ("cpu" if None).

    Raises:
        ValueError: if the given world model is on another kind of device, or the one in the directory is damaged.
        FileNotFoundError: if there is no world model in the directory.
    """
    if isinstance(world, WorldModel):
        if device is not None and torch.device(device).type != world.device.type:
            raise ValueError(f"device: expected None or the world model's, {world.device}, got {device!r}")
        return world
    return WorldModel.from_pretrained(world, device="cpu" if device is None else device)
