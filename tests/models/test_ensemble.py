"""`MDNRNNEnsemble` and `MemberMixture`: mixtures, states of all members, files, and what does not support ensembles."""

import math

import pytest
import torch
from toy_worlds import mixed_world, random_world

from worldmodel.mixtures import GaussianMixture, MemberMixture
from worldmodel.models import (
    MDNRNNEnsemble,
    WorldModel,
    feature_size,
    feature_space,
    latent_features,
    refuse_ensemble,
)
from worldmodel.sharing import export_onnx


def ensemble_world(make=random_world, size=3, **fields):
    """Return a world model whose members have different random weights."""
    members = []
    for number in range(size):
        world = make(**fields)
        torch.manual_seed(number)
        with torch.no_grad():
            for parameter in world.mdnrnn.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        members.append(world.mdnrnn)
    world.mdnrnn = MDNRNNEnsemble(members)
    return world.eval()


def batch(world, b=4, t=3):
    torch.manual_seed(9)
    return torch.randn(b, t, world.mdnrnn.latent_size), torch.randn(b, t, world.mdnrnn.action_size)


def gaussians(seed):
    generator = torch.Generator().manual_seed(seed)
    weights, mean, scale = (torch.randn(5, 2, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    return GaussianMixture(weights.log_softmax(dim=-2), mean, 0.3 * scale)


def test_the_density_of_a_mixture_is_the_weighted_mean_of_the_densities():
    members, x = [gaussians(seed) for seed in range(3)], torch.zeros(5, 3, dtype=torch.float64)
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    expected = sum(w * member.log_prob(x).exp() for w, member in zip(weights, members, strict=True)).log()
    torch.testing.assert_close(MemberMixture(members, weights.log()).log_prob(x), expected)


def test_samples_of_a_mixture_have_its_mean():
    members = [gaussians(seed) for seed in range(3)]
    mixture = MemberMixture(members, torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log())
    generator = torch.Generator().manual_seed(0)
    many = torch.stack([mixture.sample(generator=generator) for _ in range(4000)])
    error = 5 * many.std(dim=0) / math.sqrt(len(many))
    assert ((many.mean(dim=0) - mixture.expectation()).abs() < error).all()


def test_a_weight_of_one_gives_the_samples_of_that_member():
    members = [gaussians(seed) for seed in range(3)]
    mixture = MemberMixture(members, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64).log())
    torch.testing.assert_close(mixture.sample(0.0), members[1].mode())
    torch.testing.assert_close(mixture.log_prob(mixture.sample(0.0)), members[1].log_prob(members[1].mode()))


def test_the_likelihoods_of_kinds_sum_to_that_of_the_mixture():
    world = ensemble_world(mixed_world)
    z, action = batch(world)
    latent = world.mdnrnn(z, action)[0].latent
    after = latent.sample()
    kinds = latent.log_probs(after)
    assert len(kinds) == 4
    torch.testing.assert_close(sum(kinds.values()), latent.log_prob(after))


def test_steps_are_the_sequence_and_all_members_advance():
    world = ensemble_world(num_layers=2)
    model, (z, action) = world.mdnrnn, batch(world)
    whole, last = model(z, action)
    state = model.initial_state(len(z))
    for t in range(z.shape[1]):
        prediction, state = model.step(z[:, t], action[:, t], state)
    torch.testing.assert_close(state.h, last.h)
    torch.testing.assert_close(prediction.latent.log_prob(z[:, 0]), whole.latent.log_prob(z[:, :1].expand_as(z))[:, -1])
    for number, member in enumerate(model.members):
        own = member(z, action)[1]
        torch.testing.assert_close(state.c[1:].chunk(3, dim=-1)[number], own.c)


def test_a_step_is_that_of_the_member_that_the_state_names():
    world = ensemble_world()
    model, (z, action) = world.mdnrnn, batch(world)
    state = model.follow(model.initial_state(4), torch.tensor([0.0, 0.4, 0.7, 0.999]))
    assert state.h[0, :, 0].tolist() == [1, 2, 3, 3]
    assert model.follow(state, torch.zeros(4)).h[0, :, 0].tolist() == [1, 2, 3, 3]
    assert model.follow(state, torch.zeros(4), again=True).h[0, :, 0].tolist() == [1, 1, 1, 1]
    prediction, after = model.step(z[:, 0], action[:, 0], state)
    assert after.h[0, :, 0].tolist() == [1, 2, 3, 3]
    outcome = prediction.outcome(z[:, 1])
    for row, number in enumerate((0, 1, 2, 2)):
        member = model.members[number]
        alone, _ = member.step(z[:, 0], action[:, 0], member.initial_state(4))
        torch.testing.assert_close(prediction.latent.expectation()[row], alone.latent.expectation()[row])
        expected = alone.outcome(z[:, 1])
        torch.testing.assert_close(outcome.reward.expectation()[row], expected.reward.expectation()[row])
        torch.testing.assert_close(outcome.termination_logit[row], expected.termination_logit[row])


def test_a_mixture_terminates_with_the_mean_probability():
    world = ensemble_world()
    z, action = batch(world)
    p = torch.stack([member(z, action)[0].termination_logit.sigmoid() for member in world.mdnrnn.members]).mean(dim=0)
    torch.testing.assert_close(world.mdnrnn(z, action)[0].termination_logit.sigmoid(), p)


def test_agents_see_z_or_the_hidden_units_of_all_members():
    world = ensemble_world()
    z, action = batch(world)
    _, state = world.mdnrnn.step(z[:, 0], action[:, 0], world.mdnrnn.initial_state(4))
    features = latent_features(z[:, 1], state, "zh")
    assert features.shape == (4, feature_size(world, "zh")) == (4, 2 + 3 * 5)
    assert feature_space(world, "zhc").shape == (2 + 2 * 3 * 5,)
    second = world.mdnrnn.members[1]
    torch.testing.assert_close(features[:, 7:12], second.step(z[:, 0], action[:, 0], second.initial_state(4))[1].h[-1])


def test_an_ensemble_is_saved_and_opened(tmp_path):
    world = ensemble_world()
    world.save_pretrained(tmp_path / "world")
    again = WorldModel.from_pretrained(tmp_path / "world")
    assert again.fingerprint == world.fingerprint
    assert len(again.mdnrnn.members) == 3
    assert "3 LSTMs of 5" in repr(again)


def test_a_wrong_number_of_members_in_a_file_is_refused(tmp_path):
    world = ensemble_world()
    for wrong in (1, 2, 4, 10**9):
        content = {**world._content(), "mdnrnn": {**world._content()["mdnrnn"], "ensemble": wrong}}
        path = tmp_path / f"world-{wrong}"
        path.mkdir()
        world._content = lambda content=content: content
        world.write(path)
        del world._content
        with pytest.raises(ValueError, match="damaged"):
            WorldModel.from_pretrained(path)


def test_members_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match="same sizes"):
        MDNRNNEnsemble([random_world().mdnrnn, random_world(hidden_size=6).mdnrnn])
    with pytest.raises(ValueError, match="at least 2"):
        MDNRNNEnsemble([random_world().mdnrnn])


def test_what_needs_a_single_model_says_so(tmp_path):
    world = ensemble_world()
    with pytest.raises(ValueError, match="expected a single M for an export, got an ensemble of 3"):
        export_onnx(world, tmp_path / "onnx")
    refuse_ensemble(world.mdnrnn.members[0], "an export")
