"""Samples of the page, by JavaScript and onnxruntime-web, against those of Python: a million of each kind of number."""

import functools
import json

import numpy as np
import pytest
import torch
from browserless import run_node
from gymnasium import spaces
from scipy.stats import chi2_contingency, ks_2samp
from toy_worlds import mixed_world

from worldmodel.models import State
from worldmodel.play import export_page, open_run
from worldmodel.play.page import PAGE_OUTPUTS
from worldmodel.play.site import site_files
from worldmodel.runtime import files
from worldmodel.sharing import onnx_checks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),  # of torch's exporter
]
SAMPLES, BATCH = 1_000_000, 100_000
TEMPERATURES = (0.5, 1.0, 1.5)
SPACE = spaces.Dict({"a": spaces.Box(-np.inf, np.inf, (3,), np.float32), "b": spaces.Discrete(3), "c": spaces.MultiBinary(1)})
KINDS = (("continuous", 2), ("mostly_unchanged", 1), ("choice", 3), ("bits", 1))
SCRIPT = """
import { readFileSync, writeFileSync } from "node:fs";
import * as ort from "./web/vendor/onnxruntime-web/ort.wasm.min.mjs";
import { Dream } from "./web/dream.js";
import { band, sampleMany } from "./web/mixture.js";
import { World, typed } from "./web/world.js";
ort.env.wasm.numThreads = 1;
const [folder, given] = [process.argv[2], JSON.parse(process.argv[3])];
const page = JSON.parse(readFileSync(`${folder}/page.json`));
const world = await World.open(ort, page, async (file) => new Uint8Array(readFileSync(`${folder}/${file}`)));
const state = { seed: 11, t: 0, z: Float32Array.from(given.z), h: Float32Array.from(given.h), c: Float32Array.from(given.c) };
const action = { action: typed("int64", [given.action]) };
for (const temperature of given.temperatures) {
  const parts = [];
  for (let first = 0; first * given.batch < given.samples; first++) {
    const { next_z } = await sampleMany(world, state, action, temperature, given.batch, first);
    parts.push(Buffer.from(next_z.buffer, next_z.byteOffset, next_z.byteLength));
  }
  writeFileSync(`z-${temperature}`, Buffer.concat(parts));
}
const cold = await sampleMany(world, state, action, 0, 50, 0);

const dream = new Dream(world, { withBand: true });
await dream.start(3);
for (let t = 0; t < 25; t++) await dream.step(action);
const [at, later] = [dream.states[15], dream.states.slice(16)];
dream.back(10);
const same = dream.state === at;
dream.temperature = 1.5;
await dream.step(action);
const hotter = Array.from(dream.state.z);
dream.temperature = 1;
dream.back(1);
for (const _ of later) await dream.step(action);
const again = dream.states.slice(16);
const bytes = (one) => ["z", "h", "c"].map((name) => Buffer.from(one[name].buffer).toString("hex")).join();
const exact = later.every((one, i) => bytes(one) === bytes(again[i]));
console.log(JSON.stringify({
  cold: Array.from(cold.next_z), same, exact, ended: dream.states.some((one) => one.ended),
  hotter: hotter.some((value, i) => value !== later[0].z[i]), bands: later[0].band,
  quantiles: band(Float32Array.from({ length: 202 }, (_, i) => i % 2 ? 5 : i / 2), 101),
}));
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """World, what M predicts, what node printed, samples by temperature, and the page that was exported."""
    path = tmp_path_factory.mktemp("samples")
    world = mixed_world(spaces.Discrete(3), SPACE, KINDS, hidden_size=3, num_components=2)
    world.mdnrnn.latent_low.fill_(-20.0)  # dreams of a random model would diverge
    world.mdnrnn.latent_high.fill_(20.0)
    world.mdnrnn.termination_head.weight.data.zero_()
    world.mdnrnn.termination_head.bias.data.fill_(-12.0)  # so that a dream goes on
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_checks, "DRIFT_STEPS", (1,))  # the long dreams have tests of their own
        done = export_page(world, path / "web", title="All Kinds!")
    model, generator = world.mdnrnn, torch.Generator().manual_seed(4)
    z = world.start_mean[:1]
    h, c = (torch.randn(1, 1, model.config.hidden_size, generator=generator) for _ in range(2))
    action = torch.tensor([2])
    given = {
        "z": z.flatten().tolist(), "h": h.flatten().tolist(), "c": c.flatten().tolist(),
        "action": 2,
        "temperatures": TEMPERATURES, "samples": SAMPLES, "batch": BATCH,
    }  # fmt: skip
    printed = run_node(path, SCRIPT, path / "web" / "worlds" / "all-kinds", json.dumps(given))
    with torch.no_grad():
        features = world.action_features.flatten(action).expand(SAMPLES, -1)
        state = State(*(part.expand(1, SAMPLES, -1).contiguous() for part in (h, c)))
        prediction, _ = model.step(z.expand(SAMPLES, -1), features, state)
    found = {tau: np.frombuffer((path / f"z-{tau:g}").read_bytes(), np.float32).reshape(SAMPLES, -1) for tau in TEMPERATURES}
    return world, prediction.latent, printed, found, done


@functools.cache
def latent_samples(latent, tau):
    """A million samples of the same step by torch."""
    generator = torch.Generator().manual_seed(5)
    return latent.sample(tau, generator=generator).numpy()


@pytest.mark.parametrize("tau", TEMPERATURES)
def test_continuous_numbers_have_the_distribution_of_python(made, tau):
    world, latent, _, found, _ = made
    columns = world.layout.columns("continuous", "mostly_unchanged")
    expected = latent_samples(latent, tau)
    for column in columns:
        one, two = found[tau][:, column], expected[:, column]
        assert ks_2samp(one, two).pvalue > 1e-5, column
        shares = [(sample == float(world.start_mean[0, column])).mean() for sample in (one, two)]  # of "no change"
        assert abs(shares[0] - shares[1]) < 4e-3
        assert (shares[0] > 0.05) == (column in world.layout.columns("mostly_unchanged"))


@pytest.mark.parametrize("tau", TEMPERATURES)
def test_choices_and_bits_have_the_frequencies_of_python(made, tau):
    world, latent, _, found, _ = made
    columns = world.layout.columns("choice", "bits")
    expected = latent_samples(latent, tau)
    for column in columns:
        counts = [[(sample[:, column] == value).sum() for value in (0, 1)] for sample in (found[tau], expected)]
        assert np.sum(counts) == 2 * SAMPLES
        assert chi2_contingency(counts).pvalue > 1e-5, column


def test_temperatures_differ_and_temperature_zero_is_the_mode(made):
    world, latent, printed, found, _ = made
    (column, *_) = world.layout.columns("continuous")
    assert ks_2samp(found[0.5][:10_000, column], found[1.5][:10_000, column]).pvalue < 1e-6
    cold = np.reshape(printed["cold"], (50, -1))
    np.testing.assert_allclose(cold, latent.sample(0.0)[:50].numpy(), rtol=1e-5, atol=1e-5)


def test_going_back_restores_the_exact_state_and_the_same_steps_follow(made):
    _, _, printed, *_ = made
    assert printed["same"]
    assert printed["exact"]
    assert printed["hotter"]
    assert not printed["ended"]


def test_the_band_holds_the_middle_nine_tenths(made):
    _, _, printed, *_ = made
    np.testing.assert_allclose(printed["quantiles"], [[5.0, 95.0], [5.0, 5.0]])
    assert set(printed["bands"]) == {"observation/a", "observation/b", "observation/c"}
    assert all(low <= high for span in printed["bands"].values() for low, high in span)


def test_the_page_is_complete_and_holds_the_one_world(made):
    done = made[-1]
    written = {file.relative_to(done.directory).as_posix() for file in done.directory.rglob("*") if file.is_file()}
    networks = {f"worlds/all-kinds/{name}" for name in ("page.json", "step.onnx", "decoder.onnx", "README.md")}
    assert written == {*site_files(), *networks, "worlds.json", "README.md"}
    assert set(done.errors) == {"step", "decoder"}
    assert max(done.errors.values()) <= 1e-5
    assert done.total == sum((done.directory / name).stat().st_size for name in written)
    found = open_run(str(done.directory))
    assert found.prepare()["title"] == found.title == "All Kinds!"
    assert sorted(path.name for path in done.directory.parent.iterdir() if path.name.startswith(".")) == []
    with pytest.raises(FileExistsError, match="got an earlier output"):
        export_page(made[0], done.directory)
    with files.fresh_directory(
        done.directory, marker="worlds.json", format="worldmodel.pages", overwrite=True, replaces=PAGE_OUTPUTS
    ) as fresh:
        (fresh / "worlds.json").write_text("{}")
    assert [path.name for path in done.directory.iterdir()] == ["worlds.json"]
