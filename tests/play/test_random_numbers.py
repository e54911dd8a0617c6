"""The random numbers of the page: those of Philox 4x32-10, a pure function of seed, stream and step."""

import numpy as np
import pytest
from browserless import run_node
from scipy import stats

KNOWN = {  # of Random123's file of known answers
    "counter and key 0": ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    "all bits": ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    "digits of pi": (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
}
SCRIPT = """
import { normals, philox, uniforms } from "./web/random.js";
import { writeFileSync } from "node:fs";
const known = JSON.parse(process.argv[2]);
const words = known.map(([counter, key]) => Array.from(philox(counter, key)));
writeFileSync("uniform", uniforms(7, 1, 3, 200001));
writeFileSync("normal", normals(7, 1, 3, 200001));
const parts = [uniforms(7, 1, 3, 10), uniforms(7, 1, 4, 10), uniforms(7, 2, 3, 10), uniforms(7 + 2 ** 40, 1, 3, 10)];
console.log(JSON.stringify({ words, parts: parts.map((part) => Array.from(part)) }));
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    import json

    path = tmp_path_factory.mktemp("node")
    printed = run_node(path, SCRIPT, json.dumps([[counter, key] for counter, key, _ in KNOWN.values()]))
    return printed, *(np.frombuffer((path / name).read_bytes(), np.float32) for name in ("uniform", "normal"))


def test_the_words_are_those_of_philox(made):
    for words, (_, _, expected) in zip(made[0]["words"], KNOWN.values(), strict=True):
        assert " ".join(f"{word:08x}" for word in words) == expected


def test_uniform_and_normal_numbers_have_their_distributions(made):
    _, uniform, normal = made
    assert len(uniform) == len(normal) == 200_001
    assert 0 <= uniform.min() <= uniform.max() < 1
    assert stats.kstest(uniform, "uniform").pvalue > 1e-4
    assert stats.kstest(normal, "norm").pvalue > 1e-4
    assert abs(np.corrcoef(normal[:-1:2], normal[1::2])[0, 1]) < 0.02


def test_every_seed_stream_and_step_has_its_own_numbers(made):
    _, uniform, _ = made
    parts = made[0]["parts"]
    assert parts[0] == uniform[:10].tolist()
    assert len({tuple(part) for part in parts}) == 4
