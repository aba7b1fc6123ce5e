"""MEMIT: a fact as rank-one changes of the MLPs of several blocks (Meng et al., "Mass-Editing Memory", ICLR 2023).

The shift of the residual stream that makes the model say the target is found at the highest of the blocks, as in
ROME. Then the blocks are changed from the bottom up; each takes an equal share r of what is still missing there,

    D_l = (lambda C_l + k_l^T k_l)^-1 k_l^T r_l,    r_l = missing / (blocks left),              (equations 14 and 20)

with k_l the input of block l's last MLP matrix at the subject's last token, under the changes below it. Edits of a
batch stay apart, each the solution for its own single fact.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from instructedit.deltas.delta import DeltaBatch, LowRank
from instructedit.editors.base import DirectEditor, register
from instructedit.editors.direct import last_mlp_matrix
from instructedit.editors.rome import RomeConfig, Values, regular_moment
from instructedit.errors import EditorError
from instructedit.models.language_model import LanguageModel
from instructedit.models.structure import Matrix
from instructedit.records import EditRequest


class MemitConfig(RomeConfig):
    """ROME's numbers for the shift, and how it is spread.

    The defaults are the best of ten trials on the bundled base model; published for GPT2-XL: blocks 13 to
    17 of 48, weight 20000.
    """

    block: int | None = Field(None, ge=0, description="the highest that is changed; None takes one sixth of the way up")
    steps: int = Field(20, ge=1, description="of Adam, for the shift")
    reach: float = Field(2.0, gt=0, description="of v* from v0, in lengths of v0")

    blocks: int = Field(2, ge=1, description="how many blocks are changed, the highest of them `block`")
    weight: float = Field(10.0, gt=0, description="lambda: how much the text's keys count against the edit's")


@register("memit")
class Memit(DirectEditor):
    """Rank-one changes of several blocks.

    Args:
        config: its numbers.
        matrices: the last MLP matrices of the blocks, bottom up.
        split_layer: block of the lowest.
    """

    Config = MemitConfig

    def __init__(self, config: MemitConfig, matrices: Sequence[Matrix], split_layer: int) -> None:
        super().__init__()
        self.config = config
        self.matrices = tuple(matrices)
        self.split_layer = split_layer

    @classmethod
    def create(cls, config: BaseModel, language_model: LanguageModel) -> Memit:
        """See :meth:`DirectEditor.create`."""
        assert isinstance(config, MemitConfig)
        structure = language_model.structure
        top = max(config.blocks - 1, len(structure.blocks) // 6) if config.block is None else config.block
        if not config.blocks - 1 <= top < len(structure.blocks):
            raise EditorError(
                f"{config.blocks} blocks up to block {top} are asked for, the model has {len(structure.blocks)}"
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
        values = Values(language_model, requests, self.config, self.split_layer)
        top = language_model.structure.blocks[language_model.structure.block_of(self.matrices[-1].name)]
        wanted = values.value(top) + values.shift(self.matrices[-1].name)
        count = len(requests)
        ones = torch.ones(count, dtype=torch.long, device=wanted.device)
        factors: dict[str, LowRank] = {}
        for index, matrix in enumerate(self.matrices):
            changes = DeltaBatch(factors, dict.fromkeys(factors, ones))
            missing = wanted - values.value(top, changes)
            share = missing / (len(self.matrices) - index)
            factors[matrix.name] = self._change(language_model, matrix, values.keys(matrix.name, changes), share)
        return DeltaBatch(factors, dict.fromkeys(factors, ones))

    def _change(self, language_model: LanguageModel, matrix: Matrix, keys: Tensor, share: Tensor) -> LowRank:
        """(lambda C + k^T k)^-1 k^T r by the Sherman-Morrison formula, of every edit."""
        moment = regular_moment(language_model, matrix.name, self.config)
        away = torch.linalg.solve(self.config.weight * moment, keys.T).T
        a = away / (1 + (away * keys).sum(-1, keepdim=True))
        return LowRank(a[:, :, None], share[:, None, :])
