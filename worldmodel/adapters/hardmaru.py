"""Open the trained CarRacing weights of Ha & Schmidhuber (2018), github.com/hardmaru/WorldModelsExperiments.

The weights are not part of this library. From a copy of that repository's directory ``carracing`` these functions read V
(``vae/vae.json``), M (``rnn/rnn.json``), start states (``initial_z/initial_z.json``) and C
(``log/carracing.cma.16.64.best.json``). Its files hold weights as integers, ten thousand times as large.

    world = open_world("carracing")
    controller = open_controller("carracing/log/carracing.cma.16.64.best.json")

The authors invert colours before they encode a frame. That is a change of V's first and last layer, which is made here, so the
V is for frames as ``worldmodel.environments:CarRacing64-v0`` gives them (resized by area; theirs are resized linearly). M
predicts neither rewards nor ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from worldmodel.agents import register_agent
from worldmodel.dream import LatentState
from worldmodel.mixtures import Factorization
from worldmodel.models import MDNRNN, ConvVAE, FeatureKind, MDNRNNConfig, VAEConfig, WorldModel
from worldmodel.runtime import ModelFiles, file_errors, files, float32_default

SCALE = 10_000  # the files hold weights times this, rounded
LATENTS, HIDDEN, COMPONENTS, ACTIONS = 32, 256, 5, 3
VISION_FILE, DYNAMICS_FILE, STARTS_FILE = "vae/vae.json", "rnn/rnn.json", "initial_z/initial_z.json"
FRAMES = spaces.Box(0, 255, (64, 64, 3), np.uint8)
DRIVING = spaces.Box(np.array([-1, 0, 0], np.float32), np.ones(3, np.float32))
MIN_SCALE = 1e-6  # M's sigmas have no floor; this one is far below all
CONVOLUTIONS = ((4, 4, 3, 32), (4, 4, 32, 64), (4, 4, 64, 128), (4, 4, 128, 256))  # height, width, inputs, outputs
DECONVOLUTIONS = ((5, 5, 128, 1024), (5, 5, 64, 128), (6, 6, 32, 64), (6, 6, 3, 32))  # height, width, outputs, inputs
DENSE = ((1024, LATENTS), (1024, LATENTS), (LATENTS, 1024))  # mean, log-variance, first layer of the decoder
GATES = (0, 2, 1, 3)  # TensorFlow's order is input, new value, forget, output; torch's has forget before the new value
FORGET_BIAS = 1.0  # added by TensorFlow's cell
CONTROLLER_FILES = ModelFiles(
    marker="car_racing_controller.json", stem="controller", format="worldmodel.car_racing_controller", version=1
)


def open_vision(path: str | Path) -> ConvVAE:
    """Read V from ``vae.json``: 4,348,547 weights.

    Args:
        path: the file.

    Returns:
        V for 64x64 frames that are not inverted, in evaluation mode.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it does not hold these weights.
    """
    shapes: list[tuple[int, ...]] = [part for kernel in CONVOLUTIONS for part in (kernel, kernel[-1:])]
    shapes += [part for weight in DENSE for part in (weight, weight[-1:])]
    shapes += [part for kernel in DECONVOLUTIONS for part in (kernel, kernel[2:3])]
    weights = [torch.tensor(array / SCALE, dtype=torch.float32) for array in _read(path, shapes)]
    with float32_default(), torch.random.fork_rng(devices=[]):
        vision = ConvVAE(FRAMES, VAEConfig(latent_size=LATENTS))
    layers: list[Any] = [*vision.convolutions, vision.mean_head, vision.log_variance_head, vision.expand]
    layers += list(vision.deconvolutions)
    with torch.no_grad():
        for layer, weight, bias in zip(layers, weights[::2], weights[1::2], strict=True):
            dense = weight.ndim == 2
            layer.weight.copy_(weight.T if dense else weight.permute(3, 2, 0, 1))
            layer.bias.copy_(bias)
        first, last = layers[0], layers[-1]
        first.bias += first.weight.sum(dim=(1, 2, 3))  # w (1 - x) + b = -w x + (b + sum of w)
        for parameter in (first.weight, last.weight, last.bias):
            parameter.neg_()  # sigmoid(-y) = 1 - sigmoid(y)
    return vision.eval()


def open_dynamics(path: str | Path) -> MDNRNN:
    """Read M from ``rnn.json``: 422,368 weights. It predicts z_{t+1} itself from h_{t+1} alone.

    Args:
        path: the file.

    Returns:
        M, in evaluation mode.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it does not hold these weights.
    """
    inputs, outputs = LATENTS + ACTIONS, 3 * COMPONENTS * LATENTS
    shapes = [(HIDDEN, outputs), (outputs,), (inputs + HIDDEN, 4 * HIDDEN), (4 * HIDDEN,)]
    head, head_bias, kernel, bias = (torch.tensor(part / SCALE, dtype=torch.float32) for part in _read(path, shapes))
    config = MDNRNNConfig(
        hidden_size=HIDDEN,
        num_components=COMPONENTS,
        factorization=Factorization.PER_DIMENSION,
        min_scale=MIN_SCALE,
        predict_change=False,
        skip=False,
        reward_head=False,
        termination_head=False,
    )
    with torch.random.fork_rng(devices=[]):
        model = MDNRNN(LATENTS, ACTIONS, config)
    kernel = kernel.reshape(inputs + HIDDEN, 4, HIDDEN)[:, GATES, :].reshape(inputs + HIDDEN, 4 * HIDDEN)
    bias = bias.reshape(4, HIDDEN)[list(GATES)]
    bias[1] += FORGET_BIAS
    with torch.no_grad():
        lstm: Any = model.lstm
        lstm.weight_ih_l0.copy_(kernel[:inputs].T)
        lstm.weight_hh_l0.copy_(kernel[inputs:].T)
        lstm.bias_ih_l0.copy_(bias.flatten())
        lstm.bias_hh_l0.zero_()
        linear: Any = model.latent_head.linear
        linear.weight.copy_(_by_parameter(head.T))
        linear.bias.copy_(_by_parameter(head_bias))
        # Features of a Box are in [-1, 1]; M takes gas and brake in [0, 1].
        model.action_units.mean.copy_(torch.tensor([0.0, -1.0, -1.0]))
        model.action_units.scale.copy_(torch.tensor([1.0, 2.0, 2.0]))
    return model.eval()


def open_world(directory: str | Path) -> WorldModel:
    """Read V, M and the start state from a copy of the repository's directory ``carracing``.

    Args:
        directory: its path. Without ``initial_z/initial_z.json``, start states are standard normal.

    Returns:
        The world model, in evaluation mode.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if one does not hold the expected weights.
    """
    directory = Path(directory)
    starts = torch.zeros(2, 1, LATENTS)
    if (directory / STARTS_FILE).is_file():
        given = _parse(directory / STARTS_FILE)
        try:
            starts = torch.tensor(np.asarray(given, dtype=np.float64) / SCALE, dtype=torch.float32)
        except ValueError:
            starts = torch.zeros(0)
        if starts.ndim != 3 or starts.shape[0] != 2 or starts.shape[2] != LATENTS or starts.shape[1] == 0:
            raise ValueError(
                f"{directory / STARTS_FILE}: expected means and log-variances (2, N, {LATENTS}), got another shape"
            )
    world = WorldModel(
        open_vision(directory / VISION_FILE),
        open_dynamics(directory / DYNAMICS_FILE),
        DRIVING,
        start_mean=starts[0],
        start_log_variance=starts[1],
        provenance={"source": "github.com/hardmaru/WorldModelsExperiments, carracing"},
    )
    return world.eval()


@register_agent(CONTROLLER_FILES.marker)
class CarRacingController(nn.Module):
    """The authors' linear controller on (z, h), with 867 weights.

    The action is tanh of the outputs for steering, (tanh + 1) / 2 for gas, and tanh for the brake, but 0 below 0.
    """

    features: FeatureKind = "zh"

    def __init__(self) -> None:
        super().__init__()
        with float32_default():
            self.layer = nn.utils.skip_init(nn.Linear, LATENTS + HIDDEN, ACTIONS)

    def reset(self, num_episodes: int) -> None:
        """Do nothing: it has no state."""

    @torch.no_grad()
    def act(self, state: LatentState) -> Tensor:
        """Choose actions (B, 3) for B states."""
        steering, gas, brake = self.layer(state.features(self.features)).tanh().unbind(dim=-1)
        return torch.stack([steering, (gas + 1) / 2, brake.clamp(min=0)], dim=-1)

    def save_pretrained(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write it as a directory.

        Raises:
            FileExistsError: if ``path`` holds something that may not be replaced.
        """
        CONTROLLER_FILES.save(path, {}, self.state_dict(), overwrite=overwrite)

    @classmethod
    def from_pretrained(cls, path: str | Path, *, device: str | torch.device = "cpu") -> CarRacingController:
        """Open a directory that `save_pretrained` wrote.

        Raises:
            FileNotFoundError: if there is none in ``path``.
            ValueError: if it is damaged, of another format, or of a newer version.
        """
        saved = CONTROLLER_FILES.read(path)
        with file_errors(Path(path), "an undamaged controller"):
            controller = cls()
            controller.load_state_dict(saved.weights())
        return controller.to(device)


def open_controller(path: str | Path) -> CarRacingController:
    """Read C from a file of the authors' search, such as ``log/carracing.cma.16.64.best.json``: 867 weights.

    Args:
        path: the file: a list whose first entry holds the weights.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it does not hold these weights.
    """
    given, count = _parse(path), ACTIONS * (LATENTS + HIDDEN + 1)
    first = given[0] if isinstance(given, list) and given else given
    if not isinstance(first, list) or len(first) != count or not np.isfinite(np.asarray(first, dtype=np.float64)).all():
        raise ValueError(f"{path}: expected a list that begins with {count} weights, got another content")
    weights = torch.tensor(first, dtype=torch.float32)
    controller = CarRacingController()
    with torch.no_grad():
        controller.layer.bias.copy_(weights[:ACTIONS])
        controller.layer.weight.copy_(weights[ACTIONS:].reshape(LATENTS + HIDDEN, ACTIONS).T)
    return controller


def _by_parameter(outputs: Tensor) -> Tensor:
    """Reorder M's outputs (D x 3 x K, ...), logits, means and log-scales of each dimension, to (3 x K x D, ...)."""
    by_dimension = outputs.reshape(LATENTS, 3, COMPONENTS, *outputs.shape[1:])
    return by_dimension.movedim(0, 2).reshape(outputs.shape)


def _parse(path: str | Path) -> Any:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a file of a copy of WorldModelsExperiments/carracing, found none")
    return files.parse_json(files.read_bytes(path), path)


def _read(path: str | Path, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """Read a list of arrays of given shapes.

    Raises:
        ValueError: if they are others; names the first that differs.
    """
    given = _parse(path)
    if not isinstance(given, list) or len(given) != len(shapes):
        found = len(given) if isinstance(given, list) else type(given).__name__
        raise ValueError(f"{path}: expected {len(shapes)} arrays of weights, got {found}")
    arrays = []
    for number, (value, shape) in enumerate(zip(given, shapes, strict=True)):
        try:
            array = np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError):
            array = np.empty(0)
        if array.shape != shape or not np.isfinite(array).all():
            raise ValueError(f"{path}: expected an array of shape {shape} at {number}, got {array.shape} or no numbers")
        arrays.append(array)
    return arrays
