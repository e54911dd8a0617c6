"""Dreams of ensembles: the members that they follow, the two measures of disagreement, and the penalty."""

import math

import numpy as np
import pytest
import torch
from test_ensemble import ensemble_world
from toy_data import walking_episode
from toy_worlds import WalkEnv, mixed_world, random_world, same_bits

from worldmodel.agents import ControllerConfig, Planner, PlannerConfig, SearchConfig, evolve
from worldmodel.agents.population import dreams_recipe
from worldmodel.dream import Dreams, LatentReward, Penalty, imagine, mutual_information, variance_of_means
from worldmodel.envs import DreamVectorEnv
from worldmodel.evaluation import episode_uncertainty, replay
from worldmodel.runtime import RunConfig


def constant(world, value=0):
    return lambda features: torch.full((len(features),), value)


def after(world, b=6):
    """A state after a step, and the arguments of the measures."""
    torch.manual_seed(1)
    z, action = torch.randn(b, world.mdnrnn.latent_size), torch.randn(b, world.mdnrnn.action_size)
    return z, action, world.mdnrnn.advance(z, action, world.mdnrnn.initial_state(b))


def equal_members(world):
    for member in world.mdnrnn.members[1:]:
        member.load_state_dict(world.mdnrnn.members[0].state_dict())
    return world


# Members


def test_a_dream_follows_one_member_to_its_end():
    dreams = Dreams(ensemble_world(termination_bias=-20.0), 300)
    generator = dreams.generator(0)
    steps = list(dreams.unroll(constant(dreams.world), 5, generator=generator))
    numbers = torch.stack([step.next_state.lstm.h[0, :, 0] for step in steps])
    assert (numbers == numbers[0]).all()
    assert torch.bincount(numbers[0].long(), minlength=4).tolist()[0] == 0
    assert (torch.bincount(numbers[0].long())[1:] > 70).all()  # of about 100


def test_a_dream_changes_its_member_at_each_step_if_asked_to():
    dreams = Dreams(ensemble_world(termination_bias=-20.0), 300, member_per="step")
    steps = list(dreams.unroll(constant(dreams.world), 5, generator=dreams.generator(0)))
    numbers = torch.stack([step.next_state.lstm.h[0, :, 0] for step in steps])
    alive = torch.stack([step.state.alive for step in steps[1:]])
    changed = (numbers[1:] != numbers[:-1])[alive].float().mean()
    assert 0.6 < changed < 0.73  # 2 / 3 of the steps


def test_a_dream_that_follows_a_member_is_a_dream_of_that_member():
    world = ensemble_world(termination_bias=-20.0)
    dreams = Dreams(world, 50, temperature=0.0)
    rollout = dreams.rollout(constant(world), 6, generator=dreams.generator(0))
    last = list(dreams.unroll(constant(world), 6, generator=dreams.generator(0)))[-1]
    numbers, model = last.next_state.lstm.h[0, :, 0].long() - 1, world.mdnrnn
    for row in range(5):
        world.mdnrnn = model.members[numbers[row]]
        alone = Dreams(world, 1, temperature=0.0)
        start = alone.start(generator=alone.generator(0))
        start.z.copy_(rollout.z[row : row + 1, 0])
        expected = alone.rollout(constant(world), 6, generator=alone.generator(0), start=start)
        torch.testing.assert_close(rollout.z[row], expected.z[0])
        torch.testing.assert_close(rollout.rewards[row], expected.rewards[0])


def test_groups_share_their_members():
    dreams = Dreams(ensemble_world(), 60, num_groups=3)
    step = next(dreams.unroll(constant(dreams.world), 1, generator=dreams.generator(0)))
    numbers = step.next_state.lstm.h[0, :, 0].reshape(3, 20)
    assert (numbers == numbers[0]).all()
    torch.testing.assert_close(step.next_state.z[:20], step.next_state.z[40:])


def test_an_environment_dreams_the_same_episode_in_any_batch():
    world = ensemble_world(termination_bias=-20.0)
    one, many = (DreamVectorEnv(world, size, horizon=5) for size in (1, 4))
    first, others = one.reset(seed=7)[0], many.reset(seed=[5, 6, 7, 8])[0]
    np.testing.assert_allclose(first[0], others[2])
    for _ in range(4):
        first, others = one.step(np.array([1]))[0], many.step(np.array([1, 1, 1, 1]))[0]
        np.testing.assert_allclose(first[0], others[2], rtol=1e-5, atol=1e-6)


def test_dreams_with_gradients_follow_the_same_members():
    world = ensemble_world()
    dreams = Dreams(world, 4, penalty=0.5)
    action = torch.eye(3)[[0, 1, 2, 0]].requires_grad_()
    found = imagine(dreams, lambda features: action, 3, generator=dreams.generator(0))
    found.reward.sum().backward()
    assert action.grad.abs().sum() > 0
    state = dreams.start(generator=(generator := dreams.generator(0)))
    for t in range(3):
        drawn = dreams.draw(state, action, generator=generator)
        torch.testing.assert_close(drawn.z, found.z[:, t + 1])
        torch.testing.assert_close(drawn.reward, found.reward[:, t])
        state = type(state)(drawn.z, drawn.lstm, state.alive)


def test_half_precision_is_refused_or_left_out():
    with pytest.raises(ValueError, match="expected a single M for dreams in half precision, got an ensemble of 3"):
        Dreams(ensemble_world(), 2, precision="bfloat16")
    assert Dreams(ensemble_world(), 2, precision="auto").precision == "float32"


# Measures


def test_equal_members_do_not_disagree():
    world = equal_members(ensemble_world())
    torch.testing.assert_close(variance_of_means(world.mdnrnn, *after(world)), torch.zeros(6))
    torch.testing.assert_close(mutual_information(world.mdnrnn, *after(world)).nats, torch.zeros(6), atol=1e-5, rtol=0)


@pytest.mark.parametrize("head", ["MixtureHead", "AutoregressiveHead"])
def test_the_variance_of_means_is_that_of_single_predictions(head):
    world = ensemble_world(latent_head=head)
    z, action, state = after(world)
    world.mdnrnn.models.requires_grad_(False)
    for member in world.mdnrnn.members:
        member.change_scale.fill_(2.0)
    means = [member.step(z, action, member.initial_state(6))[0].latent.expectation() for member in world.mdnrnn.members]
    expected = torch.stack(means).var(dim=0).mean(dim=-1) / 4
    torch.testing.assert_close(variance_of_means(world.mdnrnn, z, action, state), expected)


def test_the_mutual_information_of_distant_members_is_the_log_of_their_number():
    world = ensemble_world()
    with torch.no_grad():
        for number, member in enumerate(world.mdnrnn.members):
            member.latent_head.linear.bias[4:8] += 1000.0 * number  # the means
    found = mutual_information(world.mdnrnn, *after(world))
    torch.testing.assert_close(found.nats, torch.full((6,), math.log(3)))


def test_the_mutual_information_is_entropy_minus_mean_entropy_within_its_error():
    world = ensemble_world(num_components=1)
    z, action, _ = (part[:1].expand(4000, -1) if isinstance(part, torch.Tensor) else part for part in after(world))
    state = world.mdnrnn.advance(z, action, world.mdnrnn.initial_state(4000))
    latent = world.mdnrnn.predict_from(z, action, state)
    generator = torch.Generator().manual_seed(0)
    entropy = -latent.log_prob(latent.sample(generator=generator))
    own = [math.log(2 * math.pi * math.e) + member.log_scale[0].sum() for member in latent.members]
    expected = entropy.mean() - sum(own) / 3  # Gaussians have their entropy in closed form
    found = mutual_information(world.mdnrnn, z, action, state, num_samples=4, generator=generator)
    error = (found.nats.var() / 4000 + entropy.var() / 4000).sqrt()
    assert abs(found.nats.mean() - expected) < 4 * error
    torch.testing.assert_close(found.standard_error.square().mean(), found.nats.var(), rtol=0.1, atol=0)


def test_choices_and_bits_have_measures_too():
    world = ensemble_world(mixed_world)
    z, action, _ = after(world)
    state = world.mdnrnn.advance(z, action, world.mdnrnn.initial_state(6))
    assert (variance_of_means(world.mdnrnn, z, action, state) > 0).all()
    found = mutual_information(world.mdnrnn, z, action, state, num_samples=8)
    assert ((found.nats > 0) & (found.nats < math.log(3) + 1e-5)).all()


def test_a_single_model_has_no_measure_and_no_penalty():
    world = random_world()
    with pytest.raises(ValueError, match="model: expected an ensemble in the world model, got a single M; fit it with"):
        variance_of_means(world.mdnrnn, *after(world))
    with pytest.raises(ValueError, match="penalty: expected an ensemble"):
        Dreams(world, 2, penalty=1.0)
    assert Dreams(world, 2, penalty=0).penalty is None


# Penalty


@pytest.mark.parametrize("penalty", [0.5, Penalty(weight=0.5, threshold=0.2)])
def test_the_penalty_is_subtracted_from_the_reward(penalty):
    world = ensemble_world()
    for member in world.mdnrnn.members:
        member.reward_scale.fill_(3.0)
    plain, paid = Dreams(world, 50), Dreams(world, 50, penalty=penalty)
    one, other = (next(each.unroll(constant(world), 1, generator=each.generator(0))) for each in (plain, paid))
    assert same_bits(one.next_state.z, other.next_state.z)
    action = world.action_features.flatten(one.actions)
    variance = variance_of_means(world.mdnrnn, one.state.z, action, one.next_state.lstm)
    expected = variance if penalty == 0.5 else (variance > 0.2).float()
    torch.testing.assert_close(one.reward - other.reward, 1.5 * expected)
    assert len(set(expected.tolist())) > 1


def test_a_reward_function_is_penalised_too():
    world = ensemble_world()
    dreams = Dreams(world, 5, reward=LatentReward(lambda z, action, after: torch.zeros(len(z))), penalty=1.0)
    step = next(dreams.unroll(constant(world), 1, generator=dreams.generator(0)))
    assert (step.reward < 0).all()


def test_a_penalty_by_information_is_between_zero_and_the_log_of_the_number_of_members():
    world = ensemble_world()
    for member in world.mdnrnn.members:
        member.reward_scale.fill_(1.0)
    plain, paid = Dreams(world, 50), Dreams(world, 50, penalty=Penalty(measure="information", num_samples=4))
    one, other = (next(each.unroll(constant(world), 1, generator=each.generator(0))) for each in (plain, paid))
    difference = one.reward - other.reward
    assert ((difference > -0.2) & (difference < math.log(3) + 1e-5)).all()
    assert difference.mean() > 0.1


def test_a_rollout_shows_the_uncertainty_of_each_step():
    world = ensemble_world()
    dreams = Dreams(world, 20)
    rollout = dreams.rollout(constant(world), 6, generator=dreams.generator(0))
    assert rollout.uncertainty.shape == (20, 6)
    assert (rollout.uncertainty[rollout.mask] > 0).all()
    assert (rollout.uncertainty[~rollout.mask] == 0).all()
    assert Dreams(random_world(), 2).rollout(constant(world), 3, generator=dreams.generator(0)).uncertainty is None


def test_the_uncertainty_along_a_real_episode_is_that_of_its_steps():
    world = ensemble_world(action_space=WalkEnv.action_space, observation_space=WalkEnv.observation_space)
    episode = walking_episode(3, 5)
    found = episode_uncertainty(world, episode)
    assert found.shape == (len(episode),)
    rollout = replay(Dreams(world, 4), episode, prefix=4)
    torch.testing.assert_close(rollout.uncertainty[:, 0], found[4].expand(4))


def test_searches_record_the_penalty_only_if_there_is_one():
    world = ensemble_world()
    assert not {"penalty", "member_per"} & set(dreams_recipe(Dreams(world, 4)))
    found = dreams_recipe(Dreams(world, 4, penalty=2.0, member_per="step").variant(num_dreams=2))
    assert (found["penalty"]["weight"], found["member_per"]) == (2.0, "step")


def test_evolve_maximises_the_penalised_return():
    world = ensemble_world(termination_bias=-20.0)
    best = {}
    for penalty in (0.0, 5.0):
        records = []
        run = RunConfig(on_progress=records.append)
        dreams = Dreams(world, 8, penalty=penalty)
        evolve(
            dreams,
            ControllerConfig(),
            config=SearchConfig(population=4, generations=1, test_dreams=8),
            horizon=3,
            seed=0,
            run=run,
        )
        best[penalty] = records[-1].metrics["best_test"]
    assert best[5.0] < best[0.0]


def test_a_planner_subtracts_the_penalty_from_rewards_and_costs():
    world = ensemble_world(termination_bias=-20.0)
    start = Dreams(world, 2).start(generator=torch.Generator().manual_seed(0))
    scores = {}
    for penalty in (0.0, 1.0):
        config = PlannerConfig(horizon=3, candidates=8, iterations=1, penalty=penalty, method="shooting")
        for name, options in {"reward": {}, "cost": {"cost": lambda step: torch.zeros(len(step.z))}}.items():
            planner = Planner(world, config, **options)
            planner.reset(2)
            planner.act(start)
            scores[name, penalty] = planner.report.score
    assert (scores["cost", 0.0] == 0).all()
    assert (scores["cost", 1.0] < 0).all()
    assert (scores["reward", 1.0] < scores["reward", 0.0]).all()


def test_fields_of_the_penalty_are_checked():
    for wrong in ({"weight": -1.0}, {"measure": "entropy"}, {"threshold": -0.1}, {"num_samples": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Penalty(**wrong)
