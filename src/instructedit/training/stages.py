"""Training of a recipe's stages, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from instructedit.editors.gradient import GradientEditor
from instructedit.models.language_model import LanguageModel
from instructedit.storage.reading import read_bytes
from instructedit.storage.writing import make_folder, write_atomically
from instructedit.training.log import LOG
from instructedit.training.loop import EDITOR, train
from instructedit.training.processes import is_first_process, locked_by_first_process
from instructedit.training.progress import Report
from instructedit.training.recipe import Recipe


def train_stages(
    stages: Sequence[Recipe],
    language_model: LanguageModel,
    out: Path,
    data: Path | None = None,
    on_report: Callable[[Report], None] = lambda report: None,
) -> GradientEditor:
    """Train an editor in stages, each from the editor of the stage before; resume where a run was stopped.

    Args:
        stages: Settings of each stage.
        language_model: The base model, frozen.
        out: Folder for everything. A recipe of one stage is trained here; stages are trained in ``stage-1``,
            ``stage-2``, ..., and their final editor and joint log are copied here.
        data: Folder with the training files; default :func:`find_data`.
        on_report: Called after every step and validation.

    Returns:
        The final editor.

    Raises:
        DataError: As :func:`train`.
        EditorError: As :func:`train`.
        CheckpointError: As :func:`train`.
    """
    if len(stages) == 1:
        return train(stages[0], language_model, out, data, on_report)
    folders = [out / f"stage-{number}" for number in range(1, len(stages) + 1)]
    make_folder(out)
    with locked_by_first_process(out):
        for number, (recipe, folder) in enumerate(zip(stages, folders, strict=True)):
            if number:
                recipe = recipe.model_copy(update={"start_from": str(folders[number - 1] / EDITOR)})
            editor = train(recipe, language_model, folder, data, on_report)
        if is_first_process():
            write_atomically(out / LOG, b"".join(read_bytes(folder / LOG) for folder in folders))
            write_atomically(out / EDITOR, read_bytes(folders[-1] / EDITOR))
    return editor
