"""LoRA: low-rank fine-tuning on the single edit.

Hu et al., "LoRA" (ICLR 2022), on the loss of one edit: D = A B of low rank for the MLPs of several blocks, A random and
B zero at the start, no bound.
"""

from __future__ import annotations

from typing import Self

import torch
from pydantic import Field
from torch import Tensor

from instructedit.deltas.factors import Factor, LowRank
from instructedit.editors.direct import AdamConfig
from instructedit.editors.fine_tuning import FineTuning
from instructedit.models.language_model import LanguageModel
from instructedit.models.structure import Matrix


class LoraConfig(AdamConfig):
    """Hyperparameters of LoRA; the defaults are the best of ten trials on the bundled base model."""

    steps: int = Field(50, ge=1, description="steps of Adam, at most")
    learning_rate: float = Field(3e-3, gt=0, description="of Adam")
    blocks: int = Field(3, ge=1, description="the MLPs of the last blocks are changed")
    rank: int = Field(2, ge=1, description="of the change of every matrix")
    seed: int = Field(0, description="of A's random start")


class Lora(FineTuning[LoraConfig]):
    """Fine-tunes low-rank adapters of the MLPs in the last blocks on the edit."""

    name = "lora"
    paper = "Hu et al. 2022"
    Config = LoraConfig

    @classmethod
    def create(cls, config: LoraConfig, language_model: LanguageModel) -> Self:
        """See :meth:`DirectEditor.create`."""
        structure = language_model.structure
        matrices = structure.last_mlps(config.blocks)
        return cls(config, matrices, min(structure.block_of(matrix.name) for matrix in matrices))

    def initial_factors(self, edits: int, device: torch.device) -> dict[str, Factor]:
        """Return A random, the same for every edit, and B zero."""
        generator = torch.Generator().manual_seed(self.config.seed)

        def random(matrix: Matrix) -> Tensor:
            a: Tensor = torch.randn(matrix.inputs, self.config.rank, generator=generator) / matrix.inputs**0.5
            stacked: Tensor = a.to(device).expand(edits, -1, -1).clone()
            return stacked.requires_grad_()

        return {
            m.name: LowRank(
                random(m), torch.zeros(edits, self.config.rank, m.outputs, device=device, requires_grad=True)
            )
            for m in self.matrices
        }
