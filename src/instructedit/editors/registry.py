"""Editors by name: the built-in ones, those of installed packages, and those that a program registers.

A built-in method is imported when it is first asked for. Another package adds one by an entry point of the group
``instructedit.editors``, for example in its ``pyproject.toml``::

    [project.entry-points."instructedit.editors"]
    my-method = "my_package.my_method:MyEditor"

A class of which no package knows, in a notebook or a test, is added by :func:`register`. However it is added, the
command line, YAML files and recipes then find it by its name.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from instructedit.editors.base import Editor
from instructedit.errors import EditorError, did_you_mean

logger = logging.getLogger(__name__)

GROUP = "instructedit.editors"
#: The class of each method that belongs to this package, as ``module:class``.
BUILT_IN = {
    "calinet": "instructedit.editors.calinet:CaliNet",
    "ft": "instructedit.editors.ft:ConstrainedFineTuning",
    "grace": "instructedit.editors.grace:Grace",
    "in-context": "instructedit.editors.incontext:InContext",
    "instructedit": "instructedit.editors.instructedit:InstructEdit",
    "ke": "instructedit.editors.ke:KnowledgeEditor",
    "lora": "instructedit.editors.lora:Lora",
    "memit": "instructedit.editors.memit:Memit",
    "mend": "instructedit.editors.mend:Mend",
    "rome": "instructedit.editors.rome:Rome",
}
_REGISTERED: dict[str, type[Editor]] = {}

_Class = TypeVar("_Class", bound=type[Editor])


@dataclass(frozen=True)
class EditorSummary:
    """A method in a line of a list.

    Attributes:
        summary: what it does.
        needs_training: whether it has to be trained before it can edit.
        reads_instruction: whether its edits depend on the instruction.
        paper: who published it, where and when; empty where there is no paper.
    """

    summary: str
    needs_training: bool
    reads_instruction: bool
    paper: str


def register(editor: _Class) -> _Class:
    """Make an editor class known by its ``name``; also a class decorator.

    Raises:
        EditorError: the name is taken.
    """
    if editor.name in editor_names():
        raise EditorError(f"an editor named {editor.name!r} is already registered; choose another `name`")
    _REGISTERED[editor.name] = editor
    return editor


def editor_names() -> list[str]:
    """Return the names of all methods, sorted, without importing them."""
    return sorted({*BUILT_IN, *_REGISTERED, *_entry_points()})


def registered_editors() -> dict[str, EditorSummary]:
    """Return all methods by name; a method of another package that cannot be imported is left out with a warning."""
    summaries = {}
    for name in editor_names():
        try:
            editor = editor_class(name)
        except EditorError as error:
            logger.warning("%s", error)
            continue
        first_line = (editor.__doc__ or "").strip().partition("\n")[0]
        summaries[name] = EditorSummary(first_line, editor.needs_training, editor.reads_instruction, editor.paper)
    return summaries


def editor_class(name: str) -> type[Editor]:
    """Return the class that is registered as ``name``.

    Raises:
        EditorError: there is none, and the nearest name is suggested; or it is another package's and cannot be
            imported, or is no editor of that name.
    """
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        built_in: type[Editor] = getattr(importlib.import_module(module), attribute)
        return built_in
    if name in _REGISTERED:
        return _REGISTERED[name]
    external = _entry_points()
    if name in external:
        return _load(external[name])
    raise EditorError(unknown_editor(name, editor_names()))


def unknown_editor(name: str, known: Iterable[str]) -> str:
    """Return the message for a name that nothing has, with the nearest one that there is."""
    names = sorted(known)
    return f"no editor is named {name!r}.{did_you_mean(name, names)} Known: {', '.join(names)}"


def _entry_points() -> dict[str, EntryPoint]:
    """Return the entry points of other packages by name; read anew at every call, since packages may be installed."""
    points: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        if point.name in BUILT_IN or points.get(point.name, point) != point:
            logger.warning("the entry point %s = %s is ignored: an editor of this name exists", point.name, point.value)
        else:
            points[point.name] = point
    return points


def _load(point: EntryPoint) -> type[Editor]:
    """Return the class that an entry point names.

    Raises:
        EditorError: it cannot be imported, is no editor, or calls itself otherwise.
    """
    where = f"the editor {point.name!r} ({point.value})"
    try:
        loaded = point.load()
    except (ImportError, AttributeError) as error:
        raise EditorError(f"{where} cannot be imported: {error}. Fix or uninstall the package that adds it") from error
    if not (isinstance(loaded, type) and issubclass(loaded, Editor)):
        raise EditorError(f"{where} is not a subclass of instructedit.editors.base.Editor")
    if getattr(loaded, "name", None) != point.name:
        raise EditorError(
            f"{where} has the `name` {getattr(loaded, 'name', None)!r}; it must equal the name of the entry point"
        )
    return loaded
