"""In-context editing: the new fact stands before the question, and no weight changes.

After IKE (Zheng et al., EMNLP 2023) without its retrieved demonstrations: the baseline that needs nothing but the
prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

from pydantic import Field
from torch import Tensor

from instructedit.editors.base import DirectEditor, EditorConfig
from instructedit.models.language_model import LanguageModel
from instructedit.models.text import join_prompt_and_target
from instructedit.records import EditRequest


class InContextConfig(EditorConfig):
    """The text around the fact."""

    template: str = Field("New fact: {fact}.\n", description="what stands before every question; {fact} is filled in")


@dataclass(frozen=True)
class PromptEdits:
    """Texts that stand before the questions, one an edit."""

    prefixes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.prefixes)

    @contextmanager
    def attached(self, language_model: LanguageModel, rows: Tensor) -> Iterator[None]:
        """Change nothing in the model."""
        yield

    def rewrite_prompt(self, edit: int, prompt: str) -> str:
        """Return the fact, then the prompt."""
        return self.prefixes[edit] + prompt


class InContext(DirectEditor[InContextConfig]):
    """Prepends the new fact to the prompt; the weights do not change."""

    name = "in-context"
    paper = "after Zheng et al. 2023"
    Config = InContextConfig

    def __init__(self, config: InContextConfig, split_layer: int) -> None:
        super().__init__()
        self.config = config
        self.split_layer = split_layer

    @classmethod
    def create(cls, config: InContextConfig, language_model: LanguageModel) -> Self:
        """See :meth:`DirectEditor.create`."""
        return cls(config, len(language_model.structure.blocks) - 1)

    def edit(
        self, language_model: LanguageModel, requests: Sequence[EditRequest], instructions: Sequence[str | None]
    ) -> PromptEdits:
        """See :meth:`Editor.edit`. Instructions are not read."""
        facts = ("".join(join_prompt_and_target(request.prompt, request.target)).rstrip(".") for request in requests)
        return PromptEdits(tuple(self.config.template.replace("{fact}", fact) for fact in facts))
