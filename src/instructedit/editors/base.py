"""What every editor is: requests in, edits out; and how editors are found by name."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any, Protocol, TypeVar, cast

from pydantic import BaseModel
from torch import Tensor, nn

from instructedit.errors import EditorError
from instructedit.models.language_model import LanguageModel
from instructedit.records import EditRequest


class Edits(Protocol):
    """What an editor makes of a batch of requests: as many edits, none of them in the model yet.

    Most are weight deltas (:class:`~instructedit.deltas.delta.DeltaBatch`); a codebook or a prompt is an edit too.
    """

    def __len__(self) -> int: ...

    def attached(self, language_model: LanguageModel, rows: Tensor) -> AbstractContextManager[None]:
        """Row ``i`` of every batch inside the ``with`` is edited by edit ``rows[i]``."""
        ...

    def rewrite_prompt(self, edit: int, prompt: str) -> str:
        """What the model edited by ``edit`` is given in place of ``prompt``; the prompt itself for most."""
        return prompt


class Editor(nn.Module, ABC):
    """Turns requests into edits of one base model, changing nothing in place.

    Every subclass's :meth:`edit` runs inside :meth:`LanguageModel.editing`: alone on its model, which has to be the
    unedited base.

    Attributes:
        name: under which it is registered.
        split_layer: index of the lowest block that an edit touches.
    """

    name: str
    split_layer: int

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "edit" in vars(cls):
            setattr(cls, "edit", _on_the_base_alone(vars(cls)["edit"]))  # noqa: B010 - a method, for mypy

    @property
    def reads_instruction(self) -> bool:
        """Whether an edit depends on its instruction; False for most methods."""
        return False

    @abstractmethod
    def edit(
        self, language_model: LanguageModel, requests: Sequence[EditRequest], instructions: Sequence[str | None]
    ) -> Edits:
        """Independent edits, one a request.

        Args:
            requests: what to change.
            instructions: the rendered instruction of each request, or None.

        Raises:
            EditorError: a request cannot be edited, see :mod:`instructedit.editors.signals`; or the model is not the
                base: a delta is attached or was merged.
        """


_Edit = TypeVar("_Edit", bound=Callable[..., Any])


def _on_the_base_alone(edit: _Edit) -> _Edit:
    """The method, run inside the model's :meth:`~LanguageModel.editing`."""

    @wraps(edit)
    def guarded(self: Editor, language_model: LanguageModel, *args: Any, **kwargs: Any) -> Any:
        with language_model.editing():
            return edit(self, language_model, *args, **kwargs)

    return cast(_Edit, guarded)


class DirectEditor(Editor):
    """An editor that needs no training of its own: it is made from numbers and a base model.

    Attributes:
        Config: its numbers, with defaults.
    """

    Config: type[BaseModel]

    @classmethod
    @abstractmethod
    def create(cls, config: BaseModel, language_model: LanguageModel) -> DirectEditor:
        """The editor for a base model.

        Raises:
            EditorError: the numbers do not fit the model.
        """


_EDITORS: dict[str, type[Editor]] = {}
_Kind = TypeVar("_Kind", bound=type[Editor])


def register(name: str) -> Callable[[_Kind], _Kind]:
    """Class decorator: make an editor known by ``name``."""

    def add(editor: _Kind) -> _Kind:
        if name in _EDITORS:
            raise EditorError(f"an editor named {name!r} is already registered")
        editor.name = name
        _EDITORS[name] = editor
        return editor

    return add


def registered_editors() -> dict[str, type[Editor]]:
    """All editors by name."""
    return dict(_EDITORS)


def editor_class(name: str) -> type[Editor]:
    """The editor registered as ``name``.

    Raises:
        EditorError: there is none; the nearest name is suggested.
    """
    if name not in _EDITORS:
        near = difflib.get_close_matches(name, _EDITORS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise EditorError(f"no editor is named {name!r}{hint} Known: {', '.join(sorted(_EDITORS))}")
    return _EDITORS[name]
