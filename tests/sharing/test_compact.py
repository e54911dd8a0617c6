"""Worlds and agents with float16 weights: half the size, rounded once, and the same numbers wherever they are opened."""

import numpy as np
import pytest
import torch
from toy_worlds import random_world

from worldmodel.agents import Controller, load_agent
from worldmodel.models import WorldModel
from worldmodel.sharing import export_onnx, save_compact
from worldmodel.sharing.onnx_export import halve


def size(directory):
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))


def agent_of(world):
    agent = Controller.for_world(world, generator=torch.Generator().manual_seed(0))
    torch.nn.init.normal_(agent.layers[-1].weight, generator=torch.Generator().manual_seed(1))
    return agent


def test_weights_are_rounded_to_float16_and_statistics_are_not(tmp_path):
    world = random_world(hidden_size=64)
    world.save_pretrained(tmp_path / "full")
    world.provenance |= {"command": "made by hand", "commit": "1234"}
    rounded = save_compact(world, tmp_path / "compact", title="A title", scores="500", licence="mit")
    assert size(tmp_path / "compact" / "world") < 0.55 * size(tmp_path / "full")
    trained = dict(world.named_parameters())
    for name, tensor in rounded.state_dict().items():
        expected = trained[name].half().float() if name in trained else world.state_dict()[name]
        assert torch.equal(tensor, expected), name
    assert rounded.fingerprint == WorldModel.from_pretrained(tmp_path / "compact" / "world").fingerprint
    rounded.save_pretrained(tmp_path / "again", precision="float16")
    assert WorldModel.from_pretrained(tmp_path / "again").fingerprint == rounded.fingerprint
    card = (tmp_path / "compact" / "README.md").read_text(encoding="utf-8")
    for text in (
        "# A title",
        'license: "mit"',
        "500",
        "float16; computed with in float32",
        "compact/world",
        "| command | `made by hand` |",
        "| commit | `1234` |",
    ):
        assert text in card


def test_an_agent_belongs_to_the_rounded_world(tmp_path):
    world = random_world()
    agent = agent_of(world)
    rounded = save_compact(world, tmp_path / "compact", agent=agent)
    opened = load_agent(tmp_path / "compact" / "controller")
    features = torch.randn(64, agent.size, generator=torch.Generator().manual_seed(2))
    assert torch.equal(opened(features), agent(features))
    opened.check_world(rounded)
    with pytest.raises(ValueError, match=r"trained with another (V|M)"):
        opened.check_world(world)
    assert agent.origin.world == world.fingerprint  # the agent that was given has not changed
    with pytest.raises(ValueError, match="trained with another"):
        save_compact(rounded, tmp_path / "other", agent=agent)
    assert not (tmp_path / "other").exists()


def test_a_weight_beyond_float16_is_refused_and_nothing_is_written(tmp_path):
    world = random_world()
    with torch.no_grad():
        world.mdnrnn.latent_head.linear.weight[0, 0] = 70_000.0
    with pytest.raises(ValueError, match=r"latent_head.linear.weight: expected finite numbers, got NaN or infinity"):
        save_compact(world, tmp_path / "compact")
    assert not list(tmp_path.rglob("*.safetensors"))
    with pytest.raises(ValueError, match="precision: expected 'float32' or 'float16', got 'int8'"):
        world.save_pretrained(tmp_path / "world", precision="int8")


def test_only_weights_that_float16_holds_exactly_are_halved():
    onnx = pytest.importorskip("onnx", reason="needs worldmodel[onnx]")
    reference = pytest.importorskip("onnx.reference")
    rng = np.random.default_rng(0)
    constants = {
        "exact": rng.normal(size=(40, 40)).astype(np.float16).astype(np.float32),
        "other": rng.normal(size=(40, 40)).astype(np.float32),
        "large": np.full((40, 40), 1e5, np.float32),
        "few": np.ones((40,), np.float32),
    }
    nodes = [onnx.helper.make_node("MatMul", ["x", "exact"], ["a"])]
    nodes += [
        onnx.helper.make_node("Add", [left, right], [out]) for left, right, out in (("a", "other", "b"), ("b", "large", "c"))
    ]
    nodes.append(onnx.helper.make_node("Add", ["c", "few"], ["y"]))
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [40, 40]) for name in "xy")
    initial = [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "graph", [x], [y], initial))
    given = {"x": rng.normal(size=(40, 40)).astype(np.float32)}
    before = reference.ReferenceEvaluator(model).run(None, given)[0]
    halve(model)
    onnx.checker.check_model(model)
    assert {tensor.name for tensor in model.graph.initializer} == {"exact/float16", "other", "large", "few"}
    assert np.array_equal(reference.ReferenceEvaluator(model).run(None, given)[0], before)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of torch's exporter
def test_a_compact_world_is_exported_at_half_the_size(tmp_path):
    pytest.importorskip("onnxscript", reason="needs worldmodel[onnx]")
    world = random_world(hidden_size=64)
    rounded = save_compact(world, tmp_path / "compact", agent=agent_of(world))
    full, half = export_onnx(world, tmp_path / "full"), export_onnx(rounded, tmp_path / "half")
    for name in ("step.onnx", "sequence.onnx"):
        assert half.sizes[name] < 0.65 * full.sizes[name]
    assert max(half.errors.values()) <= 1e-5
