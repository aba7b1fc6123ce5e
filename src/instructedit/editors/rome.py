"""ROME: one fact as a rank-one change of one MLP.

Meng et al., "Locating and Editing Factual Associations in GPT" (NeurIPS 2022). The MLP's last matrix W is read as a
memory of keys and values, v = k W. For a subject's key k* and the value v* with which the model answers with the
target, the change that keeps all other keys' values as well as it can is (their equation 2)

    D = (C^-1 k*)^T (v* - k* W) / (k* C^-1 k*),        C = E[k^T k] over ordinary text.

k* is the mean input of W at the subject's last token behind several prefixes; v* is their equation 4, see
:mod:`instructedit.editors.subject_activations`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from pydantic import Field
from torch import Tensor, nn

from instructedit.deltas.delta import DeltaBatch
from instructedit.deltas.factors import LowRank
from instructedit.editors.base import DirectEditor
from instructedit.editors.direct import last_mlp_matrix
from instructedit.editors.key_statistics import regularised_covariance
from instructedit.editors.subject_activations import SubjectActivations, SubjectValueConfig
from instructedit.models.language_model import LanguageModel
from instructedit.models.structure import Matrix
from instructedit.records import EditRequest


class RomeConfig(SubjectValueConfig):
    """Hyperparameters of ROME; the defaults are the best of ten trials on the bundled base model.

    Published for GPT2-XL: 20 steps, decay 0.5, clamp_norm_factor 4, block 17 of 48.
    """

    block: int | None = Field(None, ge=0, description="whose MLP is changed; None takes the middle one")
    steps: int = Field(40, ge=1, description="steps of Adam for v*")
    clamp_norm_factor: float = Field(8.0, gt=0, description="largest |v* - v0|, in units of |v0|")


class Rome(DirectEditor[RomeConfig]):
    """Maps the subject's key to a new value by a rank-one change of one MLP matrix.

    Args:
        config: its hyperparameters.
        matrix: the MLP's last one.
        split_layer: its block.
    """

    name = "rome"
    paper = "Meng et al. 2022"
    Config = RomeConfig

    def __init__(self, config: RomeConfig, matrix: Matrix, split_layer: int) -> None:
        super().__init__()
        self.config = config
        self.matrix = matrix
        self.split_layer = split_layer

    @classmethod
    def create(cls, config: RomeConfig, language_model: LanguageModel) -> Self:
        """See :meth:`DirectEditor.create`."""
        block = len(language_model.structure.blocks) // 2 if config.block is None else config.block
        return cls(config, last_mlp_matrix(language_model, block), block)

    def edit(
        self, language_model: LanguageModel, requests: Sequence[EditRequest], instructions: Sequence[str | None]
    ) -> DeltaBatch:
        """See :meth:`Editor.edit`. Instructions are not read.

        Raises:
            EditorError: a request does not name its subject in its prompt.
        """
        name = self.matrix.name
        activations = SubjectActivations(language_model, requests, self.config, self.split_layer)
        keys = activations.keys(name)
        new_values = activations.outputs(name) + activations.optimal_shift(name)
        old_values = times_weight(language_model.model.get_submodule(name), keys)
        covariance = regularised_covariance(language_model, name, self.config.sentences, self.config.ridge)
        direction = torch.linalg.solve(covariance, keys.T).T  # C^-1 k*, (edits, inputs)
        a = direction / (direction * keys).sum(-1, keepdim=True)
        return DeltaBatch({name: LowRank(a[:, :, None], (new_values - old_values)[:, None, :])})


def times_weight(module: nn.Module, keys: Tensor) -> Tensor:
    """Return k W plus the bias, (edits, outputs)."""
    assert isinstance(module.weight, Tensor)
    values = keys @ (module.weight.T if isinstance(module, nn.Linear) else module.weight).float()
    return values + module.bias.float() if isinstance(module.bias, Tensor) else values
