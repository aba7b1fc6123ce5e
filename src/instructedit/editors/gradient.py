"""What trained editors have in common: they turn the raw gradient of an edit into a low-rank weight delta."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any, Generic, Literal, Self

import torch
from pydantic import ConfigDict, Field
from torch import Tensor, nn
from typing_extensions import TypeVar

from instructedit.deltas.delta import DeltaBatch
from instructedit.deltas.factors import LowRank
from instructedit.editors.base import Editor, EditorConfig
from instructedit.editors.contrast import other_inputs, with_other_subject
from instructedit.editors.null_space import similar_inputs
from instructedit.editors.registry import editor_class
from instructedit.editors.signals import Signal, read_signals
from instructedit.editors.similar_subjects import SimilarSubjects
from instructedit.errors import EditorError, ModelError
from instructedit.models.inputs import read_top_inputs
from instructedit.models.language_model import LanguageModel
from instructedit.models.structure import Matrix, linear_shape
from instructedit.models.text import Encoded, pad, with_period
from instructedit.records import EditRequest

#: The method of a config that names none.
DEFAULT_NAME = "instructedit"


class GradientEditorConfig(EditorConfig):
    """What every trained editor is configured by; a recipe gives it under ``editor:``, the method by its ``name``."""

    model_config = ConfigDict(allow_inf_nan=False)

    name: str = Field(description="of the method")
    blocks: int = Field(3, ge=1, le=10_000, description="the MLPs of the last blocks are edited")
    matrices: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="edit these linear layers instead; names or shell patterns, such as model.layers.2[0-9].*.o_proj",
    )
    step_size: float = Field(1e-3, gt=0, le=1e6, description="alpha at the start of training")
    edit_loss: Literal["mean", "sum"] = Field(
        "mean",
        description="over a target's tokens, of the loss whose gradient is read; with the sum a token of a long target "
        "weighs as much as one of a short target",
    )
    append_period: bool = Field(
        False, description="the answer of edits and in training ends with a full stop, so that generation stops there"
    )

    def continues(self, earlier: GradientEditorConfig) -> bool:
        """Return whether an editor with these hyperparameters can be trained on from one with the earlier ones."""
        return self == earlier


ConfigT = TypeVar("ConfigT", bound=GradientEditorConfig, default=Any)


class GradientEditor(Editor, Generic[ConfigT]):
    """An editor that is trained to turn the gradient of a request's loss into a better change.

    Args:
        config: its hyperparameters.
        matrices: the edited matrices, from the bottom up.
        split_layer: index of the block that contains the lowest of them; the trunk is what lies below.

    Attributes:
        Config: the class of its hyperparameters; every field has a default.
        reads_other_subject: whether the signals have the inputs with another subject; see
            :mod:`instructedit.editors.contrast`.
        similar_subjects: of how many similar subjects the signals have the inputs; see
            :mod:`instructedit.editors.null_space`.
        log_lr: (matrices,) logarithms of the step sizes alpha.
        usual_norms: 1st and 99th percentile of the norms of its edits of held-out requests in training; None where
            they are not known.
    """

    Config: type[GradientEditorConfig]
    config: ConfigT
    needs_training = True
    reads_other_subject = False
    similar_subjects = 0
    usual_norms: tuple[float, float] | None = None
    log_lr: nn.Parameter

    def __init__(self, config: ConfigT, matrices: Sequence[Matrix], split_layer: int) -> None:
        super().__init__()
        self.config = config
        self.matrices = tuple(matrices)
        self.split_layer = split_layer
        self._similar: SimilarSubjects | None = None
        self._similar_for = ""

    @classmethod
    def create(cls, config: ConfigT, language_model: LanguageModel) -> Self:
        """Return an untrained editor for a base model."""
        matrices = chosen_matrices(language_model, config)
        return cls(config, matrices, lowest_block(language_model, matrices))

    @abstractmethod
    def deltas(self, signals: Mapping[str, Signal], embeddings: Tensor | None, edits: int) -> DeltaBatch:
        """Return the deltas of ``edits`` edits.

        Args:
            signals: of all edits, by edited matrix.
            embeddings: (edits, width) what :meth:`embeddings` returned.
            edits: how many there are.
        """

    def round_in_place(self, dtype: torch.dtype) -> None:
        """Give up float32 where products are large; for use after training."""

    def embeddings(
        self, language_model: LanguageModel, requests: Sequence[EditRequest], instructions: Sequence[str | None]
    ) -> Tensor | None:
        """Return the embeddings (edits, width) that condition the editor; None here."""
        return None

    def prompt(self, request: EditRequest, instruction: str | None) -> str:
        """Return the text whose gradient is read; the bare prompt here."""
        return request.prompt

    def answer(self, target: str) -> str:
        """Return the text that is to follow the prompt."""
        return with_period(target) if self.config.append_period else target

    def forward(
        self, language_model: LanguageModel, requests: Sequence[EditRequest], instructions: Sequence[str | None]
    ) -> DeltaBatch:
        """Return the deltas as :meth:`edit` does, with gradients with respect to the editor's parameters."""
        text = language_model.text
        prompts = [self.prompt(*pair) for pair in zip(requests, instructions, strict=True)]
        answers = [self.answer(request.target) for request in requests]
        subjects = [request.subject for request in requests]
        queries = [text.encode_pair(*pair) for pair in zip(prompts, answers, strict=True)]
        others: list[Encoded | None] = [None] * len(queries)
        if self.reads_other_subject:
            swapped = [with_other_subject(*pair) for pair in zip(prompts, subjects, strict=True)]
            others = [None if p is None else text.encode_pair(p, a) for p, a in zip(swapped, answers, strict=True)]
        compared = [other or query for other, query in zip(others, queries, strict=True)] if any(others) else []
        similar = [
            [text.encode_pair(about, answer) for about in self._about_similar(language_model, prompt, subject)]
            for prompt, answer, subject in zip(prompts, answers, subjects, strict=True)
        ]
        # One pass of the trunk for all, and one of the top for those without a gradient: at few edits at a time a pass
        # costs what it costs to read the weights.
        texts = [*queries, *compared, *chain.from_iterable(similar)]
        batch = pad(texts, text.pad_id).to(language_model.device)
        state, rest = language_model.split(self.split_layer).trunk(batch).split(len(queries))
        modules = [matrix.name for matrix in self.matrices]
        inputs = read_top_inputs(language_model, rest, self.split_layer, modules) if len(rest.batch) else {}
        of_compared = {name: states[: len(compared)] for name, states in inputs.items()}
        of_similar = {name: states[len(compared) :] for name, states in inputs.items()}
        counts = [len(texts) for texts in similar]
        signals = read_signals(
            language_model,
            state,
            self.split_layer,
            self.matrices,
            average=self.config.edit_loss == "mean",
            others=other_inputs(of_compared, queries, others) if compared else None,
            similar=similar_inputs(of_similar, rest.batch.mask[len(compared) :], counts) if any(similar) else None,
        )
        return self.deltas(signals, self.embeddings(language_model, requests, instructions), len(requests))

    def _about_similar(self, language_model: LanguageModel, prompt: str, subject: str | None) -> list[str]:
        """Return the prompt about subjects that are similar to its own; none where it does not name its subject."""
        if not self.similar_subjects or not subject or subject not in prompt:
            return []
        if self._similar is None or self._similar_for != language_model.fingerprint:
            self._similar, self._similar_for = SimilarSubjects(language_model), language_model.fingerprint
        names = self._similar.nearest(subject, self.similar_subjects)
        return [prompt.replace(subject, name) for name in names]

    @torch.no_grad()
    def edit(
        self, language_model: LanguageModel, requests: Sequence[EditRequest], instructions: Sequence[str | None]
    ) -> DeltaBatch:
        """See :meth:`Editor.edit`."""
        deltas: DeltaBatch = self(language_model, requests, instructions)
        for name, factor in deltas.factors.items():
            if not factor.finite():
                raise EditorError(
                    f"the delta of {name} is not finite; the editor file is damaged, or its training diverged"
                )
        return deltas


def editor_config(fields: object) -> GradientEditorConfig:
    """Return the config of the trained method that ``fields["name"]`` names, InstructEdit without a name.

    Raises:
        EditorError: no mapping; no method has that name, or it needs no training.
        ValidationError: a field is wrong, or the method has no such field.
    """
    if not isinstance(fields, dict):
        raise EditorError(f"expected `key: value` pairs, not {type(fields).__name__}")
    return trained_class(str(fields.get("name", DEFAULT_NAME))).Config.model_validate(fields)


def create_editor(config: GradientEditorConfig, language_model: LanguageModel) -> GradientEditor:
    """Return an untrained editor of the method that the config belongs to.

    Raises:
        EditorError: no method has the config's name, or it needs no training.
        ModelError: the base model lacks what the config says is edited.
    """
    return trained_class(config.name).create(config, language_model).eval()


def trained_class(name: str) -> type[GradientEditor]:
    """Return the class of a method that is trained.

    Raises:
        EditorError: no method has that name, or it needs no training.
    """
    editor = editor_class(name)
    if not issubclass(editor, GradientEditor):
        raise EditorError(f"{name} needs no training; give its name or a YAML file of its fields as --editor")
    return editor


def chosen_matrices(language_model: LanguageModel, config: GradientEditorConfig) -> tuple[Matrix, ...]:
    """Return the matrices that a config edits in this model.

    Raises:
        ModelError: no linear layer has such a name, or the model has fewer blocks than are to be edited.
    """
    if config.matrices is None:
        return language_model.structure.last_mlps(config.blocks)
    shapes = {name: linear_shape(module) for name, module in language_model.model.named_modules()}
    names: set[str] = set()
    for pattern in config.matrices:
        matching = {name for name, shape in shapes.items() if shape is not None and fnmatchcase(name, pattern)}
        if not matching:
            raise ModelError(f"{pattern} is not a linear layer of this model; `instructedit doctor` lists the matrices")
        names |= matching
    return tuple(Matrix(name, *shape) for name, shape in shapes.items() if shape is not None and name in names)


def lowest_block(language_model: LanguageModel, matrices: Sequence[Matrix]) -> int:
    """Return the index of the lowest block that contains one of the matrices."""
    return min(language_model.structure.block_of(matrix.name) for matrix in matrices)


def stack_tokens(a: Tensor, b: Tensor, edit: Tensor, edits: int) -> LowRank:
    """Return the sum over tokens of the outer products a_t^T b_t, stacked by edit; every token is one rank.

    Args:
        a: (tokens, inputs).
        b: (tokens, outputs).
        edit: (tokens,) index of the edit that a token belongs to, ascending.
        edits: how many edits there are.

    Returns:
        (edits, inputs, rank) and (edits, rank, outputs), zero where an edit has fewer tokens than ranks.
    """
    edit = edit.to(a.device)
    rank_of_token = positions_in_edit(edit)
    rank = int(rank_of_token.max()) + 1
    stacked_a = a.new_zeros(edits, rank, a.shape[1]).index_put((edit, rank_of_token), a)
    stacked_b = b.new_zeros(edits, rank, b.shape[1]).index_put((edit, rank_of_token), b)
    return LowRank(stacked_a.mT, stacked_b)


def positions_in_edit(edit: Tensor) -> Tensor:
    """Return the running number, (tokens,), of each token inside its edit, from 0; ``edit`` ascends."""
    counts = torch.bincount(edit)
    starts = counts.cumsum(0) - counts
    return torch.arange(len(edit), device=edit.device) - starts[edit]
