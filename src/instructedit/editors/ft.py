"""FT: constrained fine-tuning of one matrix on the single edit.

FT+L of Meng et al. (ROME, NeurIPS 2022), after Zhu et al. (2020): Adam on one MLP's last matrix, with a bound on every
entry of the change,

    min over D of -log p(y | x; W + D)   with   |D_ij| <= bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from pydantic import Field

from instructedit.deltas.factors import Dense, Factor
from instructedit.editors.direct import AdamConfig, last_mlp_matrix
from instructedit.editors.fine_tuning import FineTuning
from instructedit.models.language_model import LanguageModel


class FtConfig(AdamConfig):
    """Hyperparameters of FT. The defaults are the best of ten trials on the bundled base model.

    Published: a bound of 5e-4.
    """

    block: int | None = Field(None, ge=0, description="whose MLP's last matrix is changed; None takes the middle one")
    learning_rate: float = Field(3e-2, gt=0, description="of Adam")
    bound: float = Field(0.1, gt=0, description="largest absolute value of an entry of the change")


class ConstrainedFineTuning(FineTuning[FtConfig]):
    """Fine-tunes one MLP matrix on the edit, with an L-infinity bound on the change."""

    name = "ft"
    paper = "Zhu et al. 2020; Meng et al. 2022"
    Config = FtConfig

    @classmethod
    def create(cls, config: FtConfig, language_model: LanguageModel) -> Self:
        """See :meth:`DirectEditor.create`."""
        block = len(language_model.structure.blocks) // 2 if config.block is None else config.block
        return cls(config, [last_mlp_matrix(language_model, block)], block)

    def initial_factors(self, edits: int, device: torch.device) -> dict[str, Factor]:
        """Return a dense change, zero: every entry of the matrix is learned."""
        return {
            m.name: Dense(torch.zeros(edits, m.inputs, m.outputs, device=device, requires_grad=True))
            for m in self.matrices
        }

    def project(self, factors: Mapping[str, Factor]) -> None:
        """Clamp every entry to the bound."""
        for factor in factors.values():
            for tensor in factor.tensors.values():
                tensor.clamp_(-self.config.bound, self.config.bound)
