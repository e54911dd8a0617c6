"""Random numbers: streams that keep the rows of a batch independent, and seeds derived from one seed.

A `torch.Generator` serves a whole batch, so the numbers of one row depend on the other rows. `Streams` gives each row its
own sequence. All stream numbers are listed in ``seeds.py``, so that no two uses share random numbers by accident. Nothing
here reads the global random state.

Example:
    >>> import torch
    >>> from worldmodel.rng import Streams, derive_seed
    >>> alone, batch = Streams(torch.tensor([7])), Streams(torch.tensor([5, 7]))
    >>> bool(alone.normal_(torch.empty(1, 3))[0].equal(batch.normal_(torch.empty(2, 3))[1]))
    True
    >>> derive_seed(0, 1) == derive_seed(0, 2)
    False
"""

from typing import TYPE_CHECKING

from worldmodel.lazy import attach

if TYPE_CHECKING:
    from worldmodel.rng.seeds import AGENT_STREAM as AGENT_STREAM
    from worldmodel.rng.seeds import COLLECT_STREAM as COLLECT_STREAM
    from worldmodel.rng.seeds import DREAM_TEST_STREAM as DREAM_TEST_STREAM
    from worldmodel.rng.seeds import EVALUATION_STREAM as EVALUATION_STREAM
    from worldmodel.rng.seeds import MEMBER_STREAM as MEMBER_STREAM
    from worldmodel.rng.seeds import POLICY_STREAM as POLICY_STREAM
    from worldmodel.rng.seeds import PPO_LEARN_STREAM as PPO_LEARN_STREAM
    from worldmodel.rng.seeds import PPO_TEST_STREAM as PPO_TEST_STREAM
    from worldmodel.rng.seeds import PROBE_STREAM as PROBE_STREAM
    from worldmodel.rng.seeds import SEARCH_STREAM as SEARCH_STREAM
    from worldmodel.rng.seeds import VALIDATE_STREAM as VALIDATE_STREAM
    from worldmodel.rng.seeds import VALUE_STREAM as VALUE_STREAM
    from worldmodel.rng.seeds import VIDEO_STREAM as VIDEO_STREAM
    from worldmodel.rng.seeds import derive_seed as derive_seed
    from worldmodel.rng.seeds import episode_seed as episode_seed
    from worldmodel.rng.streams import BatchRows as BatchRows
    from worldmodel.rng.streams import Source as Source
    from worldmodel.rng.streams import Streams as Streams
    from worldmodel.rng.streams import box_muller as box_muller
    from worldmodel.rng.streams import fill_bernoulli as fill_bernoulli
    from worldmodel.rng.streams import fill_exponential as fill_exponential
    from worldmodel.rng.streams import fill_normal as fill_normal
    from worldmodel.rng.streams import fill_uniform as fill_uniform
else:
    __getattr__, __dir__, __all__ = attach(
        __name__,
        {
            "seeds": (
                "AGENT_STREAM COLLECT_STREAM DREAM_TEST_STREAM EVALUATION_STREAM MEMBER_STREAM POLICY_STREAM "
                "PPO_LEARN_STREAM PPO_TEST_STREAM PROBE_STREAM SEARCH_STREAM VALIDATE_STREAM VALUE_STREAM VIDEO_STREAM "
                "derive_seed episode_seed"
            ),
            "streams": "BatchRows Source Streams box_muller fill_bernoulli fill_exponential fill_normal fill_uniform",
        },
    )
