"""Conformance checker for Gymnasium vector environments; see `check_vector_env`."""

from worldmodel.testing.checker import CONTRACTS, VectorEnvError, Violation, check_vector_env

__all__ = ["CONTRACTS", "VectorEnvError", "Violation", "check_vector_env"]
