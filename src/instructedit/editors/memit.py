"""MEMIT: a fact as rank-one changes of the MLPs of several blocks (Meng et al., "Mass-Editing Memory", ICLR 2023).

The shift of the residual stream with which the model answers with the target is optimised at the highest of the blocks,
as in ROME. Then the blocks are changed from the bottom up; each takes an equal share r of what is still missing there,

    D_l = (lambda C_l + k_l^T k_l)^-1 k_l^T r_l,    r_l = missing / (blocks left),              (equations 14 and 20)

with k_l the input of block l's last MLP matrix at the subject's last token, under the changes below it, and lambda the
``mom2_update_weight``. Each edit of a batch gets the solution for its own single fact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from pydantic import Field
from torch import Tensor

from instructedit.deltas.delta import DeltaBatch
from instructedit.deltas.factors import Factor, LowRank
from instructedit.editors.base import DirectEditor
from instructedit.editors.direct import last_mlp_matrix
from instructedit.editors.key_statistics import regularised_covariance
from instructedit.editors.subject_activations import SubjectActivations, SubjectValueConfig
from instructedit.errors import EditorError
from instructedit.models.language_model import LanguageModel
from instructedit.models.structure import Matrix
from instructedit.records import EditRequest


class MemitConfig(SubjectValueConfig):
    """Hyperparameters of MEMIT; the defaults are the best of ten trials on the bundled base model.

    Published for GPT2-XL: blocks 13 to 17 of 48, mom2_update_weight 20000.
    """

    block: int | None = Field(None, ge=0, description="the highest that is changed; None takes one sixth of the way up")
    clamp_norm_factor: float = Field(2.0, gt=0, description="largest |v* - v0|, in units of |v0|")
    blocks: int = Field(2, ge=1, description="how many blocks are changed, the highest of them `block`")
    mom2_update_weight: float = Field(
        10.0, gt=0, description="lambda: weight of the keys of ordinary text against the edit's own key"
    )


class Memit(DirectEditor[MemitConfig]):
    """Maps the subject's key to a new value by rank-one changes of the MLPs of several blocks.

    Args:
        config: its hyperparameters.
        matrices: the last MLP matrices of the blocks, bottom up.
        split_layer: block of the lowest.
    """

    name = "memit"
    paper = "Meng et al. 2023"
    Config = MemitConfig

    def __init__(self, config: MemitConfig, matrices: Sequence[Matrix], split_layer: int) -> None:
        super().__init__()
        self.config = config
        self.matrices = tuple(matrices)
        self.split_layer = split_layer

    @classmethod
    def create(cls, config: MemitConfig, language_model: LanguageModel) -> Self:
        """See :meth:`DirectEditor.create`."""
        structure = language_model.structure
        top = max(config.blocks - 1, len(structure.blocks) // 6) if config.block is None else config.block
        if not config.blocks - 1 <= top < len(structure.blocks):
            raise EditorError(
                f"memit's config sets {config.blocks} blocks up to block {top}, but the model has the blocks 0 to "
                f"{len(structure.blocks) - 1}"
            )
        chosen = range(top - config.blocks + 1, top + 1)
        return cls(config, [last_mlp_matrix(language_model, block) for block in chosen], chosen[0])

    def edit(
        self, language_model: LanguageModel, requests: Sequence[EditRequest], instructions: Sequence[str | None]
    ) -> DeltaBatch:
        """See :meth:`Editor.edit`. Instructions are not read.

        Raises:
            EditorError: a request does not name its subject in its prompt.
        """
        activations = SubjectActivations(language_model, requests, self.config, self.split_layer)
        top = language_model.structure.blocks[language_model.structure.block_of(self.matrices[-1].name)]
        target = activations.outputs(top) + activations.optimal_shift(self.matrices[-1].name)
        factors: dict[str, Factor] = {}
        for index, matrix in enumerate(self.matrices):
            below = DeltaBatch(factors)
            missing = target - activations.outputs(top, below)
            share = missing / (len(self.matrices) - index)
            factors[matrix.name] = self._change(language_model, matrix, activations.keys(matrix.name, below), share)
        return DeltaBatch(factors)

    def _change(self, language_model: LanguageModel, matrix: Matrix, keys: Tensor, share: Tensor) -> LowRank:
        """Return (lambda C + k^T k)^-1 k^T r of every edit, by the Sherman-Morrison formula."""
        covariance = regularised_covariance(language_model, matrix.name, self.config.sentences, self.config.ridge)
        direction = torch.linalg.solve(self.config.mom2_update_weight * covariance, keys.T).T
        a = direction / (1 + (direction * keys).sum(-1, keepdim=True))
        return LowRank(a[:, :, None], share[:, None, :])
