"""KnowledgeEditor: an embedding of the edit's own words gates its gradient.

De Cao, Aziz and Titov, "Editing Factual Knowledge in Language Models" (EMNLP 2021). An encoder reads the edit itself
(prompt and target), and from its embedding h come, for every edited matrix W (inputs, outputs), a gate and an offset,

    Delta W = - e^log_lr * sigmoid(eta) * (gate * G + offset),
    gate   = gamma softmax(alpha)^T * outputs,    offset = zeta softmax(beta)^T,

with G the gradient, alpha and beta (outputs,), gamma and zeta (inputs,) and eta linear in h. G is a sum of outer
products over tokens, so gate * G is one, too: every token's factors are scaled, and the offset is one more rank. At
the start gate is 1 and offset 0: a plain gradient step. Different from the paper: the encoder is a small Transformer
where theirs is a BiLSTM, the factor ``outputs`` makes the gate independent of the width, and the objective is the
recipe's, as for every trained editor here, where theirs bounds a divergence by a Lagrange multiplier.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from instructedit.deltas.delta import DeltaBatch
from instructedit.deltas.factors import Factor, LowRank
from instructedit.editors.gradient import GradientEditor, GradientEditorConfig, stack_tokens
from instructedit.editors.instruction_encoders import TrainedEncoder
from instructedit.editors.signals import Signal
from instructedit.errors import EditorError
from instructedit.models.language_model import LanguageModel
from instructedit.models.structure import Matrix
from instructedit.models.text import join_prompt_and_target
from instructedit.records import EditRequest


class KnowledgeEditorConfig(GradientEditorConfig):
    """Hyperparameters of KnowledgeEditor."""

    name: Literal["ke"] = Field("ke", description="of the method")
    embedding_dim: int = Field(96, ge=1, le=65_536, description="width of the embedding of the edit's own words")


class Gate(nn.Module):
    """From an embedding to the gate and the offset of one matrix.

    Args:
        embedding_dim: width of the embedding.
        inputs: of the matrix.
        outputs: of the matrix.
    """

    def __init__(self, embedding_dim: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.sizes = (outputs, outputs, inputs, inputs, 1)
        self.read = nn.Linear(embedding_dim, sum(self.sizes))
        nn.init.normal_(self.read.weight, std=1e-2)
        nn.init.zeros_(self.read.bias)

    def forward(self, embeddings: Tensor) -> tuple[Tensor, Tensor, LowRank]:
        """Return the factors of u (edits, inputs) and delta (edits, outputs), and the offset of rank 1.

        Args:
            embeddings: (edits, width).
        """
        alpha, beta, gamma, zeta, eta = self.read(embeddings).split(self.sizes, dim=-1)
        strength = 2 * eta.sigmoid()  # 1 at the start
        of_delta = alpha.softmax(-1) * alpha.shape[-1] * strength
        offset = LowRank(zeta[..., None], (beta.softmax(-1) * strength)[:, None])
        return 1 + gamma, of_delta, offset


class KnowledgeEditor(GradientEditor[KnowledgeEditorConfig]):
    """Gates the gradient by an embedding of the edit request; ignores instructions."""

    name = "ke"
    paper = "De Cao et al. 2021"
    Config = KnowledgeEditorConfig

    def __init__(self, config: KnowledgeEditorConfig, matrices: Sequence[Matrix], split_layer: int) -> None:
        super().__init__(config, matrices, split_layer)
        self.encoder = TrainedEncoder(config.embedding_dim)
        self.gates = nn.ModuleList(Gate(config.embedding_dim, matrix.inputs, matrix.outputs) for matrix in matrices)
        self.log_lr = nn.Parameter(torch.full((len(self.matrices),), config.step_size).log())

    def embeddings(
        self, language_model: LanguageModel, requests: Sequence[EditRequest], instructions: Sequence[str | None]
    ) -> Tensor:
        """Return embeddings (edits, width) of the edits' own words."""
        embeddings: Tensor = self.encoder(
            language_model, ["".join(join_prompt_and_target(r.prompt, r.target)) for r in requests]
        )
        return embeddings

    def deltas(self, signals: Mapping[str, Signal], embeddings: Tensor | None, edits: int) -> DeltaBatch:
        """See :meth:`GradientEditor.deltas`."""
        if embeddings is None:
            raise EditorError("KnowledgeEditor needs an embedding of every edit")
        factors: dict[str, Factor] = {}
        ranks = {}
        device = self.log_lr.device
        offset_edit = torch.arange(edits, device=device)
        for matrix, gate, log_lr in zip(self.matrices, self.gates, self.log_lr, strict=True):
            signal = signals[matrix.name]
            of_u, of_delta, offset = gate(embeddings)
            token_edit = signal.edit.to(device)
            a = torch.cat((signal.u.to(device) * of_u[token_edit], offset.a[..., 0]))
            b = torch.cat((signal.delta.to(device) * of_delta[token_edit], offset.b[:, 0]))
            edit, order = torch.cat((token_edit, offset_edit)).sort(stable=True)  # an edit's tokens, then its offset
            factors[matrix.name] = stack_tokens(a[order], -log_lr.exp() * b[order], edit, edits)
            ranks[matrix.name] = torch.bincount(edit, minlength=edits)
        return DeltaBatch(factors, ranks)
