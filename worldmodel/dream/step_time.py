"""The time of the steps of a batch of dreams, where M sees it."""

from __future__ import annotations

from torch import Tensor

from worldmodel.models import WorldModel, check_elapsed, with_elapsed


class StepTime:
    """Part of `Dreams`: how many seconds the next steps take."""

    world: WorldModel
    batch_size: int
    _elapsed: float | Tensor | None = None

    @property
    def elapsed(self) -> float | Tensor | None:
        """Seconds of a step, a number or one value per dream (B,); a new value takes effect at the next step.

        None, the default, is the usual time of the training data. Others need an M that sees the time (`ExtraInputs`).
        """
        return self._elapsed

    @elapsed.setter
    def elapsed(self, value: float | Tensor | None) -> None:
        self._elapsed = value if value is None else check_elapsed(self.world.mdnrnn, value, self.batch_size)

    def timed(self, action: Tensor) -> Tensor:
        """Append the time of the step to action features (B, A), unless it is the usual one or they have it."""
        return action if self._elapsed is None else with_elapsed(self.world.mdnrnn, action, self._elapsed)
