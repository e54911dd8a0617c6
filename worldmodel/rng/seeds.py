"""Seeds of episodes and of named random streams."""

from __future__ import annotations

import numpy as np

# Streams of a user's seed (`derive_seed`), one for each use, so that no two see the same luck.
EVALUATION_STREAM = 1  # real episodes that controllers are scored on
COLLECT_STREAM, VALIDATE_STREAM, AGENT_STREAM = 2, 3, 4  # of the paper's loop
DREAM_TEST_STREAM, VIDEO_STREAM = 5, 6  # of an experiment
SEARCH_STREAM = 7  # the generations of a search
PPO_TEST_STREAM, PPO_LEARN_STREAM = 8, 9
PROBE_STREAM = 10  # random actions in a probe's dreams

POLICY_STREAM = 1  # third number of an episode's (seed, k, stream): the random numbers of its policy


def episode_seed(seed: int, episode_id: int) -> int:
    """Return what episode ``episode_id`` of a run with base seed ``seed`` resets its environment with.

    Within a run all are different; they lie in [0, 2^31), which also environments with an old random generator accept.
    """
    if seed < 0 or episode_id < 0:
        raise ValueError(f"seed, episode_id: expected numbers >= 0, got {seed}, {episode_id}")
    return int((int(np.random.SeedSequence(seed).generate_state(1)[0]) + episode_id) % 2**31)


def derive_seed(seed: int, *stream: int) -> int:
    """Return the seed of a stream of its own: a hash of ``seed`` and the numbers that name the stream, in [0, 2^63).

    Of a seed that users give, the first number is one of those above; a 0 at the end counts for nothing.
    """
    if seed < 0:
        raise ValueError(f"seed: expected a number >= 0, got {seed}")
    return int(np.random.SeedSequence([seed, *stream]).generate_state(1, np.uint64)[0] >> np.uint64(1))
