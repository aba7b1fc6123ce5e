"""Recipe files: settings in stages, read from YAML.

A recipe file holds the settings of :class:`Recipe`, and optionally ``stages``: a list with one mapping per stage, each
of which overrides the settings of the stage before; the first overrides those of the file itself. Mappings are merged
key by key; lists and plain values are replaced. ``tasks`` is a mapping by task name, or a list where a whole mixture is
to be replaced. ``extends`` names a shipped editor or another recipe file, whose settings the file overrides.

Paths: training files are relative to the data folder; all other paths are relative to the recipe file.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from instructedit.artifacts import recipe_file, shipped_editors, shipped_models
from instructedit.errors import RecipeError
from instructedit.storage.reading import read_yaml_file
from instructedit.training.recipe import Recipe, parse_recipe

#: Settings that all stages share, as each starts from the editor of the one before.
SHARED = ("base", "dtype", "start_from")


def load_stages(name_or_path: str | Path) -> list[Recipe]:
    """Read a recipe file.

    Args:
        name_or_path: A YAML file, or the name of a shipped editor for the recipe that it was trained with.

    Returns:
        The settings of each stage. From the second on, ``start_from`` is None; training fills it in.

    Raises:
        DataError: A file cannot be read or is not YAML.
        RecipeError: The recipe has mistakes; those of the first wrong stage are listed.
    """
    return parse_stages(read_recipe(name_or_path), name_or_path)


def parse_stages(
    raw: Any, source: object = "recipe", *, overrides: Mapping[str, Any] | None = None, count: int | None = None
) -> list[Recipe]:
    """Check the settings of a recipe file and return those of each stage.

    Args:
        raw: The file's content.
        source: Where it comes from, for messages.
        overrides: Override the settings of every stage.
        count: Return only that many of the first stages.

    Raises:
        RecipeError: As :func:`load_stages`.
    """
    if not isinstance(raw, dict):
        return [parse_recipe(raw, source)]
    stages: list[Recipe] = []
    for place, settings in resolve_stages(raw, source, SHARED)[:count]:
        stage = parse_recipe(merged(settings, dict(overrides or {})), place)
        if stages and not stage.editor.continues(stages[-1].editor):
            raise RecipeError(place, ["editor: must be the same in all stages; only `null_space` may be added later"])
        stages.append(stage)
    return stages


def resolve_stages(raw: dict[Any, Any], source: object, shared: Collection[str]) -> list[tuple[object, dict[Any, Any]]]:
    """Merge the settings of a file into those of each stage, unchecked.

    Args:
        raw: The file's content.
        source: Where it comes from, for messages.
        shared: Settings that no stage may override, as it starts from the result of the one before.

    Returns:
        For each stage its place, for messages, and its settings; from the second on, ``start_from`` is None.

    Raises:
        RecipeError: ``stages`` is not a list of mappings, or a stage overrides what all stages share.
    """
    settings = {key: value for key, value in raw.items() if key != "stages"}
    stages = raw.get("stages", [{}])
    if not isinstance(stages, list) or not stages or not all(isinstance(changes, dict) for changes in stages):
        raise RecipeError(source, ["stages: expected a list with a mapping of settings per stage; {} changes nothing"])
    resolved: list[tuple[object, dict[Any, Any]]] = []
    for number, changes in enumerate(stages, start=1):
        place = source if len(stages) == 1 else f"{source}, stage {number}"
        if resolved and any(key in changes for key in shared):
            raise RecipeError(
                place,
                [
                    f"{key}: must be the same in all stages; set it in the first stage only"
                    for key in shared
                    if key in changes
                ],
            )
        settings = merged(settings, changes)
        if resolved:
            settings["start_from"] = None
        resolved.append((place, settings))
    return resolved


def read_recipe(name_or_path: str | Path, above: tuple[Path, ...] = ()) -> Any:
    """Read a recipe file and those that it extends, unchecked, with paths as seen from here.

    Args:
        name_or_path: As in :func:`load_stages`.
        above: The files that extend this one.

    Raises:
        DataError: A file cannot be read or is not YAML.
        RecipeError: It extends itself.
    """
    path = recipe_file(name_or_path, shipped_editors())
    if path.resolve() in above:
        names = " -> ".join(file.name for file in (*above, path.resolve()))
        raise RecipeError(path, [f"extends: the recipes extend each other ({names})"])
    raw = read_yaml_file(path)
    if not isinstance(raw, dict):
        return raw
    settings = _with_paths(raw, path.parent)
    if "extends" not in settings:
        return settings
    parent = str(settings.pop("extends"))
    if parent not in shipped_editors():
        parent = str(path.parent / parent)
    return merged(read_recipe(parent, (*above, path.resolve())), settings)


def merged(settings: Any, overrides: Any) -> Any:
    """Return settings with overrides: mappings key by key, tasks by name; lists and plain values are replaced."""
    if not isinstance(settings, dict) or not isinstance(overrides, dict):
        return overrides
    result = dict(settings)
    for key, value in overrides.items():
        current = settings.get(key)
        if key == "tasks" and isinstance(value, dict) and isinstance(current, list):
            current = _by_name(current)
        result[key] = merged(current, value)
    return result


def _by_name(tasks: list[Any]) -> Any:
    """Return a list of tasks as a mapping; unchanged if two have one name, which is reported later."""
    named = {entry["task"]: entry for entry in tasks if isinstance(entry, dict) and isinstance(entry.get("task"), str)}
    if len(named) < len(tasks):
        return tasks
    return {name: {key: value for key, value in entry.items() if key != "task"} for name, entry in named.items()}


def _with_paths(raw: dict[Any, Any], folder: Path) -> dict[Any, Any]:
    """Return settings whose paths, except those of training files, are relative to ``folder``, as seen from here."""
    settings = dict(raw)
    for section, key, names in (
        (None, "base", shipped_models()),
        (None, "start_from", shipped_editors()),
        ("editor", "sentence_encoder", ()),
        ("trunk_cache", "folder", None),
    ):
        inner = settings if section is None else settings.get(section)
        if isinstance(inner, dict) and isinstance(inner.get(key), str):
            inner = {**inner, key: resolve_path(inner[key], folder, names)}
            settings = inner if section is None else {**settings, section: inner}
    tasks = settings.get("tasks")
    if isinstance(tasks, dict):
        settings["tasks"] = {task_path(name, folder): entry for name, entry in tasks.items()}
    elif isinstance(tasks, list):
        settings["tasks"] = [
            entry | {"task": task_path(entry["task"], folder)} if isinstance(entry, dict) and "task" in entry else entry
            for entry in tasks
        ]
    if isinstance(settings.get("stages"), list):
        settings["stages"] = [
            _with_paths(stage, folder) if isinstance(stage, dict) else stage for stage in settings["stages"]
        ]
    return settings


def resolve_path(value: str, folder: Path, names: Collection[str] | None) -> str:
    """Return the path that a recipe or experiment in ``folder`` means, or a name unchanged.

    Args:
        value: A path if it starts with ``.`` or ``/`` or is there, else a name, such as a hub id.
        folder: Of the recipe.
        names: Shipped names, which are never paths; None if the value is always a path.
    """
    if names is not None and value in names:
        return value
    try:
        is_path = names is None or value.startswith((".", "/")) or (folder / value).exists()
    except (OSError, ValueError):  # too long, or with a NUL character: no path
        is_path = False
    return str(folder / value) if is_path else value


def task_path(name: Any, folder: Path) -> Any:
    """Return the path of a task's YAML file that a recipe or experiment in ``folder`` means, or a name unchanged."""
    is_path = isinstance(name, str) and Path(name).suffix in {".yaml", ".yml"}
    return str(folder / name) if is_path else name
