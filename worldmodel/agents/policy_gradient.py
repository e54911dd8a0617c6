"""Proximal policy optimisation (PPO) of an agent in short dreams that start from states within real episodes.

Evolution (`worldmodel.agents.evolution`) scores an agent by the return of complete dreams, one number for thousands of steps,
so its progress stops early if only rare steps matter. PPO (Schulman et al. 2017) weights each action by its generalised
advantage (Schulman et al. 2016). The critic has the same input as the agent: features divided by their standard deviation over
the starts.

In long dreams rare objects disappear: a Doom agent that dodges well soon sees no fireballs. Short dreams from real states still
contain them. So each dream here is cut off after ``horizon`` steps, bootstrapped with the critic's value, and restarted from a
`StartBank`.

If terminations are sampled (`Dreams` with the rule "sample"), a dream that terminates is restarted, but the target of its last
step uses the probability p: the value of the next state is multiplied by 1 - p, as in Hafner et al. (2020). So every dangerous
step contributes, not only the last of hundreds. The tests, complete dreams, are scored in the same way. This needs a calibrated
termination head: see `worldmodel.training.likelihood`.

The log of a search holds its complete state (agent, critic, moments of Adam, generator, dreams), a few megabytes, so stopping
at any moment and resuming gives the same bits as never stopping.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from worldmodel.agents.population import dreams_recipe
from worldmodel.agents.ppo_learner import Learner, PPOConfig, named
from worldmodel.agents.registry import copy_for_training
from worldmodel.agents.search_log import SearchLog
from worldmodel.dream import Agent, Dreams, StartBank, check_rewards, usual_horizon
from worldmodel.models import FeatureKind
from worldmodel.rng import PPO_TEST_STREAM, derive_seed
from worldmodel.runtime import (
    Progress,
    RunConfig,
    check_integer,
    check_same_run,
    digest_tensors,
    explains_keywords,
    interrupt_between_steps,
    jsonable,
    keeps_threads,
    set_threads,
)
from worldmodel.spaces import FlatSpace

PPO_FORMAT, PPO_VERSION = "worldmodel.ppo", 1
PPO_FILE = "ppo.safetensors"  # usual name of a log


class DifferentiableAgent(Agent, Protocol):
    """Protocol of the agents that `ppo` improves, in addition to nn.Module.

    It acts on features alone, without a state of its own. For a Discrete space with n actions, ``outputs`` has n columns
    (logits), or one if the agent has an attribute ``ordered`` that is True (see `worldmodel.agents.ControllerConfig`). For a
    Box it has one column per number, the mean of a Gaussian before `FlatSpace.squash`. ``act`` must choose the mode of that
    distribution.

    Two methods are optional: ``scale_inputs(factor)`` multiplies the weights of each feature by ``factor`` (F,); without it
    the agent gets features that are not scaled. ``shrink_outputs(divisor)`` divides the outputs by a number; without it an
    agent whose outputs are large explores little.
    """

    features: FeatureKind
    action_features: FlatSpace

    def outputs(self, features: Tensor) -> Tensor:
        """Return the outputs (B, A) for features (B, F), differentiably."""


@explains_keywords
@keeps_threads
def ppo(
    agent: DifferentiableAgent,
    dreams: Dreams,
    starts: StartBank,
    *,
    config: PPOConfig | None = None,
    horizon: int | None = None,
    seed: int = 0,
    log: str | Path | None = None,
    run: RunConfig | None = None,
) -> Any:
    """Improve an agent in short dreams from real states.

    Args:
        agent: a `Controller`, such as the result of `evolve`, or an nn.Module with what `DifferentiableAgent` names. It is not
            modified.
        dreams: world, temperature, termination rule ("sample" is recommended), and number of parallel dreams.
        starts: start states of the short dreams, such as `StartBank.along`.
        config: numbers of the algorithm; the defaults if None.
        horizon: longest dream of the tests, in steps; None: the limit of the world model's data. (That of the short dreams is
            in ``config``.)
        seed: seed of all samples.
        log: a file that is replaced after each iteration, from which an interrupted search resumes to the same bits.
        run: resume or overwrite the search in ``log``, and report progress; the defaults if None. Each iteration is one record
            of stage "ppo", with the metrics ends (expected terminations per 1,000 steps of the short dreams), entropy (mean
            entropy of the actions, nats), explained (share of the returns' variance that the critic explains) and best_test
            (and test after a test), and the best agent so far as result. Iterations that the log holds are not reported again.

    Returns:
        The agent of the best test, which may be the one given, on the device of the world.

    Raises:
        ValueError: if there are no rewards or constant ones, the dreams share random numbers, the agent was not made for this
            world, its action space is neither Discrete with several actions nor a Box, or ``log`` holds another search.
        TypeError: if the agent lacks something; names it.
        FileExistsError: if ``log`` exists and may be neither resumed nor overwritten.
        KeyboardInterrupt: after the iteration in which Ctrl-C was pressed.
    """
    config, run = config or PPOConfig(), run or RunConfig()
    horizon = check_integer(usual_horizon(dreams.world) if horizon is None else horizon, "horizon", least=1)
    check_rewards(dreams.world, dreams.reward)
    if dreams.num_groups != 1:
        raise ValueError(f"num_groups: expected 1 (no common random numbers), got {dreams.num_groups}")
    _check_differentiable(agent)
    kept = SearchLog(None if log is None else Path(log), PPO_FORMAT, PPO_VERSION)
    search = _Search(copy_for_training(agent, dreams.world), dreams, starts, config, horizon=horizon, seed=seed, log=kept)
    search.start(run)
    with interrupt_between_steps() as requested, run.reporter() as report:
        while search.done < config.iterations:
            progress = search.advance()
            report(progress)
            if requested.is_set():
                where = "" if log is None else f"; {log} holds them"
                raise KeyboardInterrupt(f"interrupted after {progress.done} iterations{where}")
    return search.best


def _check_differentiable(agent: Any) -> None:
    """Raise TypeError unless the agent has what `DifferentiableAgent` names."""
    missing = [] if isinstance(agent, nn.Module) else ["torch.nn.Module as base class"]
    missing += [name for name in ("features", "action_features", "outputs") if not hasattr(agent, name)]
    if missing:
        raise TypeError(
            f"agent: expected an nn.Module with features, action_features and outputs(features), got {type(agent).__name__} "
            f"without {', '.join(missing)}; search it with evolve, which needs no gradient"
        )


class _Search:
    """State of a search: iterations ``done``, the learner, and ``best``, the agent of the best test so far."""

    def __init__(
        self, agent: Any, dreams: Dreams, starts: StartBank, config: PPOConfig, *, horizon: int, seed: int, log: SearchLog
    ):
        self._config, self._log, self.done = config, log, 0
        self.best = copy.deepcopy(agent).to(dreams.world.device)
        identity = {
            **config.identity(),
            "test_horizon": horizon,
            "seed": seed,
            **dreams_recipe(dreams),
            "world": dreams.world.fingerprint,
            "device": dreams.world.device.type,
            "start": digest_tensors(agent.state_dict()),
            "starts": digest_tensors({"mean": starts.mean, "log_variance": starts.log_variance, **starts.lstm._asdict()}),
        }
        self._identity: dict[str, Any] = jsonable(identity)
        self._learner = Learner(copy.deepcopy(self.best), dreams, starts, config, seed)
        self._test = _Test(dreams, starts, config, horizon, seed)

    def start(self, run: RunConfig) -> None:
        """Test the agent that was given, or load the log."""
        if not self._log.prepare(run):
            set_threads(None, run.threads, self._log.path or "this search")
            self._best_test = self._test(self.best)
            return
        tensors, content = self._log.read()
        check_same_run(content["search"], self._identity, str(self._log.path))
        set_threads(content["threads"], run.threads, str(self._log.path))
        self.done, self._best_test = content["done"], content["best_test"]
        self.best.load_state_dict(named(tensors, "best"))
        self._learner.load(tensors)

    def advance(self) -> Progress:
        """Do one iteration."""
        config, metrics = self._config, self._learner.iterate()
        self.done += 1
        if self.done % config.test_every == 0 or self.done == config.iterations:
            candidate = self._learner.agent()
            metrics["test"] = self._test(candidate)
            if metrics["test"] > self._best_test:
                self.best, self._best_test = candidate, metrics["test"]
        tensors = {f"best.{name}": tensor for name, tensor in self.best.state_dict().items()} | self._learner.tensors()
        progress = {"done": self.done, "best_test": self._best_test, "threads": torch.get_num_threads()}
        self._log.write(tensors, {"search": self._identity, **progress})
        metrics["best_test"] = self._best_test
        return Progress("ppo", self.done, config.iterations, "iteration", metrics, self.best)


class _Test:
    """The test of an agent: its mean return over complete dreams, always the same ones."""

    def __init__(self, dreams: Dreams, starts: StartBank, config: PPOConfig, horizon: int, seed: int):
        mixed = isinstance(dreams.temperature, Tensor) and dreams.temperature.ndim > 0
        self._dreams = dreams if mixed else dreams.variant(num_dreams=config.test_dreams)
        self._horizon, self._seed = horizon, derive_seed(seed, PPO_TEST_STREAM)
        self._starts = starts if config.test_from == "starts" else None

    def __call__(self, agent: Agent) -> float:
        generator = self._dreams.generator(self._seed)
        start = None if self._starts is None else self._starts.sample(self._dreams.batch_size, generator)
        if self._dreams.termination == "sample" or start is not None:
            return self._dreams.expected_return(agent, self._horizon, generator=generator, start=start).mean().item()
        return self._dreams.score(agent, self._horizon, generator=generator)[0].mean().item()
