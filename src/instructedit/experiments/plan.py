"""Experiments: editors, the edits they are evaluated on, and the metrics that are reported."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from instructedit.artifacts import shipped_editors, shipped_models
from instructedit.errors import DataError, RecipeError, validation_messages
from instructedit.evaluation.metrics import get_metric
from instructedit.evaluation.protocols import Control, InstructionChooser, Protocol
from instructedit.instructions.templates import Split
from instructedit.storage.reading import as_mapping, read_yaml_file
from instructedit.tasks.loading import load_task
from instructedit.training.recipe import MAX_SEED, Recipe, Settings
from instructedit.training.recipe_file import merged, parse_stages, read_recipe, resolve_path, task_path

Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]


def _registered(metric: str) -> str:
    try:
        return get_metric(metric).name
    except DataError as error:
        raise ValueError(str(error)) from None


class EvaluationSpec(Settings):
    """One column of the table: which edits are evaluated, and how.

    Attributes:
        task: Whose instructions and probes are used: a name, or a YAML file relative to the experiment's.
        file: The edits, relative to the data folder; those that do not fit the task are left out.
        metrics: Those shown; all are in the JSON.
        instruction: See :func:`instructedit.evaluation.runner.evaluate`.
        templates: See :func:`instructedit.evaluation.runner.evaluate`.
        opposite: See :func:`instructedit.evaluation.runner.evaluate`.
        protocol: How the model is queried.
        name: Heads the column; by default composed of the other fields.
    """

    task: str
    file: str
    metrics: tuple[str, ...] = ("reliability", "generalization", "locality", "portability")
    instruction: Control = Control.UNSEEN
    templates: Split | None = None
    opposite: str | None = None
    protocol: Protocol = Protocol.PLAIN
    name: str | None = Field(None, min_length=1)

    @field_validator("metrics")
    @classmethod
    def _are_registered(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_registered(name) for name in names)

    @model_validator(mode="after")
    def _check_instruction(self) -> EvaluationSpec:
        try:
            InstructionChooser(load_task(self.task), self.instruction, self.templates, opposite=self.opposite)
        except DataError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def label(self) -> str:
        """Head of the column, and name of its results."""
        if self.name is not None:
            return self.name
        parts = [load_task(self.task).name]
        parts += [str(self.protocol)] if self.protocol is not Protocol.PLAIN else []
        parts += [str(self.instruction)] if self.instruction is not Control.UNSEEN else []
        parts += [f"{self.templates} templates"] if self.templates else []
        parts += [f"not {self.opposite}"] if self.opposite else []
        return ", ".join(parts)


class Entry(Settings):
    """One row of the table: an editor that is trained, or one that is not.

    Attributes:
        recipe: Is trained for every seed: a file relative to the experiment's, or a shipped editor's name.
        stages: Train only that many of the recipe's stages; None trains all.
        overrides: Override settings of every stage; see :mod:`instructedit.training.recipe_file`.
        pretrained: An editor file, or a direct method by name or YAML file; seeds make no difference.
    """

    recipe: str | None = None
    stages: int | None = Field(None, ge=1)
    overrides: dict[str, Any] = Field(default_factory=dict)
    pretrained: str | None = None

    @model_validator(mode="after")
    def _check_kind(self) -> Entry:
        if (self.recipe is None) == (self.pretrained is None):
            raise ValueError("give either `recipe` (the editor is trained) or `pretrained`")
        if self.pretrained is not None and (self.overrides or self.stages):
            raise ValueError(
                "`overrides` and `stages` need a `recipe`; the settings of a direct method belong in its YAML file"
            )
        return self


class Experiment(Settings):
    """A table of editors and evaluations.

    Attributes:
        title: Above the table.
        base: Base model of all editors.
        dtype: Data type of its weights.
        seeds: One training each.
        edits: Per evaluation, drawn at random, the same for all editors.
        tests: The columns.
        editors: The rows, by label.
        compare: Pairs of labels whose difference is reported, edit by edit.
        by_knowledge: Whether metrics are also reported apart for facts that the base model knows and those that it does
            not, and for terciles of its certainty of the true answer.
        overview: A metric that is shown for all evaluations and editors in one table first.
        published: Figures of others in percent, by source, editor's label and evaluation's label, in the order of the
            evaluation's metrics.
    """

    title: str
    base: str = "bundled"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    seeds: tuple[Seed, ...] = Field((0, 1, 2), min_length=1)
    edits: int = Field(120, ge=1, le=1_000_000)
    tests: tuple[EvaluationSpec, ...] = Field(min_length=1)
    editors: dict[str, Entry] = Field(min_length=1)
    compare: tuple[tuple[str, str], ...] = ()
    by_knowledge: bool = False
    overview: str | None = None
    published: dict[str, dict[str, dict[str, tuple[float | None, ...]]]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_labels(self) -> Experiment:
        names = [slug(test.label) for test in self.tests]
        repeated = sorted({test.label for test in self.tests if names.count(slug(test.label)) > 1})
        folders = [slug(label) for label in self.editors]
        shared = sorted(label for label in self.editors if folders.count(slug(label)) > 1)
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: a seed is listed twice")
        if repeated:
            raise ValueError(f"tests have the same name: {', '.join(repeated)}; give each a `name`")
        if shared:
            raise ValueError(f"editors would share one folder of results: {', '.join(shared)}; name them differently")
        unknown = sorted({label for pair in self.compare for label in pair} - self.editors.keys())
        if unknown:
            raise ValueError(f"compare names editors that are not listed: {', '.join(unknown)}")
        return self

    @field_validator("overview")
    @classmethod
    def _is_registered(cls, name: str | None) -> str | None:
        return None if name is None else _registered(name)

    def work(self) -> list[tuple[str, int]]:
        """Return (label, seed) of every editor to train or evaluate."""
        return [
            (label, seed)
            for seed in self.seeds
            for label, entry in self.editors.items()
            if entry.recipe is not None or seed == self.seeds[0]
        ]


def slug(label: str) -> str:
    """Return a label as a file name of lower-case letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")


def load_experiment(path: Path) -> Experiment:
    """Read an experiment; its paths, relative to its file, become relative to the working directory.

    Raises:
        RecipeError: The experiment has mistakes; all are listed.
        DataError: The file cannot be read.
    """
    raw = as_mapping(read_yaml_file(path), path)
    if isinstance(raw.get("tests"), list):
        raw = raw | {"tests": [_with_task_paths(test, path.parent) for test in raw["tests"]]}
    try:
        experiment = Experiment.model_validate(raw)
    except ValidationError as error:
        raise RecipeError(path, validation_messages(error)) from None
    editors = {}
    for label, entry in experiment.editors.items():
        paths = {"recipe": entry.recipe, "pretrained": entry.pretrained}
        resolved = {
            key: resolve_path(value, path.parent, shipped_editors())
            for key, value in paths.items()
            if value is not None
        }
        editors[label] = entry.model_copy(update=resolved)
    base = resolve_path(experiment.base, path.parent, shipped_models())
    return experiment.model_copy(update={"editors": editors, "base": base})


def _with_task_paths(test: Any, folder: Path) -> Any:
    """Return a test, unchecked, with the paths of its tasks as seen from here."""
    if not isinstance(test, dict):
        return test
    return test | {key: task_path(test[key], folder) for key in ("task", "opposite") if key in test}


def needed_files(experiment: Experiment) -> set[str]:
    """Return the data files that the tests and the recipes of a loaded experiment name.

    Raises:
        DataError: As :func:`stages_of`.
        RecipeError: As :func:`stages_of`.
    """
    trained = [entry for entry in experiment.editors.values() if entry.recipe is not None]
    recipes = [recipe for entry in trained for recipe in stages_of(entry, experiment.base, experiment.seeds[0])]
    mixes = [mix for recipe in recipes for mix in recipe.tasks]
    return {test.file for test in experiment.tests} | {name for mix in mixes for name in mix.files}


def stages_of(entry: Entry, base: str, seed: int) -> list[Recipe]:
    """Return the settings of a row's stages for one seed, with its overrides.

    Raises:
        DataError: The recipe cannot be read.
        RecipeError: The recipe or the overrides have mistakes.
    """
    assert entry.recipe is not None
    overrides = merged(entry.overrides, {"base": base, "seed": seed})
    return parse_stages(read_recipe(entry.recipe), entry.recipe, overrides=overrides, count=entry.stages)
