"""Arithmetic of models that only unusual shapes or values exercise."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from toy_data import walking_episode, write_store
from toy_worlds import random_world

from worldmodel.data import EpisodeCollection
from worldmodel.mixtures import LatentLayout, LatentPart, PartKind
from worldmodel.models import (
    MDNRNN,
    DataStatistics,
    EncodedObservations,
    MDNRNNConfig,
    SequenceBatch,
    StateNormalizer,
    Vision,
    encode_all,
)
from worldmodel.models import encoded as encoded_module
from worldmodel.models.action_units import ActionUnits
from worldmodel.models.change_units import robust_units
from worldmodel.models.encoded import encoded_bytes, encoded_form
from worldmodel.models.features import check_features
from worldmodel.models.lstm import LayerNormLSTM
from worldmodel.models.value_choices import ValueChoices
from worldmodel.spaces import FlatSpace
from worldmodel.training import encode_store


def batch(action, mask=None, reward=None, z=None):
    """Return a batch whose actions are (B, T, A)."""
    steps = action.shape[:2]
    return SequenceBatch(
        z=torch.zeros(steps[0], steps[1] + 1, 1) if z is None else z,
        action=action,
        reward=torch.zeros(steps) if reward is None else reward,
        terminated=torch.zeros(steps, dtype=torch.bool),
        mask=torch.ones(steps, dtype=torch.bool) if mask is None else mask,
    )


def test_units_of_actions_are_mean_and_deviation_over_batches_of_any_size():
    rng = np.random.default_rng(0)
    actions = [torch.as_tensor(rng.normal(3 * i, 1 + i, size=(2, 5 + 3 * i, 3))) for i in range(3)]
    for one in actions:
        one[..., 2] = 7.0  # constant
    masks = [torch.as_tensor(rng.random(one.shape[:2]) < 0.7) for one in actions]
    units = ActionUnits(3)
    units.fit([batch(a, m) for a, m in zip(actions, masks, strict=True)], torch.tensor([True, False, True]))
    counted = np.concatenate([a[m].numpy() for a, m in zip(actions, masks, strict=True)])
    np.testing.assert_allclose(units.mean, [counted[:, 0].mean(), 0.0, 7.0], rtol=1e-12)
    np.testing.assert_allclose(units.scale, [counted[:, 0].std(), 1.0, 1.0], rtol=1e-12)
    given = torch.tensor([[1.0, 2.0, 8.0]])
    expected = (given.double() - units.mean) / units.scale
    torch.testing.assert_close(units(given, torch.float64), expected)
    assert units(given, torch.float32).dtype is torch.float32


@pytest.mark.parametrize(("mean", "scale"), [(0.5, 1.0), (0.0, 2.0), (0.5, 2.0)])
def test_units_of_actions_are_saved_unless_they_change_nothing(mean, scale):
    units = ActionUnits(2)
    assert dict(units.state_dict()) == {}
    units.mean[1], units.scale[0] = mean, scale
    state = units.state_dict()
    assert sorted(state) == ["mean", "scale"]
    other = ActionUnits(2)
    other.load_state_dict(state)
    torch.testing.assert_close(other.mean, units.mean)
    torch.testing.assert_close(other.scale, units.scale)
    other.load_state_dict({})
    assert other.is_neutral


def test_a_v_of_vectors_has_no_latents_of_an_image():
    assert StateNormalizer(spaces.Box(-1, 1, (3,))).image_latent_size == 0


def test_writing_keeps_the_provenance_unless_another_is_given(tmp_path):
    vision = StateNormalizer(spaces.Box(-1, 1, (3,)))
    for name in "abc":
        (tmp_path / name).mkdir()
    vision.write(tmp_path / "a", provenance={"made": "here"})
    opened = Vision.from_pretrained(tmp_path / "a")
    assert opened.provenance == {"made": "here"}
    opened.write(tmp_path / "b")
    assert Vision.from_pretrained(tmp_path / "b").provenance == {"made": "here"}
    opened.write(tmp_path / "c", provenance={"made": "there"})
    assert Vision.from_pretrained(tmp_path / "c").provenance == {"made": "there"}


@pytest.fixture
def episodes(tmp_path):
    write_store(tmp_path / "walks", [walking_episode(i, 9) for i in range(5)])
    return EpisodeCollection.open(tmp_path / "walks")


def test_the_size_of_encoded_episodes_is_known_beforehand(episodes):
    vision, actions = StateNormalizer(episodes.observation_space), FlatSpace(episodes.action_space)
    found = encode_all(episodes, vision, actions)
    numbers = [found.mean, found.log_variance, found.action, found.reward, found.terminated]
    # five bytes of reward and termination are reserved for each observation, and used for each step
    unused = 5 * (4 * actions.size + 5)
    assert encoded_bytes(episodes, vision, actions) == sum(part.numel() * part.element_size() for part in numbers) + unused


def test_episodes_are_encoded_in_groups_of_a_limited_size(episodes, monkeypatch):
    sizes, encode = [], encoded_module.encode_episodes
    monkeypatch.setattr(encoded_module, "encode_episodes", lambda some, *all: sizes.append(len(some)) or encode(some, *all))
    monkeypatch.setattr(encoded_module, "ENCODE_BYTES", 2 * 9 * 8)  # two episodes of nine steps and two float32
    encode_all(episodes, StateNormalizer(episodes.observation_space), FlatSpace(episodes.action_space))
    assert sizes == [1, 2, 2]


def test_encodings_are_half_or_single_precision():
    assert EncodedObservations(2, "float32").dtype == np.float32
    assert EncodedObservations(2).dtype == np.float16
    with pytest.raises(ValueError, match=r"dtype: expected one of .* got 'float64'"):
        EncodedObservations(2, "float64")


def test_encoded_episodes_are_refused_for_another_v(tmp_path, episodes):
    vision, other = (StateNormalizer(episodes.observation_space) for _ in range(2))
    other.mean.fill_(3.0)
    encoded = encode_store(tmp_path / "walks", vision=vision, out=tmp_path / "encoded")
    assert encoded_form([encoded], vision).latent_size == 2
    for wrong in (other, None):
        with pytest.raises(ValueError, match=r"vision: expected the V that .* was encoded with"):
            encoded_form([encoded], wrong)


def test_choices_among_values_take_any_leading_dimensions_and_name_the_unknown_one():
    space = spaces.Dict({"a": spaces.Box(0, 9, (2,)), "b": spaces.Box(0, 9, ())})
    flat = FlatSpace(space)
    choices = ValueChoices(flat, {("a", 1): (1.0, 2.0, 4.0), ("b", 0): (3.0, 8.0)})
    value = {"a": torch.tensor([[[0.5, 4.0], [1.0, 1.0]]]), "b": torch.tensor([[3.0, 8.0]])}
    features = flat.flatten(value)  # (1, 2, 3)
    z = choices.expand(features, features)
    assert z.shape == (1, 2, choices.latent_size) == (1, 2, 6)
    back, index = choices.collapse(z)
    torch.testing.assert_close(back[..., 0], features[..., 0])
    assert index.tolist() == [[[2, 0], [0, 1]]]
    with pytest.raises(ValueError, match=r"z: expected shape \(\.\.\., 6\), got \(1, 6, 2\)"):
        choices.collapse(z.mT)
    with pytest.warns(UserWarning, match=r"observation 'b'\[0\]: expected one of the values"):
        choices.expand(features, flat.flatten({**value, "b": torch.tensor([[6.0, 8.0]])}))


@pytest.mark.parametrize(("deviation", "counts"), [(1.5e-6, True), (0.9e-6, False)])
def test_a_scale_above_a_millionth_counts_as_variation(deviation, counts):
    generator = torch.Generator().manual_seed(0)
    changes = torch.randn(1000, 1, generator=generator, dtype=torch.float64) * deviation
    part = LatentPart(name="x", kind=PartKind.CONTINUOUS, start=0, size=1, path="x", first=0, count=1)
    unit = robust_units([changes], changes.std(dim=0), LatentLayout((part,)))
    assert (unit.item() < 1e-4) == counts


def test_a_world_reads_actions_in_their_own_precision():
    world = random_world(spaces.Box(0, 1e9, (1,), np.float64))
    exact = 123456789.0123
    features = world.action_features.flatten(np.array([[exact]]))
    assert features.dtype is torch.float64
    assert world.action_features.unflatten(features).item() == pytest.approx(exact, abs=1e-6)


def test_statistics_of_rewards_leave_out_atoms_and_those_of_z_do_not():
    reward = torch.tensor([[0.0, 2.0, 0.0, 5.0]])
    z = torch.tensor([0.0, 1.0, 3.0, 6.0, 10.0]).reshape(1, 5, 1)
    found = DataStatistics.of([batch(torch.zeros(1, 4, 1), reward=reward, z=z)], atoms=(0.0,))
    assert found.reward_mean.item() == pytest.approx(3.5)
    assert found.reward_scale.item() == pytest.approx(1.5)
    assert found.change_scale.item() == pytest.approx(torch.tensor([1.0, 2, 3, 4]).std(correction=0).item())


def test_numbers_that_do_not_vary_have_a_unit_of_one():
    part = LatentPart(name="x", kind=PartKind.CONTINUOUS, start=0, size=2, path="x", first=0, count=2)
    unit = robust_units([torch.zeros(10, 2)], torch.zeros(2), LatentLayout((part,)))
    assert unit.tolist() == [1.0, 1.0]


def test_unknown_features_are_refused():
    for kind in ("z", "zh", "zhc"):
        check_features(kind)
    with pytest.raises(ValueError, match=r"features: expected 'z', 'zh' or 'zhc', got 'zc'"):
        check_features("zc")


def test_layer_normalisation_has_the_eps_of_tensorflow():
    assert LayerNormLSTM(2, 3).cell_norms[0].eps == 1e-12


def test_a_small_variation_of_large_numbers_is_measured_in_float64():
    values = 5e6 + 0.01 * np.random.default_rng(0).normal(size=(4000, 1))
    vision = StateNormalizer(spaces.Box(-np.inf, np.inf, (1,), np.float64)).fit([values])
    assert vision.scale.item() == pytest.approx(values.std(), rel=1e-3)


@pytest.mark.parametrize("heads", [True, False])
def test_losses_of_steps_have_a_number_for_each_step_and_come_to_the_loss(heads):
    config = MDNRNNConfig(hidden_size=3, noise_type="full", factorization="joint", reward_head=heads, termination_head=heads)
    model, generator = MDNRNN(2, 1, config).eval(), torch.Generator().manual_seed(0)
    z = torch.randn(2, 6, 2, generator=generator)
    given = batch(torch.randn(2, 5, 1, generator=generator), reward=torch.randn(2, 5, generator=generator), z=z)
    steps = model.step_losses(given)
    assert [tuple(part.shape) for part in (steps.latent, steps.reward, steps.termination)] == [(2, 5)] * 3
    total, _ = model.loss(given)
    expected = (steps.latent / 2 + steps.reward + steps.termination).mean()
    torch.testing.assert_close(total, expected)
