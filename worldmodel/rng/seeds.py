"""Seeds of episodes and of named random streams."""

from __future__ import annotations

import numpy as np

# Stream numbers for `derive_seed`: one for each use of a user's seed, so that uses are independent.
EVALUATION_STREAM = 1  # real episodes on which controllers are scored
COLLECT_STREAM, VALIDATE_STREAM, AGENT_STREAM = 2, 3, 4  # stages of the iterative procedure
DREAM_TEST_STREAM, VIDEO_STREAM = 5, 6  # an experiment's test dreams and videos
SEARCH_STREAM = 7  # generations of a search
PPO_TEST_STREAM, PPO_LEARN_STREAM = 8, 9  # test dreams and training dreams of PPO
PROBE_STREAM = 10  # random actions in the dreams of a probe
MEMBER_STREAM = 11  # initial weights, batches and samples of a member of an ensemble
VALUE_STREAM = 12  # dreams from which the value of an agent is learnt

POLICY_STREAM = 1  # third number of an episode's (seed, k, stream): separates a policy's random numbers from other uses


def episode_seed(seed: int, episode_id: int) -> int:
    """Return the seed with which episode ``episode_id`` resets its environment.

    Args:
        seed: base seed of the run, >= 0.
        episode_id: number of the episode in the run, >= 0.

    Returns:
        A seed in [0, 2^31), which environments with legacy random generators also accept. The seeds
        of a run are all different.

    Raises:
        ValueError: if an argument is negative.
    """
    if seed < 0 or episode_id < 0:
        raise ValueError(f"seed, episode_id: expected integers >= 0, got {seed} and {episode_id}")
    return int((int(np.random.SeedSequence(seed).generate_state(1)[0]) + episode_id) % 2**31)


def derive_seed(seed: int, *stream: int) -> int:
    """Return the seed of an independent random stream: a hash of ``seed`` and the stream's numbers.

    Args:
        seed: base seed, >= 0.
        *stream: numbers that identify the stream. If ``seed`` is a user's seed, the first is a
            constant of this module. Trailing zeros do not change the result.

    Returns:
        A seed in [0, 2^63).

    Raises:
        ValueError: if ``seed`` is negative.
    """
    if seed < 0:
        raise ValueError(f"seed: expected an integer >= 0, got {seed}")
    return int(np.random.SeedSequence([seed, *stream]).generate_state(1, np.uint64)[0] >> np.uint64(1))
