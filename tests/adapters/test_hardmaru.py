"""The authors' weights, generated in the layout of their files, against their formulas in NumPy."""

import json

import numpy as np
import pytest
import torch

from worldmodel.adapters.hardmaru import (
    CONVOLUTIONS,
    DECONVOLUTIONS,
    DENSE,
    CarRacingController,
    open_controller,
    open_dynamics,
    open_vision,
    open_world,
)
from worldmodel.agents import check_agent, load_agent
from worldmodel.dream import Dreams, LatentState
from worldmodel.models import SequenceBatch, State

SIZES = {"vae/vae.json": 4_348_547, "rnn/rnn.json": 422_368, "log/best.json": 867}


def arrays(shapes, rng):
    """Return random weights as their files hold them: integers, ten thousand times as large."""
    return [
        np.round(1e4 * rng.standard_normal(shape) * (0.1 if len(shape) == 1 else np.prod(shape[:-1]) ** -0.5))
        for shape in shapes
    ]


@pytest.fixture(scope="module")
def copy_of_theirs(tmp_path_factory):
    """A directory in the layout of theirs, and its weights in their own units."""
    directory, rng = tmp_path_factory.mktemp("carracing"), np.random.default_rng(0)
    shapes = [part for kernel in CONVOLUTIONS for part in (kernel, (kernel[3],))]
    shapes += [part for weight in DENSE for part in (weight, (weight[1],))]
    shapes += [part for kernel in DECONVOLUTIONS for part in (kernel, (kernel[2],))]
    vae, rnn = arrays(shapes, rng), arrays([(256, 480), (480,), (291, 1024), (1024,)], rng)
    controller = rng.standard_normal(867) / 10
    starts = np.round(1e4 * rng.standard_normal((2, 3, 32)))
    contents = {
        "vae/vae.json": [array.astype(int).tolist() for array in vae],
        "rnn/rnn.json": [array.astype(int).tolist() for array in rnn],
        "initial_z/initial_z.json": starts.astype(int).tolist(),
        "log/best.json": [controller.tolist(), 901.5],
    }
    for name, content in contents.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(json.dumps(content))
    return directory, [array / 1e4 for array in vae], [array / 1e4 for array in rnn], controller, starts / 1e4


def convolve(image, kernel, bias):
    """Valid convolution with stride 2 in TensorFlow's layout: (H, W, inputs), (height, width, inputs, outputs)."""
    windows = np.lib.stride_tricks.sliding_window_view(image, kernel.shape[:2], axis=(0, 1))[::2, ::2]
    return np.einsum("hwcij,ijco->hwo", windows, kernel) + bias


def deconvolve(image, kernel, bias):
    """Transposed convolution with stride 2: (H, W, inputs), (height, width, outputs, inputs)."""
    (height, width, _), (k, _, outputs, _) = image.shape, kernel.shape
    result = np.zeros((2 * (height - 1) + k, 2 * (width - 1) + k, outputs))
    for row in range(height):
        for column in range(width):
            result[2 * row : 2 * row + k, 2 * column : 2 * column + k] += kernel @ image[row, column]
    return result + bias


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_v_encodes_and_decodes_as_theirs_does_with_inverted_frames(copy_of_theirs):
    directory, weights, *_ = copy_of_theirs
    pairs = list(zip(weights[::2], weights[1::2], strict=True))
    vision = open_vision(directory / "vae" / "vae.json")
    assert sum(parameter.numel() for parameter in vision.parameters()) == SIZES["vae/vae.json"]
    frame = np.random.default_rng(1).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    hidden = 1 - frame / 255  # the authors' inversion
    for kernel, bias in pairs[:4]:
        hidden = np.maximum(convolve(hidden, kernel, bias), 0)
    expected = [hidden.reshape(-1) @ weight + bias for weight, bias in pairs[4:6]]
    mean, log_variance = vision.encode(frame[None])
    np.testing.assert_allclose(mean[0], expected[0], atol=1e-4)
    np.testing.assert_allclose(log_variance[0], expected[1], atol=1e-4)
    z = np.random.default_rng(2).standard_normal(32)
    hidden = (z @ pairs[6][0] + pairs[6][1]).reshape(1, 1, 1024)
    for kernel, bias in pairs[7:10]:
        hidden = np.maximum(deconvolve(hidden, kernel, bias), 0)
    inverted = sigmoid(deconvolve(hidden, *pairs[10]))
    decoded = vision.decode_images(torch.tensor(z[None], dtype=torch.float32))[0].detach()
    np.testing.assert_allclose(decoded, 1 - inverted, atol=1e-4)
    assert inverted.std() > 0.01


def test_m_has_their_likelihood_and_state(copy_of_theirs):
    directory, _, (head, head_bias, kernel, bias), *_ = copy_of_theirs
    model = open_dynamics(directory / "rnn" / "rnn.json")
    trained = sum(parameter.numel() for parameter in model.parameters())
    assert trained - 1024 == SIZES["rnn/rnn.json"]  # torch has two biases, one of which is 0
    rng = np.random.default_rng(3)
    z, actions = rng.standard_normal((6, 32)), rng.uniform([-1, 0, 0], 1, (5, 3))
    h, c, nll = np.zeros(256), np.zeros(256), []
    for t in range(5):
        i, j, f, o = np.split(np.concatenate([z[t], actions[t], h]) @ kernel + bias, 4)
        c = c * sigmoid(f + 1) + sigmoid(i) * np.tanh(j)
        h = np.tanh(c) * sigmoid(o)
        logmix, mean, logstd = np.split((h @ head + head_bias).reshape(32, 15), 3, axis=1)
        logmix = logmix - np.log(np.exp(logmix).sum(axis=1, keepdims=True))
        density = logmix - 0.5 * ((z[t + 1][:, None] - mean) / np.exp(logstd)) ** 2 - logstd - 0.5 * np.log(2 * np.pi)
        nll.append(-np.log(np.exp(density).sum(axis=1)).mean())
    features = torch.tensor(actions * [1, 2, 2] - [0, 1, 1], dtype=torch.float32)[None]  # of a Box, in [-1, 1]
    ones = torch.ones(1, 5)
    latents = torch.tensor(z, dtype=torch.float32)[None]
    batch = SequenceBatch(z=latents, action=features, reward=ones, terminated=ones.bool(), mask=ones.bool())
    losses = model.step_losses(batch)
    np.testing.assert_allclose(losses.latent[0].detach() / 32, nll, rtol=1e-4)
    _, state = model(latents[:, :-1], features)
    np.testing.assert_allclose(state.h[0, 0].detach(), h, atol=1e-5)
    np.testing.assert_allclose(state.c[0, 0].detach(), c, atol=1e-5)


def test_the_world_dreams_from_their_start_states_under_their_controller(copy_of_theirs, tmp_path):
    directory, *_, starts = copy_of_theirs
    world, controller = open_world(directory), open_controller(directory / "log" / "best.json")
    np.testing.assert_allclose(world.start_mean, starts[0], rtol=1e-6)
    np.testing.assert_allclose(world.start_log_variance, starts[1], rtol=1e-6)
    check_agent(controller, world)
    dreams = Dreams(world, 4)
    rollout = dreams.rollout(controller, 3, generator=dreams.generator(0))
    assert torch.isfinite(rollout.z).all()
    world.save_pretrained(tmp_path / "world")
    assert type(world).from_pretrained(tmp_path / "world").fingerprint == world.fingerprint


def test_the_controller_acts_as_theirs_and_is_opened_again(copy_of_theirs, tmp_path):
    directory, _, _, weights, _ = copy_of_theirs
    controller = open_controller(directory / "log" / "best.json")
    assert sum(parameter.numel() for parameter in controller.parameters()) == SIZES["log/best.json"]
    z, h = torch.randn(50, 32, generator=torch.Generator().manual_seed(4)), torch.rand(50, 256)
    action = np.tanh(np.concatenate([z, h], axis=1) @ weights[3:].reshape(288, 3) + weights[:3])
    action[:, 1] = (action[:, 1] + 1) / 2
    action[:, 2] = np.clip(action[:, 2], 0, 1)
    assert 0 < np.mean(action[:, 2] == 0) < 1
    controller.save_pretrained(tmp_path / "controller")
    again = load_agent(tmp_path / "controller")
    assert isinstance(again, CarRacingController)
    state = LatentState(z, State(h[None], h[None]), torch.ones(50, dtype=torch.bool))
    for one in (controller, again):
        np.testing.assert_allclose(one.act(state), action, atol=1e-5)


@pytest.mark.parametrize(
    ("opened", "content", "message"),
    [
        (open_vision, [[1, 2]], "expected 22 arrays of weights, got 1"),
        (open_dynamics, {"a": 1}, "expected 4 arrays of weights, got dict"),
        (open_dynamics, [[[1]], [2], [3], [4]], r"expected an array of shape \(256, 480\) at 0, got \(1, 1\)"),
        (open_controller, [[1.0, 2.0]], "expected a list that begins with 867 weights"),
        (open_controller, {}, "expected a list that begins with 867 weights"),
    ],
)
def test_other_files_are_rejected(opened, content, message, tmp_path):
    (tmp_path / "file.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        opened(tmp_path / "file.json")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"vae.json: expected a file of a copy of WorldModelsExperiments/carracing"):
        open_world(tmp_path)
