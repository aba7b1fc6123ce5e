"""What every editor is: requests in, edits out; and how editors are found by name."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from torch import nn

from instructedit.deltas.delta import DeltaBatch
from instructedit.errors import EditorError
from instructedit.models.language_model import LanguageModel
from instructedit.records import EditRequest


class Editor(nn.Module, ABC):
    """Turns requests into weight deltas of one base model, changing nothing in place."""

    #: the name under which it is registered
    name: str

    @abstractmethod
    def edit(
        self, language_model: LanguageModel, requests: Sequence[EditRequest], instructions: Sequence[str | None]
    ) -> DeltaBatch:
        """The deltas of independent edits, one a request.

        Args:
            requests: what to change.
            instructions: the rendered instruction of each request, or None.

        Raises:
            EditorError: a request cannot be edited; see :mod:`instructedit.editors.signals`.
        """


_EDITORS: dict[str, type[Editor]] = {}


def register(name: str) -> Callable[[type[Editor]], type[Editor]]:
    """Class decorator: make an editor known by ``name``."""

    def add(editor: type[Editor]) -> type[Editor]:
        if name in _EDITORS:
            raise EditorError(f"an editor named {name!r} is already registered")
        editor.name = name
        _EDITORS[name] = editor
        return editor

    return add


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
