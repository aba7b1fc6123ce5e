"""Fine-tuning on a single edit: all edits of a batch at once, each on its own change of the same matrices."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch

from instructedit.deltas.delta import DeltaBatch
from instructedit.deltas.factors import Factor
from instructedit.editors.base import DirectEditor
from instructedit.editors.direct import AdamConfig, minimise_each_loss, trunk_of_requests
from instructedit.models.language_model import LanguageModel
from instructedit.models.structure import Matrix
from instructedit.records import EditRequest

FineTuningConfigT = TypeVar("FineTuningConfigT", bound=AdamConfig)


class FineTuning(DirectEditor[FineTuningConfigT]):
    """Adam on the change of some matrices.

    Args:
        config: its hyperparameters.
        matrices: the matrices that are changed.
        split_layer: block of the lowest of them.
    """

    def __init__(self, config: FineTuningConfigT, matrices: Sequence[Matrix], split_layer: int) -> None:
        super().__init__()
        self.config = config
        self.matrices = tuple(matrices)
        self.split_layer = split_layer

    @abstractmethod
    def initial_factors(self, edits: int, device: torch.device) -> dict[str, Factor]:
        """Return the change before the first step, zero, by module name; what is learned requires gradients."""

    def project(self, factors: Mapping[str, Factor]) -> None:
        """Project the change onto the allowed set, in place; here every change is allowed."""

    def edit(
        self, language_model: LanguageModel, requests: Sequence[EditRequest], instructions: Sequence[str | None]
    ) -> DeltaBatch:
        """See :meth:`Editor.edit`. Instructions are not read."""
        split, state = trunk_of_requests(language_model, requests, self.split_layer)
        rows = torch.arange(len(requests), device=language_model.device)
        factors = self.initial_factors(len(requests), language_model.device)
        deltas = DeltaBatch(factors)
        minimise_each_loss(
            [tensor for factor in factors.values() for tensor in factor.tensors.values()],
            lambda: deltas.attached(language_model, rows),
            split,
            state,
            self.config,
            lambda: self.project(factors),
        )
        return deltas.detach()
