"""An editor that keeps the edits it made, as several evaluations use the same ones."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from instructedit.editors.base import Editor, Edits
from instructedit.models.language_model import LanguageModel
from instructedit.records import EditRequest

#: Batches of edits that are kept: 2,048 edits at the batch size of an evaluation.
CACHED_BATCHES = 64


class CachingEditor(Editor):
    """An editor that makes each batch of edits once, and keeps the last :data:`CACHED_BATCHES` batches.

    Args:
        editor: Makes the edits.
    """

    def __init__(self, editor: Editor) -> None:
        super().__init__()
        self.name, self.split_layer = editor.name, editor.split_layer
        self._editor = editor
        self._batches: OrderedDict[tuple[object, ...], Edits] = OrderedDict()

    def edit(
        self, language_model: LanguageModel, requests: Sequence[EditRequest], instructions: Sequence[str | None]
    ) -> Edits:
        """Return the edits of a batch, made or kept; see :meth:`Editor.edit`."""
        key = (*requests, *instructions)
        if key not in self._batches:
            self._batches[key] = self._editor.edit(language_model, requests, instructions)
            if len(self._batches) > CACHED_BATCHES:
                self._batches.popitem(last=False)
        self._batches.move_to_end(key)
        return self._batches[key]
