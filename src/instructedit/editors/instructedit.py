"""InstructEdit: MEND's hypernetwork, conditioned on an instruction that says what kind of edit this is.

The instruction enters in one of two ways, or both. As in the paper, its text stands before the edit input, so
that the gradient signals carry it (``prefix``). Or an embedding of the text scales and shifts the hypernetwork's layers
while the edit and all queries stay plain (``hypernetwork``), which is what lets one edit have the scope that
the instruction describes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from instructedit.editors.gradient import GradientEditorConfig, chosen_matrices, lowest_block
from instructedit.editors.instruction_encoders import (
    BaseStateEncoder,
    InstructionEncoder,
    SentenceEncoder,
    TrainedEncoder,
)
from instructedit.editors.mend import HypernetworkConfig, HypernetworkEditor
from instructedit.models.language_model import LanguageModel
from instructedit.models.structure import Matrix
from instructedit.records import EditRequest


class InstructEditConfig(HypernetworkConfig):
    """Hyperparameters of InstructEdit."""

    name: Literal["instructedit"] = Field("instructedit", description="of the method")
    conditioning: Literal["none", "prefix", "hypernetwork", "both"] = Field(
        "hypernetwork", description="where the instruction enters"
    )
    embedding_dim: int = Field(96, ge=1, le=65_536, description="width of the instruction embedding")
    encoder: Literal["trained", "base", "sentence"] = Field("trained", description="what computes the embedding")
    encoder_block: int | None = Field(
        None, ge=1, le=1_000_000, description="for encoder: base, states before this block; default: half of the depth"
    )
    sentence_encoder: str | None = Field(None, description="folder or hub id, for encoder: sentence")
    reach: float | None = Field(
        None,
        gt=0,
        le=10,
        description="where the instruction wants other subjects changed, as a classifier of its embedding says, the "
        "null space is off and the step size is multiplied by this",
    )

    @model_validator(mode="after")
    def _encoder_block_is_read(self) -> Self:
        if self.encoder_block is not None and self.encoder != "base":
            raise ValueError("`encoder_block` needs `encoder: base`")
        return self

    @model_validator(mode="after")
    def _sentence_encoder_is_named(self) -> Self:
        if (self.encoder == "sentence") != (self.sentence_encoder is not None):
            raise ValueError("`encoder: sentence` and `sentence_encoder` must be set together")
        return self

    def continues(self, earlier: GradientEditorConfig) -> bool:
        """See :meth:`HypernetworkConfig.continues`; ``reach`` is no part of the training."""
        same = isinstance(earlier, InstructEditConfig)
        return super().continues(earlier.model_copy(update={"reach": self.reach}) if same else earlier)

    @model_validator(mode="after")
    def _reach_is_used(self) -> Self:
        if self.reach is not None and not (self.null_space and self.conditions_hypernetwork):
            raise ValueError("`reach` needs `null_space`, and `conditioning: hypernetwork` or `both`")
        return self

    @property
    def reads_prefix(self) -> bool:
        """Whether the instruction's text stands before the edit input."""
        return self.conditioning in ("prefix", "both")

    @property
    def conditions_hypernetwork(self) -> bool:
        """Whether an embedding of the instruction conditions the hypernetwork."""
        return self.conditioning in ("hypernetwork", "both")


def with_instruction(prompt: str, instruction: str | None) -> str:
    """Return the paper's edit input: the rendered instruction, then ``Input:`` and the prompt."""
    return f"{instruction}\nInput: {prompt}" if instruction else prompt


class InstructEdit(HypernetworkEditor[InstructEditConfig]):
    """Maps the gradient to a low-rank delta by a trained hypernetwork, conditioned on an instruction.

    Args:
        config: its hyperparameters.
        matrices: the edited matrices, from the bottom up.
        split_layer: index of the block that contains the lowest of them.
        hidden: width of the base model's states, for ``encoder: base``.
        blocks: how many the base model has, likewise.
    """

    name = "instructedit"
    paper = "Tian et al. 2024"
    reads_instruction = True
    Config = InstructEditConfig

    def __init__(
        self, config: InstructEditConfig, matrices: Sequence[Matrix], split_layer: int, hidden: int, blocks: int
    ) -> None:
        conditioned = config.conditions_hypernetwork
        super().__init__(config, matrices, split_layer, embedding_dim=config.embedding_dim if conditioned else 0)
        self.reads_instruction = config.conditioning != "none"
        self.encoder: InstructionEncoder | None = None
        if conditioned and config.encoder == "trained":
            self.encoder = TrainedEncoder(config.embedding_dim)
        elif conditioned and config.encoder == "base":
            block = min(config.encoder_block or blocks // 2, split_layer)  # no edited block is read
            self.encoder = BaseStateEncoder(config.embedding_dim, hidden=hidden, block=block)
        elif conditioned and config.sentence_encoder is not None:
            self.encoder = SentenceEncoder(config.embedding_dim, source=config.sentence_encoder)

        self.reach: Tensor | None  # w of :mod:`instructedit.training.reach`
        self.register_buffer("reach", torch.zeros(config.embedding_dim) if config.reach is not None else None)

    @classmethod
    def create(cls, config: InstructEditConfig, language_model: LanguageModel) -> Self:
        """Return an untrained editor for a base model."""
        matrices = chosen_matrices(language_model, config)
        structure = language_model.structure
        return cls(config, matrices, lowest_block(language_model, matrices), structure.hidden, len(structure.blocks))

    def embeddings(
        self, language_model: LanguageModel, requests: Sequence[EditRequest], instructions: Sequence[str | None]
    ) -> Tensor | None:
        """Return the instruction embeddings (edits, width); None where only a prefix is read."""
        embeddings: Tensor | None = self.encoder(language_model, instructions) if self.encoder is not None else None
        return embeddings

    def step_sizes(self, embeddings: Tensor | None) -> Tensor:
        """See :meth:`HypernetworkEditor.step_sizes`; after training times ``reach`` where :meth:`reaches_others`."""
        sizes, wide = super().step_sizes(embeddings), self.reaches_others(embeddings)
        if wide is None or self.config.reach is None:
            return sizes
        return torch.where(wide[:, None], self.config.reach * sizes, sizes)

    def null_spaces(self, embeddings: Tensor | None) -> Tensor | None:
        """See :meth:`HypernetworkEditor.null_spaces`; after training 0 where :meth:`reaches_others`."""
        rho, wide = super().null_spaces(embeddings), self.reaches_others(embeddings)
        return rho if rho is None or wide is None else rho.masked_fill(wide[:, None], 0.0)

    def reaches_others(self, embeddings: Tensor | None) -> Tensor | None:
        """Return which instructions want other subjects changed, (edits,); None in training, or without a classifier.

        See :mod:`instructedit.training.reach`.
        """
        if self.reach is None or embeddings is None or self.training:
            return None
        return embeddings.float() @ self.reach > 0.5

    def prompt(self, request: EditRequest, instruction: str | None) -> str:
        """Return with ``prefix`` the instruction and the prompt, else the bare prompt."""
        return with_instruction(request.prompt, instruction) if self.config.reads_prefix else request.prompt
