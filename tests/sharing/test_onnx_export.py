"""Worlds and controllers as ONNX files: the same numbers as torch for every kind of head, and no half-written export."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from gymnasium import spaces
from pages import DOCS, blocks
from scipy.stats import ks_2samp
from toy_worlds import mixed_world, random_world

from worldmodel.agents import Controller, ControllerConfig
from worldmodel.mixtures import GaussianMixture, LatentHead, MixtureHead
from worldmodel.models import MDNRNN, Cameras, ConvVAE, MDNRNNConfig, State, VAEConfig, Vision, WorldModel
from worldmodel.models.cameras import camera_space
from worldmodel.runtime import files
from worldmodel.sharing import EXPORT_FILE, export_onnx, onnx_checks
from worldmodel.sharing.onnx_networks import StepNetwork, sample_mixture

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of torch's exporter


def image_world():
    """A world of images beside numbers, with an untrained VAE."""
    space = spaces.Dict({"image": spaces.Box(0, 255, (20, 24, 3), np.uint8), "speed": spaces.Box(-1, 1, (2,))})
    torch.manual_seed(0)
    vision = ConvVAE(space, VAEConfig(latent_size=4, crop_bottom=3))
    model = MDNRNN(vision.latent_size, 2, MDNRNNConfig(hidden_size=6, num_components=2, num_layers=2))
    means = torch.randn(4, vision.latent_size)
    actions = spaces.Box(-1, 1, (2,))
    return WorldModel(vision, model, actions, start_mean=means, start_log_variance=torch.zeros_like(means)).eval()


def camera_world():
    """A world of two cameras beside numbers, with untrained VAEs."""
    images = {name: spaces.Box(0, 255, (16, size, 3), np.uint8) for name, size in (("left", 16), ("right", 20))}
    space = spaces.Dict({**images, "speed": spaces.Box(-1, 1, (2,))})
    torch.manual_seed(0)
    visions = [ConvVAE(camera_space(space, name), VAEConfig(latent_size=3)) for name in images]
    vision = Cameras(space, visions)
    model = MDNRNN(vision.latent_size, 3, MDNRNNConfig(hidden_size=6, num_components=2))
    means = torch.randn(4, vision.latent_size)
    actions = spaces.Discrete(3)
    return WorldModel(vision, model, actions, start_mean=means, start_log_variance=torch.zeros_like(means)).eval()


HEADS = {
    "cameras": camera_world,
    "no actions": lambda: random_world(action_space=spaces.Box(-1.0, 1.0, (0,), np.float32)),
    "per dimension": lambda: random_world(),
    "joint diagonal, LayerNormLSTM, atoms, outcome": lambda: random_world(
        factorization="joint", layer_norm=True, reward_atoms=(-1.0, 0.0, 2.0), outcome_size=3, skip=False
    ),
    "joint full, no reward": lambda: random_world(factorization="joint", noise_type="full", reward_head=False),
    "joint isotropic, no termination": lambda: random_world(
        factorization="joint", noise_type="isotropic", termination_head=False, predict_change=False
    ),
    "fixed noise": lambda: random_world(noise_type="fixed", fixed_noise_level=0.3),
    "autoregressive": lambda: random_world(latent_head="AutoregressiveHead", reward_components=3),
    "every kind of number": lambda: mixed_world(outcome_size=3, num_layers=2),
    "every kind of number, joint full": lambda: mixed_world(factorization="joint", noise_type="full"),
}


def session(path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs worldmodel[onnx]")
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def step_inputs(world, batch, temperature=1.0, seed=5):
    """Inputs of a step by name."""
    generator, model, network = torch.Generator().manual_seed(seed), world.mdnrnn, StepNetwork(world)
    shape = model.config.num_layers, batch, model.config.hidden_size
    action = world.action_features.sample(batch, generator=generator)
    named = {f"action/{name}": x for name, x in action.items()} if isinstance(action, dict) else {"action": action}
    return {
        "z": world.start_mean[torch.arange(batch) % len(world.start_mean)],
        "h": torch.randn(shape, generator=generator).tanh(),
        "c": torch.randn(shape, generator=generator),
        "temperature": torch.full((batch,), temperature),
        "uniform": torch.rand(batch, network.num_uniforms, generator=generator),
        "normal": torch.randn(batch, network.num_normals, generator=generator),
        **named,
    }, action


@pytest.mark.slow
@pytest.mark.parametrize("kind", HEADS)
def test_a_step_of_every_kind_of_head_is_that_of_torch_for_any_batch_size(kind, tmp_path):
    pytest.importorskip("onnxscript", reason="needs worldmodel[onnx]")
    world = HEADS[kind]()
    done = export_onnx(world, tmp_path / "out")
    assert set(done.errors) == {"encoder", "step", "sequence", "decoder"}
    assert max(done.errors.values()) <= 1e-5
    run = session(tmp_path / "out" / "step.onnx")
    for batch in (1, 7):
        inputs, action = step_inputs(world, batch, temperature=0.0)
        names = [output.name for output in run.get_outputs()]
        taken = {one.name for one in run.get_inputs()}
        found = dict(zip(names, run.run(None, {name: x.numpy() for name, x in inputs.items() if name in taken}), strict=True))
        with torch.no_grad():
            features = world.action_features.flatten(action)
            prediction, state = world.mdnrnn.step(inputs["z"], features, State(inputs["h"], inputs["c"]))
            next_z = prediction.latent.sample(0.0).clamp(world.mdnrnn.latent_low, world.mdnrnn.latent_high)
            outcome = prediction.outcome(next_z)
        expected = {"next_z": next_z, "next_h": state.h, "next_c": state.c}
        if outcome.reward is not None:
            expected["reward"] = outcome.reward.expectation()[:, 0]
        if outcome.termination_logit is not None:
            expected["termination"] = outcome.termination_logit.sigmoid()
        assert set(expected) == set(names) - {"sampled_reward"}
        for name, x in expected.items():
            np.testing.assert_allclose(found[name], x.numpy(), rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_images_numbers_and_a_controller_are_exported_and_described(tmp_path):
    world = image_world()
    controller = Controller.for_world(world, ControllerConfig(features="zhc", hidden_size=3), torch.Generator().manual_seed(0))
    torch.nn.init.normal_(controller.layers[-1].weight)
    done = export_onnx(world, tmp_path / "out", controller=controller)
    content = json.loads((tmp_path / "out" / EXPORT_FILE).read_text())
    assert set(content["files"]) == set(done.errors) == {"encoder", "step", "sequence", "decoder", "controller"}
    for entry in content["files"].values():
        data = (tmp_path / "out" / entry["file"]).read_bytes()
        assert entry["sha256"] == hashlib.sha256(data).hexdigest()
        run = session(data)
        assert [(one["name"], one["shape"]) for one in entry["inputs"]] == [(x.name, x.shape) for x in run.get_inputs()]
        assert [one["name"] for one in entry["outputs"]] == [x.name for x in run.get_outputs()]
    inputs, _ = step_inputs(world, 5)
    act = session(tmp_path / "out" / "controller.onnx")
    (action,) = act.run(None, {name: inputs[name].numpy() for name in ("z", "h", "c")})
    seen = torch.cat([inputs["z"], inputs["h"][-1], inputs["c"][-1]], dim=1)
    np.testing.assert_allclose(action, controller(seen).numpy(), rtol=1e-5, atol=1e-6)
    image = np.random.default_rng(0).integers(0, 256, (2, 20, 24, 3), dtype=np.uint8)
    speed, normal = np.zeros((2, 2), np.float32), np.ones((2, world.vision.latent_size), np.float32)
    encode = session(tmp_path / "out" / "encoder.onnx")
    z, mean, log_variance = encode.run(None, {"normal": normal, "observation/image": image, "observation/speed": speed})
    expected = world.vision.encode({"image": image, "speed": speed})
    np.testing.assert_allclose(mean, expected[0].detach().numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(z, mean + np.exp(0.5 * log_variance), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["full", "isotropic", "diagonal per dimension"])
def test_mixtures_are_sampled_from_given_numbers_as_they_are_without(kind):
    """Kolmogorov-Smirnov tests of 50,000 samples along four directions at two temperatures."""
    n, d = 50_000, 2
    per_dimension = "per" in kind
    head = MixtureHead(
        3, d, 3,
        factorization="per_dimension" if per_dimension else "joint",
        noise_type="diagonal" if per_dimension else kind,
    )  # fmt: skip
    torch.manual_seed(0)
    torch.nn.init.normal_(head.linear.weight)
    for tau in (0.6, 1.3):
        with torch.no_grad():
            mixture = head(torch.ones(n, 3))
            given = sample_mixture(mixture, torch.full((n,), tau), torch.rand(n, head.num_uniforms), torch.randn(n, d))
        other = GaussianMixture.sample(mixture, tau, generator=torch.Generator().manual_seed(1))
        for direction in ([1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, -1.0]):
            one, two = (x @ torch.tensor(direction) for x in (given, other))
            assert ks_2samp(one, two).pvalue > 1e-4


def test_the_order_of_the_kinds_in_z_is_kept():
    world = mixed_world()
    inputs, action = step_inputs(world, 50)
    names = [name for name in inputs if not name.startswith("action")]
    with torch.no_grad():
        next_z = StepNetwork(world)(*(inputs[name] for name in names), *action.values())[0]
    z, columns = inputs["z"], world.layout.columns
    assert torch.equal(next_z[:, columns("constant", "episode_constant")], z[:, columns("constant", "episode_constant")])
    assert bool((next_z[:, 2:5].sum(dim=1) == 1).all())  # the choice of 3
    assert set(next_z[:, columns("bits", "choice")].unique().tolist()) == {0.0, 1.0}
    assert not bool((next_z[:, columns("continuous", "integer")] == z[:, columns("continuous", "integer")]).any())


def test_a_network_that_differs_from_torch_is_refused_and_nothing_is_written(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript", reason="needs worldmodel[onnx]")
    monkeypatch.setattr(StepNetwork, "forward", _changing(StepNetwork.forward))
    with pytest.raises(RuntimeError, match="step: expected next_z within 1e-05 of torch"):
        export_onnx(random_world(), tmp_path / "out", decoder=False)
    assert not list(tmp_path.iterdir())


def _changing(forward):
    def changed(self, z, h, c, temperature, uniform, normal, *action):
        z, *rest = forward(self, z, h, c, temperature, uniform, normal, *action)
        return (z if torch.compiler.is_exporting() else z + 1e-3, *rest)

    return changed


class Blind(Vision):
    """A V without a decoder."""

    def __init__(self, observation_space):
        super().__init__()
        self._space, self.latent_size = observation_space, 2

    @property
    def observation_space(self):
        return self._space

    def encode(self, observation):
        mean = torch.as_tensor(observation).float()
        return mean, torch.full_like(mean, -torch.inf)


class OwnHead(LatentHead):
    """A head that samples in a way of its own."""

    numbers_per_sample = 1

    def __init__(self, in_features, dim):
        super().__init__()
        self.head = MixtureHead(in_features, dim, 1)

    @classmethod
    def from_config(cls, in_features, dim, config):
        return cls(in_features, dim)

    def forward(self, features):
        return self.head(features)


def test_what_can_not_be_exported_is_refused_in_one_line(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript", reason="needs worldmodel[onnx]")
    world = random_world()
    blind = WorldModel(
        Blind(world.observation_space), world.mdnrnn, world.action_space,
        start_mean=world.start_mean, start_log_variance=world.start_log_variance,
    )  # fmt: skip
    with pytest.raises(ValueError, match="decoder: expected a V with a decoder, got Blind"):
        export_onnx(blind, tmp_path / "out")
    with pytest.raises(ValueError, match="latent_head: expected one that samples from given random numbers, got OwnHead"):
        export_onnx(random_world(latent_head="OwnHead"), tmp_path / "out")
    with pytest.raises(ValueError, match="controller: expected one on the world model's"):
        export_onnx(world, tmp_path / "out", controller=Controller(3, world.action_space))
    monkeypatch.setattr("worldmodel.runtime.extras.has_extra", lambda extra: False)
    with pytest.raises(ImportError, match=r"expected the extra onnx, which is not installed"):
        export_onnx(world, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_only_an_earlier_export_is_replaced_and_only_on_request(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript", reason="needs worldmodel[onnx]")
    world, out = random_world(), tmp_path / "out"
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"cat")
    with pytest.raises(FileExistsError, match="expected an empty directory, got one with other files"):
        export_onnx(world, tmp_path / "photos", overwrite=True)
    export_onnx(world, out, decoder=False)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(FileExistsError, match="got an earlier output"):
        export_onnx(world, out)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"expected only an earlier output, got also 'notes.txt'"):
        export_onnx(world, out, overwrite=True)
    (out / "notes.txt").unlink()

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(files, "write_bytes", full)
    with pytest.raises(OSError, match="no space"):
        export_onnx(world, out, decoder=False, overwrite=True)
    assert before == {path.name: path.read_bytes() for path in out.iterdir()}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "photos"]
    monkeypatch.undo()
    export_onnx(world, out, overwrite=True)
    assert {"decoder.onnx", EXPORT_FILE} <= {path.name for path in out.iterdir()}


def test_uniform_numbers_at_which_a_sample_jumps_are_drawn_anew():
    world = random_world()
    inputs, action = step_inputs(world, 4)
    network = StepNetwork(world)
    names = [name for name in inputs if name != "action"]
    given = onnx_checks.Network(
        name="step", module=network, inputs=[*names, "action"], outputs=network.output_names,
        batch_axes=[0] * 7, example=[],
    )  # fmt: skip
    low, high = torch.zeros(4, 1), torch.ones(4, 1) - 1e-6

    @torch.no_grad()
    def first(uniform):
        changed = {**inputs, "uniform": torch.cat([uniform, inputs["uniform"][:, 1:]], dim=1)}
        return changed, network(*(changed[name] for name in names), action)[0][:, :1]

    begin = first(low)[1]
    for _ in range(30):  # bisection
        middle = (low + high) / 2
        same = first(middle)[1] == begin
        low, high = torch.where(same, middle, low), torch.where(same, high, middle)
    edge = first(low)[0]
    with torch.no_grad():
        settled = onnx_checks.settled(given, (*(edge[name] for name in names), action))[names.index("uniform")]
    assert bool((settled[:, 0] != edge["uniform"][:, 0]).all())


@pytest.mark.slow
def test_the_loop_of_the_guide_needs_neither_torch_nor_this_library(tmp_path):
    pytest.importorskip("onnxscript", reason="needs worldmodel[onnx]")
    observations = spaces.Box(-np.inf, np.inf, (4,), np.float32)
    world = random_world(spaces.Discrete(2), observations)
    controller = Controller.for_world(world, ControllerConfig(hidden_size=2), torch.Generator().manual_seed(0))
    export_onnx(world, tmp_path / "deployed", controller=controller)
    loop = blocks(DOCS / "how_to" / "deploy_onnx.md", "python")[-1]
    code = "import sys\nsys.modules['torch'] = sys.modules['worldmodel'] = None\n" + loop
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "us median" in done.stdout
