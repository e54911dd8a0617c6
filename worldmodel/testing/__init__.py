"""A conformance checker for Gymnasium vector environments; Gymnasium has one for single environments only.

`check_vector_env` steps an environment in each autoreset mode and compares what it does with written contracts. It needs
nothing of this library but nested values, so it checks any vector environment. The tests of the library run it on all of
theirs.

Example:
    >>> import gymnasium as gym
    >>> from worldmodel.testing import check_vector_env
    >>> def make(mode):
    ...     return gym.make_vec("CartPole-v1", num_envs=3, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode})
    >>> check_vector_env(make, modes=[gym.vector.AutoresetMode.NEXT_STEP], num_steps=20, require_ends=False)
"""

from typing import TYPE_CHECKING

from worldmodel.lazy import attach

if TYPE_CHECKING:
    from worldmodel.testing.checker import CONTRACTS as CONTRACTS
    from worldmodel.testing.checker import VectorEnvError as VectorEnvError
    from worldmodel.testing.checker import Violation as Violation
    from worldmodel.testing.checker import check_vector_env as check_vector_env
else:
    __getattr__, __dir__, __all__ = attach(__name__, {"checker": "CONTRACTS VectorEnvError Violation check_vector_env"})
