"""Progress of a training run: what a checkpoint records of it, and what a display is given."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from instructedit.errors import CheckpointError
from instructedit.training.recipe import Optimisation


@dataclass(frozen=True)
class Report:
    """What a progress display is given after a step or a validation.

    Attributes:
        phase: ``encoder``, ``train`` or ``validation``.
        step: Number of steps done.
        steps: Number of steps of the phase.
        values: The log's entry.
    """

    phase: str
    step: int
    steps: int
    values: dict[str, Any]


@dataclass(frozen=True)
class Progress:
    """Number of steps done, and the best validation until then."""

    step: int = 0
    best_loss: float = math.inf
    best_step: int = 0

    def exhausts_patience(self, opt: Optimisation) -> bool:
        """Return whether too many validations have passed without a better loss."""
        return opt.patience is not None and self.step - self.best_step >= opt.patience * opt.validate_every

    def as_dict(self) -> dict[str, Any]:
        """Return the progress for a checkpoint; as JSON has no infinity, no validation yet is None."""
        best_loss = None if math.isinf(self.best_loss) else self.best_loss
        return {"step": self.step, "best_loss": best_loss, "best_step": self.best_step}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], checkpoint: Path) -> Self:
        """Return the progress that a checkpoint holds.

        Raises:
            CheckpointError: It is not what :meth:`as_dict` returns.
        """
        step, loss, best = raw.get("step"), raw.get("best_loss"), raw.get("best_step")
        if (
            raw.keys() != {"step", "best_loss", "best_step"}
            or not (isinstance(step, int) and isinstance(best, int))
            or not (loss is None or isinstance(loss, (int, float)))
        ):
            raise CheckpointError(f"file {checkpoint}: its progress is damaged; give another --out")
        return cls(step, math.inf if loss is None else loss, best)
