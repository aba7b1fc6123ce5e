"""InstructEdit: edit the knowledge of a language model by instruction.

Public names are imported on first use, so that ``import instructedit`` and the command's ``--help`` stay fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from instructedit.data.readers import read_records
    from instructedit.deltas.delta import Delta, DeltaMetadata
    from instructedit.deltas.saving import load_delta, save_delta
    from instructedit.editors.lookup import load_editor
    from instructedit.errors import InstructEditError
    from instructedit.evaluation.edit_report import EditReport, report_edit
    from instructedit.evaluation.runner import evaluate
    from instructedit.ledger.ledger import Ledger
    from instructedit.ledger.session import Session
    from instructedit.ledger.tables import State
    from instructedit.merging.combining import make_edit
    from instructedit.models.language_model import LanguageModel, load_language_model
    from instructedit.records import EditRecord, EditRequest, Probe
    from instructedit.tasks.loading import load_task
    from instructedit.tasks.task import Task
    from instructedit.training.loop import train
    from instructedit.training.recipe import Recipe
    from instructedit.training.recipe_file import load_stages
    from instructedit.training.stages import train_stages

_MODULES = {
    "Delta": "deltas.delta",
    "DeltaMetadata": "deltas.delta",
    "EditRecord": "records",
    "EditReport": "evaluation.edit_report",
    "EditRequest": "records",
    "InstructEditError": "errors",
    "LanguageModel": "models.language_model",
    "Ledger": "ledger.ledger",
    "Probe": "records",
    "Recipe": "training.recipe",
    "Session": "ledger.session",
    "State": "ledger.tables",
    "Task": "tasks.task",
    "evaluate": "evaluation.runner",
    "load_delta": "deltas.saving",
    "load_editor": "editors.lookup",
    "load_language_model": "models.language_model",
    "load_stages": "training.recipe_file",
    "load_task": "tasks.loading",
    "make_edit": "merging.combining",
    "read_records": "data.readers",
    "report_edit": "evaluation.edit_report",
    "save_delta": "deltas.saving",
    "train": "training.loop",
    "train_stages": "training.stages",
}

__all__ = [
    "Delta",
    "DeltaMetadata",
    "EditRecord",
    "EditReport",
    "EditRequest",
    "InstructEditError",
    "LanguageModel",
    "Ledger",
    "Probe",
    "Recipe",
    "Session",
    "State",
    "Task",
    "evaluate",
    "load_delta",
    "load_editor",
    "load_language_model",
    "load_stages",
    "load_task",
    "make_edit",
    "read_records",
    "report_edit",
    "save_delta",
    "train",
    "train_stages",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
