"""Parse autoreset modes."""

from __future__ import annotations

from gymnasium.vector import AutoresetMode


def autoreset_mode(value: AutoresetMode | str) -> AutoresetMode:
    """Parse an autoreset mode: a member, its value ("NextStep") or its name ("NEXT_STEP").

    Raises:
        ValueError: if the mode is unknown. The message lists the modes.
    """
    for mode in AutoresetMode:
        if value in (mode, mode.value, mode.name):
            return mode
    raise ValueError(f"autoreset_mode: expected one of {[mode.value for mode in AutoresetMode]}, got {value!r}")
