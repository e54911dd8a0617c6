"""Check a vector environment against the contracts of Gymnasium.

The checker runs an environment many times with random actions. It compares the returned values with
the spaces, the behaviour at the end of episodes with the autoreset mode, and runs with each other,
bit by bit. Sources of the contracts: the documentation of `gymnasium.vector.VectorEnv` and of the
autoreset modes (https://farama.org/Vector-Autoreset-Mode), and the behaviour of `SyncVectorEnv`
where these are silent.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from gymnasium.vector import AutoresetMode, VectorEnv

from worldmodel.testing import autoreset, contracts
from worldmodel.testing.trial import Check, Trial

CONTRACTS = {
    "spaces": "num_envs is an int >= 1; the batched spaces equal `batch_space` of the single spaces",
    "autoreset_mode": "metadata['autoreset_mode'] is an AutoresetMode; an attribute autoreset_mode equals it",
    "errors": "reset and step do not raise for actions of the action space",
    "shapes": "reset returns 2 values and step 5; observations have the structure of their space, the others (num_envs,)",
    "dtypes": "observations have the dtype of their space, rewards are floating-point, flags are bool",
    "values": "observations lie in their space, rewards are finite",
    "infos": "infos is one dict; each key has a mask '_key' of the sub-environments for which it is valid",
    "ends": "an episode ended within the steps, so that the contract of the mode could be tested",
    "NEXT_STEP": "the step after an end ignores the action, returns reward 0, no flags and the start of the next episode",
    "SAME_STEP": "the last step returns the start of the next episode; final_obs and final_info, with masks, hold the end",
    "DISABLED": "no sub-environment resets without a call of reset",
    "ended rows": "in DISABLED, stepping an ended sub-environment before its reset raises",
    "reset_mask": "in DISABLED, reset affects exactly the masked sub-environments and uses their seeds; a wrong mask raises",
    "modes": "the first episode of each sub-environment is the same in every mode",
    "same seed": "two new environments give the same run from the same seed",
    "reset": "reset with a seed clears all state: a used environment then runs like a new one",
    "different seeds": "if anything is random, different seeds give different runs",
    "seed list": "reset accepts a list of seeds, one per sub-environment; the int s means [s, s + 1, ...]",
    "seed per row": "a seed gives the same run in every sub-environment",
    "independence": "a sub-environment does not depend on the actions or episode ends of the others",
    "copies": "returned values do not change later, and writing into them changes nothing",
    "actions": "step does not write into the caller's actions and does not read them after it returns",
    "close": "close can be called twice",
}

_CHECKS: list[tuple[str, Check, set[str]]] = [  # contract of an error in the check, check, findings that end the trial
    ("autoreset_mode", contracts.check_make, {"autoreset_mode"}),
    ("autoreset_mode", contracts.check_mode, set()),
    ("autoreset_mode", contracts.check_mode_is_known, {"autoreset_mode"}),
    ("spaces", contracts.check_spaces, {"spaces"}),
    ("errors", contracts.check_first_run, {"errors", "shapes"}),
    ("ends", contracts.check_ends, set()),
    ("same seed", contracts.check_same_seed, {"same seed"}),
    ("reset", contracts.check_reset, set()),
    ("different seeds", contracts.check_different_seeds, set()),
    ("seed list", contracts.check_seed_list, set()),
    ("independence", contracts.check_independence, set()),
    ("NEXT_STEP", autoreset.check_next_step, set()),
    ("SAME_STEP", autoreset.check_same_step, set()),
    ("DISABLED", autoreset.check_disabled, set()),
    ("ended rows", autoreset.check_ended_rows, set()),
    ("reset_mask", autoreset.check_reset_mask, set()),
    ("reset_mask", autoreset.check_reset_mask_with_seeds, set()),
    ("reset_mask", autoreset.check_wrong_masks, set()),
    ("copies", contracts.check_copies, set()),
    ("actions", contracts.check_actions, set()),
    ("close", contracts.check_close, set()),
]


@dataclass(frozen=True)
class Violation:
    """A broken contract.

    Args:
        contract: a key of `CONTRACTS`.
        mode: the autoreset mode; None if modes were compared or the mode of the environment is
            unknown.
        message: place, expected and actual values, and a fix if one is known.
    """

    contract: str
    mode: AutoresetMode | None
    message: str

    def __str__(self) -> str:
        where = f" in {self.mode.name}" if self.mode and self.mode.name != self.contract else ""
        return f"{self.contract}{where}: {self.message}"


class VectorEnvError(AssertionError):
    """Raised if a vector environment breaks contracts; ``violations`` lists them."""

    def __init__(self, violations: Sequence[Violation]):
        self.violations = list(violations)
        lines = "".join(f"\n  {number}. {violation}" for number, violation in enumerate(violations, start=1))
        super().__init__(
            f"expected a vector environment that keeps Gymnasium's contracts, found {len(violations)} violation(s):{lines}"
        )


def check_vector_env(
    make: Callable[..., VectorEnv],
    *,
    modes: Collection[AutoresetMode] | None = tuple(AutoresetMode),
    num_steps: int = 250,
    seed: int = 0,
    tolerance: float = 0.0,
    require_ends: bool = True,
    ignore: Collection[str] = (),
) -> None:
    """Check a vector environment and raise one error that lists all violations.

    Each mode takes about twelve runs of ``num_steps`` steps. Three or four sub-environments are
    enough. A single one is a violation, because independence cannot be tested. Actions depend on
    ``seed`` only; no global random state is read or changed.

    Args:
        make: builds a new, identical environment; called with an `AutoresetMode`, or without
            arguments if ``modes`` is None.
        modes: the modes to check; None checks only the mode in the environment's metadata.
        num_steps: steps per run, >= 2; enough for random actions to end an episode.
        seed: seed of the actions; sub-environment i is seeded with ``seed + i``.
        tolerance: absolute difference between two runs that counts as equal. Use 0 (bit for bit)
            unless rows are computed together, as in a matrix product, where rounding may depend on
            the row.
        require_ends: report a violation if no episode ended, so that the contract of the mode was
            not tested. Pass False for environments whose episodes never end.
        ignore: keys of `CONTRACTS` whose violations are not reported, except those that end the
            check.

    Raises:
        VectorEnvError: if a contract is broken. The message names contract, mode, sub-environment,
            expected and actual values.
        ValueError: if an argument is out of range.
        TypeError: if ``make`` does not return a `gymnasium.vector.VectorEnv`.
    """
    if num_steps < 2 or not tolerance >= 0:
        raise ValueError(f"num_steps, tolerance: expected >= 2 and >= 0, got {num_steps} and {tolerance}")
    if unknown := set(ignore) - set(CONTRACTS):
        raise ValueError(f"ignore: expected some of {list(CONTRACTS)}, got {sorted(unknown)}")
    if modes is not None and (not modes or not all(isinstance(mode, AutoresetMode) for mode in modes)):
        raise ValueError(f"modes: expected members of AutoresetMode, or None for the environment's mode, got {modes!r}")
    trials = [Trial(make, mode, num_steps, seed, tolerance, require_ends) for mode in ([None] if modes is None else modes)]
    found = [violation for trial in trials for violation in _run(trial, set(ignore))]
    found += [Violation("modes", None, message) for message in autoreset.compare_modes(trials) if "modes" not in ignore]
    if found:
        raise VectorEnvError(found)


def _run(trial: Trial, ignore: set[str]) -> Iterator[Violation]:
    """Run all checks in order; stop at a violation that makes the later checks meaningless."""
    try:
        for contract, check, fatal in _CHECKS:
            for name, message in trial.findings(contract, check):
                if name in fatal:
                    yield Violation(name, trial.mode, f"{message}; the contracts after this one were not tested in this mode")
                    return
                if name not in ignore:
                    yield Violation(name, trial.mode, message)
    finally:
        trial.renew()
