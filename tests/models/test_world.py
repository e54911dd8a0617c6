"""World models on disk: round trip, damage, and no code in files."""

import ast
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from toy_envs import NESTED_ACTION, NESTED_OBSERVATION

import worldmodel
from worldmodel.models import MDNRNN, MDNRNNConfig, StateNormalizer, WorldModel
from worldmodel.runtime import ModelCard, write_card
from worldmodel.spaces import FlatSpace

OBSERVATION = spaces.Box(-np.inf, np.inf, (2,), np.float32)
ACTION = spaces.Discrete(3)


def make_world(observation_space=OBSERVATION, action_space=ACTION, *, seed=0, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vision = StateNormalizer(observation_space)
        vision.mean.normal_()
        vision.scale.uniform_(0.5, 2.0)
        config = MDNRNNConfig(**({"hidden_size": 6, "num_components": 2} | options))
        start = torch.randn(5, vision.latent_size)
        noise = torch.full_like(start, -torch.inf)
        model = MDNRNN(vision.latent_size, FlatSpace(action_space).size, config)
    return WorldModel(vision, model, action_space, start_mean=start, start_log_variance=noise, provenance={"made": "up"}).eval()


def weights_of(path):
    """Return the weights of a world model directory."""
    (weights,) = path.glob("weights-*.safetensors")
    return weights


def rewrite(path, change):
    """Change the JSON of a world model directory in place."""
    content = json.loads((path / "world.json").read_text())
    del content["sha256"]  # as if it had been written so
    change(content)
    (path / "world.json").write_text(json.dumps(content))


@pytest.fixture
def saved(tmp_path):
    make_world().save_pretrained(tmp_path / "world")
    return tmp_path / "world"


# Round trip


@pytest.mark.parametrize("which", [(OBSERVATION, ACTION), (NESTED_OBSERVATION, NESTED_ACTION)], ids=["flat", "nested"])
@pytest.mark.parametrize(
    "options", [{}, {"layer_norm": True, "num_layers": 2}, {"factorization": "joint", "noise_type": "full"}]
)
def test_round_trip_gives_equal_predictions(tmp_path, which, options):
    world = make_world(*which, **options)
    world.save_pretrained(tmp_path / "world")
    opened = WorldModel.from_pretrained(tmp_path / "world")
    z, action = torch.randn(3, 4, world.vision.latent_size), torch.randn(3, 4, world.action_features.size)
    (one, state), (two, other) = (w.mdnrnn(z, action) for w in (world, opened))
    assert all(torch.equal(a, b) for a, b in zip(state, other, strict=True))
    assert torch.equal(one.latent.log_prob(z), two.latent.log_prob(z))
    assert torch.equal(one.termination_logit, two.termination_logit)
    assert torch.equal(one.reward.log_prob(z[..., :1]), two.reward.log_prob(z[..., :1]))
    assert torch.equal(world.start_mean, opened.start_mean)
    assert (opened.observation_space, opened.action_space) == which
    assert opened.provenance == {"made": "up"}
    assert opened.fingerprint == world.fingerprint
    assert not opened.training
    observation = which[0].sample()
    assert torch.equal(world.encode(observation), opened.encode(observation))


def test_encode_and_decode_are_inverse_on_vectors():
    world = make_world()
    observation = np.array([[1.5, -2.0], [0.0, 3.0]], dtype=np.float32)
    z = world.encode(observation)
    assert z.numpy() == pytest.approx((observation - world.vision.mean.numpy()) / world.vision.scale.numpy(), abs=1e-6)
    assert world.decode(z).numpy() == pytest.approx(observation, abs=1e-5)


def test_fingerprint_tells_models_apart():
    world, same, other = make_world(), make_world(), make_world(seed=1)
    assert world.fingerprint == same.fingerprint != other.fingerprint
    with torch.no_grad():
        same.start_mean[0, 0] += 1
    assert world.fingerprint != same.fingerprint
    assert make_world(min_scale=0.04).fingerprint != world.fingerprint  # not in the weights


def test_saving_replaces_only_an_earlier_world_and_only_on_request(saved, tmp_path):
    other = make_world(seed=1)
    with pytest.raises(FileExistsError, match=r"expected an empty directory, got an earlier output \(world.json\)"):
        other.save_pretrained(saved)
    other.save_pretrained(saved, overwrite=True)
    assert WorldModel.from_pretrained(saved).fingerprint == other.fingerprint
    with pytest.raises(FileExistsError, match="with other files"):
        other.save_pretrained(tmp_path, overwrite=True)


def test_the_json_is_readable_and_says_what_it_is(saved):
    content = json.loads((saved / "world.json").read_text())
    assert (content["format"], content["version"]) == ("worldmodel.world", 3)
    assert content["mdnrnn"]["hidden_size"] == 6
    assert sorted(path.name for path in saved.iterdir()) == ["README.md", weights_of(saved).name, "world.json"]


@pytest.mark.parametrize("kind", ["directory", "fifo", "large"])
def test_a_readme_that_is_no_card_is_left_alone(tmp_path, kind):
    if kind == "fifo" and not hasattr(os, "mkfifo"):
        pytest.skip("no FIFO here")
    readme = tmp_path / "README.md"
    if kind == "large":
        with open(readme, "wb") as file:
            file.truncate(2**25)
    else:
        readme.mkdir() if kind == "directory" else os.mkfifo(readme)
    before = os.stat(readme)
    write_card(readme, ModelCard(title="World", summary="A world."))
    assert (os.stat(readme).st_mode, os.stat(readme).st_ino) == (before.st_mode, before.st_ino)


def test_a_world_of_format_1_which_named_only_the_class_of_v_opens(saved):
    fingerprint = WorldModel.from_pretrained(saved).fingerprint
    rewrite(saved, lambda content: content.update(version=1, vision="StateNormalizer"))
    assert WorldModel.from_pretrained(saved).fingerprint == fingerprint


def test_an_unknown_v_is_rejected(saved):
    rewrite(saved, lambda content: content.update(vision={"class": "Eye", "config": {}}))
    with pytest.raises(
        ValueError, match=r"world: vision: expected one of .*'ConvVAE', .*'StateNormalizer'.*, got 'Eye'; import the module"
    ):
        WorldModel.from_pretrained(saved)


# Damage


def test_missing_files_are_named(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: expected a world model directory with world.json"):
        WorldModel.from_pretrained(tmp_path / "nowhere")
    weights_of(saved).unlink()
    with pytest.raises(FileNotFoundError, match=r"weights-[0-9a-f]{16}.safetensors: expected a safetensors file, found none"):
        WorldModel.from_pretrained(saved)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_weights_are_rejected(saved, keep):
    path = weights_of(saved)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"weights-[0-9a-f]{16}.safetensors: expected a safetensors file, got a damaged file"):
        WorldModel.from_pretrained(saved)


@pytest.mark.parametrize("place", [0.0, 0.01, 0.3, 0.6, 0.999])
def test_a_flipped_bit_anywhere_in_the_weights_is_rejected(saved, place):
    path = weights_of(saved)
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"digest of the weights|expected a safetensors file, got a damaged file"):
        WorldModel.from_pretrained(saved)


def test_weights_of_another_model_are_rejected(saved, tmp_path):
    make_world(seed=1).save_pretrained(tmp_path / "other")
    weights_of(saved).write_bytes(weights_of(tmp_path / "other").read_bytes())
    with pytest.raises(ValueError, match="digest of the weights is not the one recorded"):
        WorldModel.from_pretrained(saved)


def test_a_newer_version_says_how_to_upgrade(saved):
    rewrite(saved, lambda content: content.update(version=4))
    with pytest.raises(ValueError, match=r"version 3 or older, got version 4; .*pip install --upgrade worldmodel"):
        WorldModel.from_pretrained(saved)


def test_damaged_json_and_other_formats_are_rejected(saved):
    rewrite(saved, lambda content: content.update(format="worldmodel.controller"))
    with pytest.raises(ValueError, match=r"expected format 'worldmodel.world', got 'worldmodel.controller'"):
        WorldModel.from_pretrained(saved)
    for text in ('{"a": 1}', "[1, 2]", "", '{"format": "worldmodel.wor', "\x00\xff"):
        (saved / "world.json").write_text(text)
        with pytest.raises(ValueError, match=r"world.json: expected (JSON of )?format 'worldmodel.world', got"):
            WorldModel.from_pretrained(saved)


FIELDS = ["vision", "mdnrnn", "observation_space", "action_space", "num_start_states", "weights_sha256"]
VALUES = ["absent", None, -1, "rubbish", [], {}, {"type": "Box"}, {"hidden_size": 6}]


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field in FIELDS for value in VALUES] + [("provenance", "absent"), ("provenance", 7)]
)
def test_a_wrong_field_is_a_clear_error(saved, field, value):
    rewrite(saved, lambda content: content.pop(field) if value == "absent" else content.update({field: value}))
    with pytest.raises(
        ValueError,
        match=r"(world: expected a complete world model, got a damaged one: .+|vision: expected one|digest of the weights)",
    ):
        WorldModel.from_pretrained(saved)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["mdnrnn"].update(hidden_size=7),
        lambda content: content["mdnrnn"].update(latent_size=3),
        lambda content: content["mdnrnn"].update(unheard_of=1),
        lambda content: content["action_space"].update(n=4),
        lambda content: content.update(num_start_states=6),
    ],
)
def test_a_configuration_that_does_not_fit_the_weights_is_rejected(saved, change):
    rewrite(saved, change)
    with pytest.raises(ValueError, match="expected a complete world model, got a damaged one"):
        WorldModel.from_pretrained(saved)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_neither_saved_nor_opened(saved, tmp_path, monkeypatch, value):
    world = make_world()
    with torch.no_grad():
        world.mdnrnn.lstm.weight_hh_l0[0, 0] = value
    with pytest.raises(ValueError, match=r"mdnrnn.lstm.weight_hh_l0: expected finite numbers"):
        world.save_pretrained(tmp_path / "bad")
    assert not (tmp_path / "bad").exists()
    with monkeypatch.context() as patched:
        patched.setattr(WorldModel, "_check_finite", lambda self: None)
        world.save_pretrained(saved, overwrite=True)
    with pytest.raises(ValueError, match=r"damaged one: .*weight_hh_l0: expected finite numbers"):
        WorldModel.from_pretrained(saved)


# Parts that do not fit


def test_parts_must_fit_each_other():
    world = make_world()
    start, noise = world.start_mean, world.start_log_variance
    with pytest.raises(ValueError, match="mdnrnn: expected latent size 2 and action size 4, got 2 and 3"):
        WorldModel(world.vision, world.mdnrnn, spaces.Discrete(4), start_mean=start, start_log_variance=noise)
    for wrong in (start[:, :1], start[0], start[:0]):
        with pytest.raises(ValueError, match=r"start_mean: expected shape \(N, 2\) with N >= 1"):
            WorldModel(world.vision, world.mdnrnn, ACTION, start_mean=wrong, start_log_variance=noise)
    with pytest.raises(ValueError, match=r"start_log_variance: expected shape \(5, 2\), got \(4, 2\)"):
        WorldModel(world.vision, world.mdnrnn, ACTION, start_mean=start, start_log_variance=noise[:4])


def test_check_spaces_names_source_and_space():
    world = make_world()
    world.check_spaces(OBSERVATION, ACTION, source="here")
    with pytest.raises(ValueError, match=r"CartPole: expected the world model's observation space Box.*, got Discrete\(2\)"):
        world.check_spaces(spaces.Discrete(2), ACTION, source="CartPole")
    with pytest.raises(ValueError, match=r"CartPole: expected the world model's action space Discrete\(3\), got Discrete\(2\)"):
        world.check_spaces(OBSERVATION, spaces.Discrete(2), source="CartPole")


# No code in files


def test_nothing_in_the_package_reads_or_writes_pickles():
    """Only four modules of `runtime` do, in memory, from a process to its own workers and ranks."""
    package = Path(worldmodel.__file__).parent
    modules = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    calls = {("torch", "load"), ("torch", "save"), ("np", "load"), ("numpy", "load"), ("np", "save")}
    found = []
    for path in set(package.rglob("*.py")) - {
        package / "runtime" / name for name in ("executors.py", "kept.py", "ranks.py", "remote.py", "workers.py")
    }:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found += [(path.name, alias.name) for alias in node.names if alias.name.split(".")[0] in modules]
            elif isinstance(node, ast.ImportFrom):
                found += [(path.name, node.module)] if (node.module or "").split(".")[0] in modules else []
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                found += [(path.name, node.attr)] if (node.value.id, node.attr) in calls else []
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec"):
                found.append((path.name, node.func.id))
            elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                found.append((path.name, node.arg))
    assert not found


def test_overwriting_replaces_the_world_and_leaves_other_files(saved):
    (saved / "training").mkdir()
    (saved / "training" / "log").write_text("kept")
    make_world(seed=5).save_pretrained(saved, overwrite=True)
    assert (saved / "training" / "log").read_text() == "kept"
    assert WorldModel.from_pretrained(saved).fingerprint == make_world(seed=5).fingerprint


def test_opening_a_world_leaves_the_global_generator_alone(saved):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    WorldModel.from_pretrained(saved)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_unavailable_device_is_named(saved):
    with pytest.raises(ValueError, match=r"device: expected an available device such as 'cpu', got 'nonsense'"):
        WorldModel.from_pretrained(saved, device="nonsense")
