"""What an experiment is: editors, the edits they are tested on, and what is reported of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from instructedit.errors import DataError, RecipeError, mistakes_of
from instructedit.evaluation.protocols import Control, InstructionChooser, Protocol
from instructedit.storage.reading import as_mapping, read_yaml_file
from instructedit.tasks.loading import load_task
from instructedit.training.recipe import LARGEST_SEED, Recipe, merged, parse_recipe, read_recipe

Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Test(_Strict):
    """One column of the table.

    Attributes:
        task: whose instructions and probes are used.
        file: the edits, relative to the data folder; those that do not fit the task are left out.
        metrics: that are shown; all are in the JSON.
        instruction, templates, opposite: see :func:`instructedit.evaluation.runner.evaluate`.
        protocol: how is asked.
        name: the column's head; made from the others where it is left out.
    """

    __test__ = False  # for pytest

    task: str
    file: str
    metrics: tuple[str, ...] = ("reliability", "generalization", "locality", "portability")
    instruction: Control = Control.UNSEEN
    templates: Literal["validation", "test"] | None = None
    opposite: str | None = None
    protocol: Protocol = Protocol.PLAIN
    name: str = ""

    @model_validator(mode="after")
    def _can_be_asked(self) -> Test:
        try:
            InstructionChooser(load_task(self.task), self.instruction, self.templates, opposite=self.opposite)
        except DataError as error:
            raise ValueError(str(error)) from None
        return self

    @model_validator(mode="after")
    def _named(self) -> Test:
        if not self.name:
            parts = [self.task]
            parts += [str(self.protocol)] if self.protocol is not Protocol.PLAIN else []
            parts += [str(self.instruction)] if self.instruction is not Control.UNSEEN else []
            parts += [f"{self.templates} templates"] if self.templates else []
            parts += [f"not {self.opposite}"] if self.opposite else []
            object.__setattr__(self, "name", ", ".join(parts))
        return self


class Entry(_Strict):
    """One row of the table: an editor that is trained, or one that is ready.

    Attributes:
        recipe: is trained anew for every seed; relative to the experiment's file.
        then: recipes that go on from it, one after the other, whatever their own ``start_from``.
        change: what is different in these recipes, by their keys; lists are replaced.
        use: a direct method's name or YAML file, or an editor file; seeds make no difference.
    """

    recipe: str | None = None
    then: tuple[str, ...] = ()
    change: dict[str, Any] = {}
    use: str | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Entry:
        if (self.recipe is None) == (self.use is None):
            raise ValueError("give either `recipe` (it is trained) or `use` (it is ready)")
        if self.use is not None and (self.change or self.then):
            raise ValueError("`change` and `then` are for recipes; give numbers of a direct method in its YAML file")
        return self


class Experiment(_Strict):
    """A whole table.

    Attributes:
        title: above the table.
        base: the base model of all editors.
        seeds: one training each.
        edits: a test, drawn at random, the same for all editors.
        tests: the columns, by name.
        editors: the rows, by label.
        compare: pairs of labels whose difference is reported, edit by edit.
        overview: a metric that is shown for all tests and editors in one table first.
        published: other people's numbers, by source, label and test, in the order of the test's metrics; in percent.
    """

    title: str
    base: str = "bundled"
    seeds: tuple[Seed, ...] = Field((0, 1, 2), min_length=1)
    edits: int = Field(120, ge=1, le=1_000_000)
    tests: tuple[Test, ...] = Field(min_length=1)
    editors: dict[str, Entry] = Field(min_length=1)
    compare: tuple[tuple[str, str], ...] = ()
    overview: str | None = None
    published: dict[str, dict[str, dict[str, tuple[float | None, ...]]]] = {}

    @model_validator(mode="after")
    def _names_fit(self) -> Experiment:
        names = [test.name for test in self.tests]
        twice = sorted({name for name in names if names.count(name) > 1})
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: one is listed twice")
        if twice:
            raise ValueError(f"tests called alike: {', '.join(twice)}; give each a `name`")
        unknown = sorted({label for pair in self.compare for label in pair} - self.editors.keys())
        if unknown:
            raise ValueError(f"compare names editors that are not there: {', '.join(unknown)}")
        return self

    def work(self) -> list[tuple[str, int]]:
        """(label, seed) of everything that has to be run."""
        return [
            (label, seed)
            for seed in self.seeds
            for label, entry in self.editors.items()
            if entry.recipe is not None or seed == self.seeds[0]
        ]


def load_experiment(path: Path) -> Experiment:
    """Read an experiment; paths of recipes become those seen from here.

    Raises:
        RecipeError: with every mistake.
        DataError: the file cannot be read.
    """
    raw = as_mapping(read_yaml_file(path), path)
    try:
        found = Experiment.model_validate(raw)
    except ValidationError as error:
        raise RecipeError(path, mistakes_of(error)) from None
    editors = {}
    for label, entry in found.editors.items():
        here = {"recipe": entry.recipe, "use": entry.use if entry.use and entry.use.endswith(".yaml") else None}
        moved: dict[str, Any] = {key: str(path.parent / value) for key, value in here.items() if value is not None}
        moved["then"] = tuple(str(path.parent / value) for value in entry.then)
        editors[label] = entry.model_copy(update=moved)
    return found.model_copy(update={"editors": editors})


def recipes_of(entry: Entry, base: str, seed: int) -> list[Recipe]:
    """The recipes of a row in their order, with its changes, for one seed; the later ones' start is left open.

    Raises:
        DataError: a recipe cannot be read.
        RecipeError: a recipe or what is changed in it is wrong.
    """
    assert entry.recipe is not None
    found: list[Recipe] = []
    for path in (entry.recipe, *entry.then):
        ours: dict[str, Any] = {"base": base, "seed": seed}
        if found:
            ours["start_from"] = None
        found.append(parse_recipe(merged(merged(read_recipe(path), entry.change), ours), path))
    return found
