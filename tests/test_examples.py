"""Reduced runs of the examples that train, with checks of what they learn."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.slow
def test_an_actor_trained_by_gradients_through_dreams_swings_the_real_pendulum(tmp_path):
    """Without the critic's values beyond the horizon, or with a wrong gradient, the actor stays near random play."""
    options = "--rounds 2 --updates 200 --world-updates 400 --test-episodes 30 --seed 7 --out runs"
    command = [sys.executable, "-W", "error", str(EXAMPLES / "pendulum_actor_critic.py"), *shlex.split(options)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stdout + result.stderr
    scores = json.loads(result.stdout.splitlines()[-1])
    (real, error), (random, random_error) = scores["real"], scores["random"]
    assert real > random + 5 * (error**2 + random_error**2) ** 0.5, scores
