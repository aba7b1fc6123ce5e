"""InstructEdit: MEND's hypernetwork, told in words what kind of edit this is.

The instruction enters in one of two ways, or both. As in the paper, its text stands before the edit input, so
that the gradient signals carry it (``prefix``). Or a code of the text scales and shifts the hypernetwork's layers
while the edit and all queries stay plain (``hypernetwork``), which is what lets one edit have the scope that
the words ask for.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from instructedit.editors.base import register
from instructedit.editors.gradient import EditorConfig, chosen_matrices
from instructedit.editors.instruction_encoders import (
    BaseStateEncoder,
    InstructionEncoder,
    SentenceEncoder,
    TrainedEncoder,
)
from instructedit.editors.mend import Mend
from instructedit.models.language_model import LanguageModel
from instructedit.models.structure import Matrix
from instructedit.records import EditRequest


def with_instruction(prompt: str, instruction: str | None) -> str:
    """The paper's edit input: the rendered instruction, then ``Input:`` and the prompt."""
    return f"{instruction}\nInput: {prompt}" if instruction else prompt


@register("instructedit")
class InstructEdit(Mend):
    """The hypernetwork editor guided by an instruction.

    Args:
        config, matrices, split_layer: as of :class:`Mend`.
        hidden: width of the base model's states, for ``encoder: base``.
    """

    def __init__(self, config: EditorConfig, matrices: Sequence[Matrix], split_layer: int, hidden: int) -> None:
        conditioned = config.conditions_hypernetwork
        super().__init__(config, matrices, split_layer, embedding_dim=config.embedding_dim if conditioned else 0)
        self.encoder: InstructionEncoder | None = None
        if conditioned and config.encoder == "trained":
            self.encoder = TrainedEncoder(config.embedding_dim)
        elif conditioned and config.encoder == "base":
            self.encoder = BaseStateEncoder(config.embedding_dim, hidden=hidden, split_layer=split_layer)
        elif conditioned and config.sentence_encoder is not None:
            self.encoder = SentenceEncoder(config.embedding_dim, source=config.sentence_encoder)

    @classmethod
    def create(cls, config: EditorConfig, language_model: LanguageModel) -> InstructEdit:
        """An untrained editor for a base model."""
        matrices = chosen_matrices(language_model, config)
        split_layer = min(language_model.structure.block_of(matrix.name) for matrix in matrices)
        return cls(config, matrices, split_layer, language_model.structure.hidden)

    @property
    def reads_instruction(self) -> bool:
        """True, unless the config leaves the conditioning out."""
        return self.config.conditioning != "none"

    def embeddings(
        self, language_model: LanguageModel, requests: Sequence[EditRequest], instructions: Sequence[str | None]
    ) -> Tensor | None:
        """Codes (edits, width) of the instructions; None where only a prefix is read."""
        embeddings: Tensor | None = self.encoder(language_model, instructions) if self.encoder is not None else None
        return embeddings

    def prompt(self, request: EditRequest, instruction: str | None) -> str:
        """With ``prefix``, the instruction and the prompt; else the bare prompt."""
        return with_instruction(request.prompt, instruction) if self.config.reads_prefix else request.prompt
