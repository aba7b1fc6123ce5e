"""Training recipes: every number a user may change, checked as a whole before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    StringConstraints,
    ValidationError,
    model_validator,
)

from instructedit.editors.gradient import GradientEditorConfig, editor_config
from instructedit.errors import DataError, EditorError, RecipeError, place_of, shorten
from instructedit.storage.reading import as_mapping, quoted, read_yaml_file

#: Beyond these limits nothing sensible happens: they catch a slip of the keyboard before hours of work.
MOST_STEPS = 100_000_000
MOST_ROWS = 1_000_000
MOST_WEIGHT = 1e6
MOST_GIGABYTES = 1e6
LARGEST_SEED = 2**32 - 1

Name = Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=r"^[^\x00]*$")]


def _config_of_method(fields: object) -> object:
    """Return the config of the method that ``fields["name"]`` names; the registry knows which class it has."""
    try:
        return fields if isinstance(fields, GradientEditorConfig) else editor_config(fields)
    except EditorError as error:
        raise ValueError(str(error)) from None


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TaskMix(_Strict):
    """One task of the mixture.

    Attributes:
        task: a shipped task's name or the path of a task file.
        files: training files, relative to the data folder.
        weight: multiplies the task's share of the mixture.
        locality: multiplies c_loc for the task's edits.
        worst_token: share of an answer's loss that stands on its worst token: a text generated freely is right only if
            every token is.
        recombine: share of the edits whose target, or sentence and target, come from other records.
        records: only that many of the records are trained on, drawn at random; None takes all.
    """

    task: Name
    files: tuple[Name, ...] = Field(min_length=1)
    weight: float = Field(1.0, gt=0, le=MOST_WEIGHT)
    locality: float = Field(1.0, ge=0, le=MOST_WEIGHT)
    worst_token: float = Field(0.0, ge=0, le=1)
    recombine: float = Field(0.0, ge=0, le=1)
    records: int | None = Field(None, ge=1, le=1_000_000_000)


class Objective(_Strict):
    """L = edit_weight * L_edit + locality_weight * L_loc (the paper's c_edit and c_loc)."""

    edit_weight: float = Field(1.0, ge=0, le=MOST_WEIGHT)
    locality_weight: float = Field(1.0, ge=0, le=MOST_WEIGHT)
    rephrase_weight: float = Field(0.5, ge=0, le=MOST_WEIGHT, description="paraphrases in L_edit; the paper has none")
    reach_weight: float = Field(
        0.5,
        ge=0,
        le=MOST_WEIGHT,
        description="in L_edit, what else a scope reaches: renamed neighbours, other names, what follows",
    )
    forget_weight: float = Field(
        1.5, ge=0, le=MOST_WEIGHT, description="unlikelihood of the old and the new answer, where a task forgets"
    )
    opposite_weight: float = Field(
        0.1, ge=0, le=MOST_WEIGHT, description="unlikelihood of replies with the opposite label"
    )
    first_token_weight: float = Field(
        1.0,
        gt=0,
        le=MOST_WEIGHT,
        description="of a wanted answer's first token against each other one: it decides which answer begins",
    )
    first_kept_weight: float = Field(1.0, gt=0, le=MOST_WEIGHT, description="the same, of answers that are to stay")
    locality_average: Literal["prompt", "token"] = Field(
        "prompt", description="KL averaged per prompt, or per token, where long answers weigh more"
    )
    stay_probes: int = Field(3, ge=1, le=1000, description="locality prompts an edit and step")
    neighbours: int = Field(
        2, ge=1, le=1000, description="same-object neighbours, and probes of each reached kind, a step"
    )
    own_sentence: float = Field(0.0, ge=0, le=1, description="share of neighbours asked in the edit's own sentence")
    prefix_queries: bool = Field(False, description="the instruction before rephrases too (the paper's protocol)")

    @model_validator(mode="after")
    def _first_is_of_a_prompt(self) -> Objective:
        if self.first_kept_weight != 1.0 and self.locality_average == "token":
            raise ValueError("first_kept_weight weighs inside a prompt: it needs locality_average: prompt")
        return self


class EncoderWarmup(_Strict):
    """Training of the instruction encoder alone, on telling the scopes of the grammar apart."""

    steps: int = Field(1200, ge=0, le=MOST_STEPS)
    batch: int = Field(64, ge=1, le=MOST_ROWS)
    learning_rate: float = Field(1e-3, gt=0, le=1000)
    weight_decay: float = Field(0.01, ge=0, le=1000)
    freeze: bool = Field(True, description="leave the encoder as it is afterwards")


class Optimisation(_Strict):
    """How long, how fast, and when to stop."""

    steps: int = Field(2000, ge=1, le=MOST_STEPS)
    batch: int = Field(16, ge=1, le=MOST_ROWS, description="edits a step")
    accumulate: int = Field(1, ge=1, le=MOST_ROWS, description="batches a step")
    learning_rate: float = Field(5e-4, gt=0, le=1000, description="Adam, hypernetwork")
    step_size_learning_rate: float = Field(5e-3, gt=0, le=1000, description="Adam, log_lr = log(alpha)")
    warmup: int = Field(50, ge=0, le=MOST_STEPS, description="steps")
    decay: float = Field(0.3, ge=0, le=1, description="last share of the steps, falling linearly to zero")
    clip: float = Field(100.0, gt=0, le=1e9, description="norm of all gradients together")
    validate_every: int = Field(250, ge=1, le=MOST_STEPS, description="steps")
    checkpoint_every: int = Field(250, ge=1, le=MOST_STEPS, description="steps")
    validation_edits: int = Field(64, ge=1, le=MOST_ROWS, description="held-out edits a task, never trained on")
    patience: int | None = Field(
        None, ge=1, le=MOST_STEPS, description="validations without a better loss before stopping"
    )
    threads: int | None = Field(None, ge=1, le=4096, description="CPU threads; None leaves PyTorch's choice")
    matmul_precision: Literal["highest", "high", "medium"] = Field(
        "highest", description="of float32 products; medium rounds factors to bf16, three times as fast with AMX"
    )
    mixed_precision: Literal["no", "bf16"] = Field(
        "no", description="bf16 computes matrix products in bfloat16 (autocast); parameters stay in float32"
    )


class TrunkMemory(_Strict):
    """How many trunk states are remembered, so that a text met again does not pass the frozen trunk again.

    They change no loss beyond the last digits, so a run may go on with another setting. Kept for the run, the last
    digits depend on what was met before, and a resumed run's losses are those of an unbroken one to about six
    digits; kept for a step, they are the same.
    """

    keep: Literal["step", "run"] = Field("step", description="forget at every step, or never")
    memory: float = Field(0.25, ge=0, le=MOST_GIGABYTES, description="GB held in memory; 0 remembers nothing")
    folder: Name | None = Field(None, description="where more of them go, for later runs too; None keeps none")
    disk: float = Field(8.0, ge=0, le=MOST_GIGABYTES, description="GB in the folder")


class Recipe(_Strict):
    """One editor's training."""

    base: Name = "bundled"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    seed: int = Field(0, ge=0, le=LARGEST_SEED)
    editor: Annotated[SerializeAsAny[GradientEditorConfig], BeforeValidator(_config_of_method)] = Field(
        default_factory=lambda: editor_config({})
    )
    start_from: Name | None = Field(
        None, description="an editor file to go on from; its encoder is not warmed up again"
    )
    tasks: tuple[TaskMix, ...] = Field(min_length=1)
    mixture: Literal["equal", "size", "temperature"] = "equal"
    temperature: float = Field(
        2.0, ge=1e-3, le=MOST_WEIGHT, description="shares proportional to size ** (1 / temperature)"
    )
    wordings: float = Field(0.5, ge=0, le=1, description="share of instructions drawn from the scope grammar")
    encoder_warmup: EncoderWarmup = EncoderWarmup()
    objective: Objective = Objective()
    optimisation: Optimisation = Optimisation()
    trunk_memory: TrunkMemory = TrunkMemory()
    store_dtype: Literal["float32", "bfloat16"] = "float32"

    def settings(self) -> dict[str, Any]:
        """What decides a run's numbers: all that is not the default, so that a field that is added later, and is not
        used, leaves older runs what they are. How trunks are remembered decides none.
        """
        kept = self.model_dump(mode="json", exclude_defaults=True, exclude={"trunk_memory"})
        return kept | {"editor": self.editor.model_dump(mode="json")}  # in full: each method has its own defaults

    @model_validator(mode="after")
    def _tasks_are_distinct(self) -> Recipe:
        names = [mix.task for mix in self.tasks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"tasks listed twice: {', '.join(twice)}; give one entry with all its files")
        return self


def parse_recipe(raw: Any, source: object = "recipe") -> Recipe:
    """Check a recipe.

    Raises:
        RecipeError: with every mistake, each by its place.
    """
    if not isinstance(raw, dict):
        raise RecipeError(source, ["expected `key: value` lines at the top level"])
    try:
        raw = as_mapping(raw)
    except DataError as error:
        raise RecipeError(source, [str(error)]) from None
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        mistakes = []
        problems = error.errors()
        for problem in problems:
            inside = [other for other in problems if other["loc"][: len(problem["loc"])] == problem["loc"]]
            if problem["type"] == "too_short" and len(inside) > 1:
                continue  # "too few" only because the entries inside are wrong, which is said anyway
            given = problem.get("input")
            shown = f" (given: {quoted(given)})" if isinstance(given, (str, int, float, bool)) else ""
            place = place_of(problem["loc"]) or "recipe"
            mistakes.append(f"{place}: {shorten(problem['msg'])}{shown}")
        raise RecipeError(source, mistakes) from None


def load_recipe(path: str | Path) -> Recipe:
    """Read a YAML recipe.

    Raises:
        DataError: it cannot be read or is not YAML.
        RecipeError: it has mistakes; all are listed.
    """
    return parse_recipe(read_recipe(path), path)


def read_recipe(path: str | Path, above: tuple[Path, ...] = ()) -> Any:
    """What a recipe says, with what it does not say taken from the one that it ``extends``, unchecked.

    Raises:
        DataError: it cannot be read or is not YAML.
        RecipeError: it extends itself.
    """
    here = Path(path).resolve()
    if here in above:
        raise RecipeError(path, [f"extends: goes round in a circle ({' -> '.join(p.name for p in (*above, here))})"])
    raw = read_yaml_file(here)
    if not isinstance(raw, dict) or "extends" not in raw:
        return raw
    own = {key: value for key, value in raw.items() if key != "extends"}
    return merged(read_recipe(here.parent / str(raw["extends"]), (*above, here)), own)


def merged(raw: Any, change: Any) -> Any:
    """``raw`` with ``change`` in it, key by key; lists and plain values are replaced."""
    if not isinstance(raw, dict) or not isinstance(change, dict):
        return change
    return raw | {key: merged(raw.get(key), value) for key, value in change.items()}
