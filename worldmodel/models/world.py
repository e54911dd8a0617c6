"""`WorldModel`: V, M, the spaces and a bank of real start states, saved as one directory.

The directory holds ``world.json`` (readable: configuration, spaces, provenance of the data) and ``weights-DIGEST.safetensors``
(weights, normaliser, start states). Nothing in it can run code. The JSON contains the digest of the weights, so a truncated,
changed or exchanged weights file is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import torch
from torch import Tensor, nn

from worldmodel.mixtures import LatentLayout, LatentPart, PartKind, latent_head_class
from worldmodel.models.ensemble import members_of, model_from_config
from worldmodel.models.mdnrnn import MDNRNN
from worldmodel.models.mdnrnn_config import DEFAULT_LATENT_HEAD
from worldmodel.models.vision import Vision, check_config_sizes, draw_latent, vision_from_json, vision_to_json
from worldmodel.models.world_card import describe_world, world_card
from worldmodel.rng import Source
from worldmodel.runtime import (
    InvalidFileError,
    ModelCard,
    ModelFiles,
    UnknownClassError,
    choose_device,
    files,
    float32_default,
    local_path,
    other_output,
)
from worldmodel.spaces import FlatSpace, Value, json_features, known_leaves, space_from_json, space_to_json, without_leaves
from worldmodel.version import __version__

WORLD_FORMAT, WORLD_VERSION = "worldmodel.world", 3  # version 2 has weights of a fixed name, and no checksum of the JSON
WORLD_FILE: str = "world.json"
WORLD_FILES = ModelFiles(marker=WORLD_FILE, stem="weights", format=WORLD_FORMAT, version=WORLD_VERSION)
MAX_WEIGHT = 1e6  # trained weights are below 100; larger ones overflow in a dream
DAMAGE = (AttributeError, LookupError, TypeError, RuntimeError, ValueError, ArithmeticError, MemoryError, AssertionError)
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
        self.action_features = FlatSpace(action_space, exact=True)
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
    def left_out(self) -> tuple[str, ...]:
        """Paths of the leaves of real observations that were left out of the data; these are ignored wherever they occur."""
        sources = [*self.provenance.get("recipes", []), self.provenance.get("data_config", {})]
        return tuple(dict.fromkeys(name for source in sources for name in source.get("leave_out", ())))

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

    def __repr__(self) -> str:
        return describe_world(self)

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

    def check_spaces(
        self, observation_space: gym.Space, action_space: gym.Space, *, source: str, leave_out: Iterable[str] = ()
    ) -> None:
        """Raise if the spaces of an environment or data set are not this model's, without the leaves of `left_out`.

        Args:
            observation_space: space of its observations.
            action_space: space of its actions.
            source: its name in the message.
            leave_out: paths of further leaves to ignore.

        Raises:
            ValueError: naming the source and the space that differs.
        """
        ignored = known_leaves(observation_space, (*self.left_out, *leave_out))
        for name, expected, actual in (
            ("observation space", self.observation_space, without_leaves(observation_space, ignored)),
            ("action space", self.action_space, action_space),
        ):
            if expected != actual:
                raise ValueError(f"{source}: expected the world model's {name} {expected}, got {actual}")

    def save_pretrained(
        self, path: str | Path, *, overwrite: bool = False, precision: Literal["float32", "float16"] = "float32"
    ) -> None:
        """Write the world model as a directory, with a model card (README.md).

        Args:
            path: the directory; absent, empty, or an earlier world model.
            overwrite: replace an earlier world model; other files in its directory stay.
            precision: "float16" halves the file: it rounds the trained weights, but not the statistics of the data. The world
                model that is opened computes in float32 with these weights. It has another fingerprint, so agents refuse it;
                see `worldmodel.sharing.save_compact`.

        Raises:
            FileExistsError: if ``path`` holds something that may not be replaced.
            ValueError: if a weight is not finite or too large for float16; nothing is written then.
        """
        self._check_finite()
        weights = self.state_dict()
        if precision == "float16":
            weights |= {name: weight.detach().half() for name, weight in self.named_parameters()}
            files.check_weights(weights, most=float("inf"), infinite=_may_be_infinite(weights))
        elif precision != "float32":
            raise ValueError(f"precision: expected 'float32' or 'float16', got {precision!r}")
        WORLD_FILES.save(path, self._content(), weights, overwrite=overwrite, card=self.card())

    def card(self) -> ModelCard:
        """Return the model card: environment, data, sizes and held-out likelihoods."""
        sizes = {
            "observation space": self.observation_space,
            "action space": self.action_space,
            "latents": self.vision.latent_size,
            "hidden units of M": self.mdnrnn.config.hidden_size,
            **({"members of the ensemble": len(members)} if len(members := members_of(self.mdnrnn)) > 1 else {}),
            "parameters": f"{sum(parameter.numel() for parameter in self.parameters()):,}",
        }
        return world_card(self.provenance, sizes)

    def write(self, directory: Path) -> None:
        """Write the two files into an existing directory, weights first, each atomically.

        The caller has checked that its files may be replaced.

        Raises:
            ValueError: if a weight is not finite; nothing is written then.
        """
        self._check_finite()
        WORLD_FILES.write(directory, self._content(), self.state_dict())

    def _content(self) -> dict[str, Any]:
        return {
            "library_version": __version__,
            "vision": vision_to_json(self.vision),
            "mdnrnn": self.mdnrnn.config_to_json(),
            "observation_space": space_to_json(self.observation_space),
            "action_space": space_to_json(self.action_space),
            "num_start_states": self.start_mean.shape[0],
            "provenance": self.provenance,
        }

    @classmethod
    def from_pretrained(cls, path: str | Path, *, device: str | torch.device = "cpu") -> WorldModel:
        """Open a directory that `save_pretrained` wrote, on a device, in evaluation mode.

        Raises:
            FileNotFoundError: if there is no world model in ``path``.
            ValueError: if it is damaged, not of this format, of a newer version, or its V or latent head is an unknown class.
        """
        path = local_path(path)
        device = choose_device(device)
        if not (path / WORLD_FILE).is_file():
            found = other_output(path)
            if not found and (path / "training").is_dir():
                found = "; the training in this directory is not finished: resume it"
            raise FileNotFoundError(f"{path}: expected a world model directory with {WORLD_FILE}, found none{found}")
        saved = WORLD_FILES.read(path)
        content = saved.content
        try:
            _check_sizes(content, saved.shapes)
            start = torch.zeros(saved.shapes["start_mean"], dtype=torch.float32)
            with torch.random.fork_rng(devices=[]), float32_default():  # the random weights are replaced at once
                mdnrnn = model_from_config(content["mdnrnn"])
                vision = vision_from_json(content["vision"], space_from_json(content["observation_space"]))
            world = cls(
                vision,
                mdnrnn,
                space_from_json(content["action_space"]),
                start_mean=start,
                start_log_variance=start.clone(),
                provenance=content["provenance"],
            )
            world.load_state_dict(saved.weights())
            tensors = world.state_dict()
            files.check_weights(tensors, most=MAX_WEIGHT, infinite=_may_be_infinite(tensors))
            world.action_features.exact = not mdnrnn.action_units.is_neutral  # else as before: the same bits
        except UnknownClassError as error:
            raise ValueError(f"{path}: {error}") from error
        except InvalidFileError:
            raise
        except DAMAGE as error:
            detail = f"{type(error).__name__}: {error}" if isinstance(error, LookupError) else str(error)
            raise InvalidFileError(f"{path}: expected a complete world model, got a damaged one: {detail}") from error
        return world.to(device).eval()

    def _check_finite(self) -> None:
        tensors = self.state_dict()
        files.check_weights(tensors, most=float("inf"), infinite=_may_be_infinite(tensors))


def _may_be_infinite(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the tensors of a world model that may be infinite."""
    bounds = (name for name in names if name.startswith("mdnrnn.") and name.endswith(DREAM_BOUNDS))
    return ("start_log_variance", *bounds)


def _check_sizes(content: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise unless the sizes in the JSON are those of the weights, before anything of these sizes is made."""
    if shapes["start_mean"] != (content["num_start_states"], content["mdnrnn"]["latent_size"]):
        raise ValueError(f"start_mean: expected num_start_states and latent_size of the JSON, got {shapes['start_mean']}")
    check_config_sizes({"mdnrnn": content["mdnrnn"], "vision": content["vision"]}, shapes)
    features = json_features(content["action_space"])
    if features != content["mdnrnn"]["action_size"]:
        raise ValueError(f"action_space: expected {content['mdnrnn']['action_size']} features, got {features}")
    try:
        with torch.device("meta"):  # no memory
            tensors = model_from_config(content["mdnrnn"]).state_dict()
    except RuntimeError:
        if latent_head_class(content["mdnrnn"].get("latent_head", DEFAULT_LATENT_HEAD)).__module__.startswith("worldmodel."):
            raise
        return  # a head of the user that computes with values, of which "meta" has none
    expected = {f"mdnrnn.{name}": tuple(tensor.shape) for name, tensor in tensors.items()}
    found = {name: shape for name, shape in shapes.items() if name.startswith("mdnrnn.")}
    for name in [name for name in expected if ".action_units." in name and name not in found]:
        del expected[name]  # neutral ones are not saved
    if found != expected:
        wrong = next(name for name in {**expected, **found} if expected.get(name) != found.get(name))
        raise ValueError(f"{wrong}: expected shape {expected.get(wrong)} by the JSON, got {found.get(wrong)} in the weights")


def require_world(world: object) -> None:
    """Raise unless an argument ``world`` is an open world model.

    Raises:
        TypeError: naming the call that opens one.
    """
    if not isinstance(world, WorldModel):
        given = f"{str(world)!r}" if isinstance(world, (str, Path)) else type(world).__name__
        fix = f"open it first, WorldModel.from_pretrained({given})" if isinstance(world, (str, Path)) else "fit returns one"
        raise TypeError(f"world: expected a WorldModel, got {given}; {fix}")


def open_world(world: WorldModel | str | Path, device: str | torch.device | None = None) -> WorldModel:
    """Return a world model as it is, or open the one in a directory on a device ("cpu" if None).

    "auto" accepts a world model where it is.

    Raises:
        ValueError: if the given world model is on another kind of device, or the one in the directory is damaged.
        FileNotFoundError: if there is no world model in the directory.
    """
    if isinstance(world, WorldModel):
        if device not in (None, "auto") and torch.device(device).type != world.device.type:
            raise ValueError(f"device: expected None or the world model's, {world.device}, got {device!r}")
        return world
    return WorldModel.from_pretrained(world, device="cpu" if device is None else device)
