"""The front of the checker: its arguments, its list of contracts, its verdict.

An environment is played many times with drawn actions, and compared: what each call returns with the spaces, what happens at an
episode's end with the autoreset mode, and whole runs with one another, bit by bit. Sources of the contracts: the documentation
of `gymnasium.vector.VectorEnv` and of the autoreset modes (https://farama.org/Vector-Autoreset-Mode); where these are silent,
what `SyncVectorEnv` does.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from gymnasium.vector import AutoresetMode, VectorEnv

from worldmodel.testing import autoreset, contracts
from worldmodel.testing.trial import Check, Trial

CONTRACTS = {
    "spaces": "num_envs counts the sub-environments; the batched spaces are `batch_space` of the single ones",
    "autoreset_mode": "metadata['autoreset_mode'] is the enum, and the attribute autoreset_mode, where there is one, equals it",
    "errors": "reset and step with actions of the action space raise nothing",
    "shapes": "reset returns 2 values and step 5; observations are nested and shaped as their space, the others (num_envs,)",
    "dtypes": "observations have their space's dtype, rewards are floating-point, flags are bool",
    "values": "observations lie in their space, rewards are finite",
    "infos": "one dict; each key has a mask '_key' that says which sub-environments it holds for",
    "ends": "an episode ended within the steps, so that the contract of the mode could be tested",
    "NEXT_STEP": "the step after an end ignores the row's action, earns 0, raises no flag and shows the next episode's start",
    "SAME_STEP": "the ending step shows the next episode's start; final_obs and final_info, with masks, hold the end",
    "DISABLED": "nothing resets by itself",
    "ended rows": "in DISABLED, stepping an ended sub-environment before its reset raises",
    "reset_mask": "in DISABLED, resets the masked sub-environments, by their seeds, and no other; a wrong mask raises",
    "modes": "the first episode of each sub-environment is the same in every mode",
    "same seed": "two new environments give the same run from the same seed",
    "reset": "reset with a seed leaves nothing of what was before: a used environment then runs as a new one",
    "different seeds": "if anything is random, different seeds give different runs",
    "seed list": "reset takes a list of seeds, one per sub-environment; the int s means [s, s + 1, ...]",
    "seed per row": "a seed gives the same run in every sub-environment",
    "independence": "what a sub-environment does depends on no other's actions or ends",
    "copies": "what was returned does not change later, and writing into it changes nothing",
    "actions": "step does not write into the caller's actions, and does not need them afterwards",
    "close": "close can be called twice",
}

_CHECKS: list[tuple[str, Check, set[str]]] = [  # what an error counts for, the check, findings that end the trial
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
        mode: in which mode; None where modes were compared or the environment's own is unknown.
        message: what is broken, where, expected and actual, and the remedy where one is known.
    """

    contract: str
    mode: AutoresetMode | None
    message: str

    def __str__(self) -> str:
        where = f" in {self.mode.name}" if self.mode and self.mode.name != self.contract else ""
        return f"{self.contract}{where}: {self.message}"


class VectorEnvError(AssertionError):
    """All that a vector environment was found to break, in ``violations``."""

    def __init__(self, violations: Sequence[Violation]):
        self.violations = list(violations)
        lines = "".join(f"\n  {number}. {violation}" for number, violation in enumerate(violations, start=1))
        super().__init__(
            f"expected a vector environment as Gymnasium describes it, found {len(violations)} violation(s):{lines}"
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
    """Raise a `VectorEnvError` that lists every violation found, or return.

    A mode takes about twelve runs of ``num_steps`` steps. Three or four sub-environments are enough; with one, independence
    cannot be tested, which is a violation. Actions are drawn from the seed alone; no global random state is read or changed.

    Args:
        make: builds a new environment, always of the same kind: called with one `AutoresetMode`, or without arguments if
            ``modes`` is None.
        modes: the modes to check; None for an environment that has but one, which its metadata names.
        num_steps: steps of a run, >= 2; enough for random actions to end an episode.
        seed: of the actions and, with the numbers that follow it, of the sub-environments.
        tolerance: absolute difference between two runs that does not count. 0 means bit for bit, and is right unless rows are
            computed together, as in a matrix product, where rounding may depend on a row's place.
        require_ends: whether it is a violation that no episode ended, so that the contract of the mode was not tested. False
            is for environments that never end.
        ignore: keys of `CONTRACTS` to leave out of the verdict; what makes it impossible to go on is reported all the same.

    Raises:
        VectorEnvError: if a contract is broken; it names contract, mode, sub-environment, expected and actual.
        ValueError: if an argument is out of range.
        TypeError: if ``make`` does not return a `gymnasium.vector.VectorEnv`.
    """
    if num_steps < 2 or not tolerance >= 0:
        raise ValueError(f"num_steps, tolerance: expected >= 2 and >= 0, got {num_steps} and {tolerance}")
    if unknown := set(ignore) - set(CONTRACTS):
        raise ValueError(f"ignore: expected some of {list(CONTRACTS)}, got {sorted(unknown)}")
    if modes is not None and (not modes or not all(isinstance(mode, AutoresetMode) for mode in modes)):
        raise ValueError(f"modes: expected members of AutoresetMode, or None for the environment's own, got {modes!r}")
    trials = [Trial(make, mode, num_steps, seed, tolerance, require_ends) for mode in ([None] if modes is None else modes)]
    found = [violation for trial in trials for violation in _run(trial, set(ignore))]
    found += [Violation("modes", None, message) for message in autoreset.compare_modes(trials) if "modes" not in ignore]
    if found:
        raise VectorEnvError(found)


def _run(trial: Trial, ignore: set[str]) -> Iterator[Violation]:
    """Check contract after contract; some end the trial where they are broken, as the later ones would mean nothing."""
    try:
        for contract, check, vital in _CHECKS:
            for name, message in trial.findings(contract, check):
                if name in vital:
                    yield Violation(name, trial.mode, f"{message}; what comes after this contract was not tested in this mode")
                    return
                if name not in ignore:
                    yield Violation(name, trial.mode, message)
    finally:
        trial.renew()
