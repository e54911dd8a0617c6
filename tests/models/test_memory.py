"""An M without memory: each step is that of the zero state, before and after training, in every precision."""

import copy
import json

import pytest
import torch

from worldmodel.dream import FastStep
from worldmodel.models import MDNRNN, MDNRNNConfig, SequenceBatch, State
from worldmodel.runtime import load_optimizer_tensors, optimizer_tensors
from worldmodel.training.optimizers import OPTIMIZERS, make_optimizer

B, T, D, A, H = 5, 7, 3, 2, 16


def draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(**fields):
    torch.manual_seed(0)
    return MDNRNN(D, A, MDNRNNConfig(**{"hidden_size": H, "memory": False, **fields})).eval()


def make_batch():
    z, action, reward = draw(B, T + 1, D), draw(B, T, A, seed=2), draw(B, T, seed=3)
    return SequenceBatch(z, action, reward, reward > 1, torch.ones(B, T, dtype=torch.bool))


def any_state(model):
    shape = model.config.num_layers, B, H
    return State(draw(*shape, seed=4).tanh(), 10 * draw(*shape, seed=5))


def train(model, optimizer, precision="float32", updates=3):
    for _ in range(updates):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss, _ = model.train().loss(make_batch())
        loss.backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def check_forgets(model):
    batch = make_batch()
    z, action = batch.z[:, :-1], batch.action
    sequence, _ = model(z, action)
    for t in range(T):
        here = [model.step(z[:, t], action[:, t], state)[0] for state in (model.initial_state(B), any_state(model))]
        assert torch.equal(here[0].latent.log_prob(z[:, 0]), here[1].latent.log_prob(z[:, 0]))
        assert torch.equal(here[0].termination_logit, here[1].termination_logit)
        torch.testing.assert_close(here[0].termination_logit, sequence.termination_logit[:, t])
        torch.testing.assert_close(here[0].latent.mean, sequence.latent.mean[:, t])


@pytest.mark.parametrize("num_layers", [1, 2])
def test_a_step_sees_nothing_of_earlier_ones(num_layers):
    check_forgets(make(num_layers=num_layers))
    with pytest.raises(AssertionError):
        check_forgets(make(num_layers=num_layers, memory=True))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_keeps_it_so(optimizer, precision):
    model = make(num_layers=2)
    before = copy.deepcopy(model.state_dict())
    train(model, make_optimizer(optimizer, model.parameters(), learning_rate=0.1), precision)
    check_forgets(model)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {"lstm.weight_ih_l0", "lstm.weight_ih_l1", "latent_head.linear.weight"} <= changed


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_training_resumes_to_the_same_bits(optimizer):
    models = [make(), make()]
    first = make_optimizer(optimizer, models[0].parameters(), learning_rate=0.01)
    train(models[0], first)
    second = make_optimizer(optimizer, models[1].parameters(), learning_rate=0.01)
    models[1].load_state_dict(models[0].state_dict())
    load_optimizer_tensors(second, "x", {name: value.clone() for name, value in optimizer_tensors(first, "x").items()})
    for model, each in zip(models, (first, second), strict=True):
        train(model, each)
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(one, other)


@torch.no_grad()
def test_half_precision_dreams_see_nothing_of_earlier_steps_either():
    model, batch = make(), make_batch()
    numbers = {"uniform": torch.rand(B, D, generator=torch.Generator().manual_seed(6)), "normal": draw(B, D, seed=7)}
    fast = FastStep(model)
    one, other = (
        fast(batch.z[:, 0], batch.action[:, 0], state, temperature=1.0, **numbers)
        for state in (model.initial_state(B), any_state(model))
    )
    assert torch.equal(one.z, other.z)
    assert torch.equal(one.termination_logit, other.termination_logit)


def test_files_of_models_with_memory_do_not_name_it():
    assert "memory" not in json.loads(json.dumps(make(memory=True).config_to_json()))
    assert "memory" not in MDNRNNConfig().identity()
    assert MDNRNNConfig(memory=False).identity()["memory"] is False
    model = make()
    opened = MDNRNN.from_config(json.loads(json.dumps(model.config_to_json())))
    assert opened.config == model.config
    opened.load_state_dict(model.state_dict())
    check_forgets(opened)


def test_layer_normalisation_is_refused():
    with pytest.raises(ValueError, match="memory, layer_norm: expected at most one"):
        MDNRNNConfig(memory=False, layer_norm=True)
    with pytest.raises(TypeError, match="memory"):
        MDNRNNConfig(memory=1)
