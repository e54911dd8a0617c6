"""Seeds of the episodes of a batch of environments: which rows a reset is of, and the random stream of each episode."""

from __future__ import annotations

from gymnasium.vector import AutoresetMode


def autoreset_mode(value: AutoresetMode | str) -> AutoresetMode:
    """Read an autoreset mode: the enum, its value ("NextStep") or its name ("NEXT_STEP").

    Raises:
        ValueError: if there is no such mode; names those that there are.
    """
    for mode in AutoresetMode:
        if value in (mode, mode.value, mode.name):
            return mode
    raise ValueError(f"autoreset_mode: expected one of {[mode.value for mode in AutoresetMode]}, got {value!r}")
