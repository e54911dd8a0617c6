"""The exact densities of benchmarks/processes.py, by numerical integration and Monte Carlo."""

import importlib
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from worldmodel.models import MDNRNNConfig
from worldmodel.training import TrainingConfig, fit

NAMES = ("ball", "jump", "fine jump", "switching", "kalman")


@pytest.fixture
def processes(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    known = set(sys.modules)
    yield importlib.import_module("processes")
    for name in {"processes", "harness"} - known:
        sys.modules.pop(name, None)


def history(process, seed=0, steps=6):
    """One history that is not at its start, as float64: y (steps + 1, D) and actions (steps,)."""
    rng = np.random.default_rng(seed)
    action = rng.uniform(-1, 1, (1, steps))
    return process.simulate(action, rng)[0], action[0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_density_of_the_next_observation_integrates_to_one(processes, name, seed):
    process = processes.PROCESSES[name]
    y, action = history(process, seed)
    if name == "ball":
        y[-2, 0] = 0.01 if seed else 0.99  # at a wall, where two images count
    centre = y[-2]
    reach = {"ball": (0.35, 0.35), "switching": (3.0, 3.5)}.get(name, (12.0,))
    cells = {"ball": 700, "switching": 500}.get(name, 60_000)
    axes = [np.linspace(c - r, c + r, cells, endpoint=False) + r / cells for c, r in zip(centre, reach, strict=True)]
    if name == "ball":
        axes[0] = (np.arange(cells) + 0.5) / cells  # the walls are bounds of the density
        axes[1] = np.linspace(-0.6, 0.6, cells, endpoint=False) + 0.6 / cells
    grid = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)
    total = 0.0
    for part in np.array_split(grid, 50):
        path = np.repeat(y[None, :], len(part), axis=0)
        path[:, -1] = part
        total += np.exp(process.log_prob(path, np.repeat(action[None], len(part), axis=0))[:, -1]).sum()
    volume = math.prod(axis[1] - axis[0] for axis in axes)
    assert total * volume == pytest.approx(1.0, abs=2e-3)


@pytest.mark.parametrize("name", NAMES)
def test_probabilities_of_boxes_match_simulated_frequencies(processes, name):
    """E[1 / q(y)] over a box is its volume if q is the density of what was simulated, given each path's own history."""
    process = processes.PROCESSES[name]
    rng = np.random.default_rng(3)
    action = np.repeat(rng.uniform(-1, 1, (1, 3)), 200_000, axis=0)
    y = process.simulate(action, rng)
    inside = np.ones(len(y), bool)
    low, high = np.quantile(y[:, -1], [0.3, 0.7], axis=0)
    for d in range(process.dim):
        inside &= (y[:, -1, d] > low[d]) & (y[:, -1, d] < high[d])
    # Given its history, a path falls into the box with the integral of the density over it.
    cells = 40
    axes = [lo + (np.arange(cells) + 0.5) / cells * (hi - lo) for lo, hi in zip(low, high, strict=True)]
    grid = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)
    few = y[: 40_000 // len(grid) + 60]
    path = np.repeat(few, len(grid), axis=0)
    path[:, -1] = np.tile(grid, (len(few), 1))
    density = np.exp(process.log_prob(path, np.repeat(action[: len(few)], len(grid), axis=0))[:, -1])
    each = density.reshape(len(few), -1).mean(axis=1) * math.prod(high - low)
    error = math.hypot(each.std() / math.sqrt(len(each)), inside.std() / math.sqrt(len(y)))
    assert abs(each.mean() - inside.mean()) < 5 * error + 1e-4


def test_the_excess_of_the_exact_density_is_zero_and_of_a_wrong_one_its_divergence(processes):
    process, wrong = processes.Jump(), processes.Jump(rare=0.03)
    held_out = processes.episodes(process, 40, seed=1)
    y = np.stack([e.observations for e in held_out]).astype(np.float64)
    action = np.stack([e.actions for e in held_out])[..., 0].astype(np.float64)
    gap = process.log_prob(y, action) - wrong.log_prob(y, action)
    expected = 0.97 * math.log(0.97 / 0.94) + 0.03 * math.log(0.5)
    assert gap.mean() == pytest.approx(expected, abs=5 * gap.std() / math.sqrt(gap.size))


@pytest.mark.parametrize(
    ("name", "most", "head"),
    [("fine jump", 0.1, "MixtureHead"), ("jump", 0.1, "MixtureHead"), ("ball", 0.1, "AutoregressiveHead")],
)
def test_a_short_fit_with_the_defaults_is_near_the_exact_density(processes, tmp_path, name, most, head):
    process = processes.PROCESSES[name]
    store = processes.write_store(tmp_path / "data", process, count=80)
    config, training = MDNRNNConfig(hidden_size=16), TrainingConfig(num_updates=60, evaluate_every=60)
    world = fit(store, out=tmp_path / "world", config=config, training_config=training)
    assert world.mdnrnn.config.latent_head == head
    assert processes.excess(world, process, count=60)["excess"] < most
    if name == "jump":
        assert processes.smallest_responsibility(world, process) > 0.01
