"""What every editor is: requests in, edits out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any, Generic, Protocol, Self, TypeVar, cast

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from instructedit.models.language_model import LanguageModel
from instructedit.records import EditRequest


class Edits(Protocol):
    """What an editor makes of a batch of requests: as many edits, none of them in the model yet.

    Most are weight deltas (:class:`~instructedit.deltas.delta.DeltaBatch`); a codebook or a prompt is an edit too.
    """

    def __len__(self) -> int: ...

    def attached(self, language_model: LanguageModel, rows: Tensor) -> AbstractContextManager[None]:
        """Give row ``i`` of every batch inside the ``with`` the edit ``rows[i]``."""
        ...

    def rewrite_prompt(self, edit: int, prompt: str) -> str:
        """Return the prompt that the model edited by ``edit`` is given in place of ``prompt``; mostly the same."""
        return prompt


class EditorConfig(BaseModel):
    """The hyperparameters of a method; each method has a subclass of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Editor(nn.Module, ABC):
    """Turns requests into edits of one base model, changing nothing in place.

    Every subclass's :meth:`edit` runs inside :meth:`LanguageModel.editing`: alone on its model, which has to be the
    unedited base. The first line of a subclass's docstring is its summary in lists of methods.

    Attributes:
        name: under which it is registered.
        paper: who published the method, where and when; for lists of methods.
        needs_training: whether it has to be trained before it can edit.
        reads_instruction: whether an edit depends on its instruction.
        split_layer: index of the lowest block that an edit touches.
    """

    name: str
    paper: str = ""
    needs_training: bool = False
    reads_instruction: bool = False
    split_layer: int

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "edit" in vars(cls):
            setattr(cls, "edit", _alone_on_the_base(vars(cls)["edit"]))  # noqa: B010 - a method, for mypy

    @abstractmethod
    def edit(
        self, language_model: LanguageModel, requests: Sequence[EditRequest], instructions: Sequence[str | None]
    ) -> Edits:
        """Return independent edits, one a request.

        Args:
            language_model: the unedited base model.
            requests: what to change.
            instructions: the rendered instruction of each request, or None.

        Raises:
            EditorError: a request cannot be edited, see :mod:`instructedit.editors.signals`; or the model is not the
                base: a delta is attached or was merged.
        """


_Edit = TypeVar("_Edit", bound=Callable[..., Any])


def _alone_on_the_base(edit: _Edit) -> _Edit:
    """Return the method so that it runs inside the model's :meth:`~LanguageModel.editing`."""

    @wraps(edit)
    def guarded(self: Editor, language_model: LanguageModel, *args: Any, **kwargs: Any) -> Any:
        with language_model.editing():
            return edit(self, language_model, *args, **kwargs)

    return cast(_Edit, guarded)


ConfigT = TypeVar("ConfigT", bound=EditorConfig)


class DirectEditor(Editor, Generic[ConfigT]):
    """An editor that needs no training of its own: it is made from hyperparameters and a base model.

    Attributes:
        Config: the class of its hyperparameters; every field has a default.
        config: its hyperparameters.
    """

    Config: type[EditorConfig]
    config: ConfigT

    @classmethod
    @abstractmethod
    def create(cls, config: ConfigT, language_model: LanguageModel) -> Self:
        """Return the editor for a base model.

        Raises:
            EditorError: the hyperparameters do not fit the model.
        """
