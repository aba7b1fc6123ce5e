"""Training recipes: every number a user may change, checked as a whole before anything starts.

A :class:`Recipe` holds the settings of one training stage; :mod:`instructedit.training.stages` reads them from a file.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from instructedit.editors.gradient import GradientEditorConfig, editor_config
from instructedit.errors import DataError, EditorError, RecipeError, location_text, shorten
from instructedit.storage.reading import as_mapping, short_repr

#: Bounds far beyond any sensible value: they catch a typing mistake before hours of work.
MAX_STEPS = 100_000_000
MAX_ROWS = 1_000_000
MAX_WEIGHT = 1e6
MAX_GIGABYTES = 1e6
MAX_SEED = 2**32 - 1

Name = Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=r"^[^\x00]*$")]


def _config_of_method(fields: object) -> object:
    """Return the config of the method that ``fields["name"]`` names; the registry knows which class it has."""
    try:
        return fields if isinstance(fields, GradientEditorConfig) else editor_config(fields)
    except EditorError as error:
        raise ValueError(str(error)) from None


class Settings(BaseModel):
    """Base class of recipe settings: unknown fields are mistakes, and values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TaskMix(Settings):
    """One task of the training mixture."""

    task: Name = Field(description="name of a shipped task, or path of a task file")
    files: tuple[Name, ...] = Field(min_length=1, description="training files, relative to the data folder")
    weight: float = Field(1.0, gt=0, le=MAX_WEIGHT, description="factor on the task's share of the mixture")
    locality: float = Field(1.0, ge=0, le=MAX_WEIGHT, description="factor on c_loc for the task's edits")
    worst_token: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of an answer's loss that goes to its worst token: a generated answer is right only if "
        "every token is",
    )
    recombine: float = Field(
        0.0, ge=0, le=1, description="share of edits whose target, or sentence and target, come from other records"
    )
    records: int | None = Field(
        None, ge=1, le=1_000_000_000, description="train on only that many records, drawn at random; None takes all"
    )


class Objective(Settings):
    """Weights of L = edit_weight * L_edit + locality_weight * L_loc (the paper's c_edit and c_loc)."""

    edit_weight: float = Field(1.0, ge=0, le=MAX_WEIGHT)
    locality_weight: float = Field(1.0, ge=0, le=MAX_WEIGHT)
    rephrase_weight: float = Field(0.5, ge=0, le=MAX_WEIGHT, description="paraphrases in L_edit; the paper has none")
    propagation_weight: float = Field(
        0.5,
        ge=0,
        le=MAX_WEIGHT,
        description="in L_edit, other prompts that the scope includes: renamed neighbours, aliases, implications",
    )
    forget_weight: float = Field(
        1.5, ge=0, le=MAX_WEIGHT, description="unlikelihood of the old and the new answer, in forgetting tasks"
    )
    opposite_weight: float = Field(
        0.1, ge=0, le=MAX_WEIGHT, description="unlikelihood of replies with the opposite label"
    )
    first_token_weight: float = Field(
        1.0,
        gt=0,
        le=MAX_WEIGHT,
        description="of a target's first token relative to each later one: it decides which answer begins",
    )
    locality_first_token_weight: float = Field(
        1.0, gt=0, le=MAX_WEIGHT, description="the same for the answers of locality probes"
    )
    locality_average: Literal["prompt", "token"] = Field(
        "prompt", description="KL averaged per prompt, or per token, where long answers weigh more"
    )
    locality_probes: int = Field(3, ge=1, le=1000, description="locality prompts per edit and step")
    other_requests: int = Field(
        0,
        ge=0,
        le=1000,
        description="locality prompts per edit that are requests of other records of any task; some are questions, and "
        "without questions among what must stay an edit answers every question",
    )
    unrelated_questions: int = Field(
        0,
        ge=0,
        le=1000,
        description="locality prompts per edit that are questions about anything else, typed as people type them: an "
        "editor that meets few kinds of questions answers the others by the edit",
    )
    neighbours: int = Field(
        2, ge=1, le=1000, description="same-object neighbours, and probes of each kind in scope, per edit and step"
    )
    own_sentence: float = Field(0.0, ge=0, le=1, description="share of neighbours phrased as the edit's own sentence")
    prefix_queries: bool = Field(
        False, description="put the instruction before test prompts too (the paper's protocol)"
    )

    @model_validator(mode="after")
    def _check_token_weights(self) -> Objective:
        if self.locality_first_token_weight != 1.0 and self.locality_average == "token":
            raise ValueError("locality_first_token_weight needs `locality_average: prompt`")
        return self


class InstructionNoise(Settings):
    """Instructions that keep an editor from shortcuts; see :mod:`instructedit.training.instruction_noise`."""

    name: float = Field(0.0, ge=0, le=1, description="share of instructions under a name that tells nothing or lies")
    silent: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of instructions that say nothing about an edit, in tasks with `routing`, which need none",
    )
    missing: float = Field(0.3, ge=0, le=1, description="share of the silent ones that are no instruction at all")
    kinds: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of a scope's templates that are of two words, say what is not to happen, or are in another "
        "language than English",
    )
    misspelt: float = Field(0.0, ge=0, le=1, description="share of instructions with misspelt words")


class EncoderWarmup(Settings):
    """Training of the instruction encoder alone, to classify scopes, before the editor is trained."""

    steps: int = Field(1200, ge=0, le=MAX_STEPS)
    batch: int = Field(64, ge=1, le=MAX_ROWS, description="instructions per step")
    texts: int | None = Field(
        None,
        ge=1,
        le=MAX_ROWS,
        description="draw from that many instructions, whose states `encoder: base` computes once; None draws "
        "new ones in every step",
    )
    learning_rate: float = Field(1e-3, gt=0, le=1000, description="AdamW")
    weight_decay: float = Field(0.01, ge=0, le=1000)
    freeze: bool = Field(True, description="do not train the encoder any further afterwards")


class EncoderUpdate(Settings):
    """Further training of a trained encoder; see :mod:`instructedit.training.encoder_update`."""

    steps: int = Field(0, ge=0, le=MAX_STEPS, description="0 leaves the encoder as it is")
    batch: int = Field(96, ge=2, le=MAX_ROWS, description="instructions per step, half of them misread before")
    texts: int = Field(6000, ge=1, le=MAX_ROWS, description="instructions that are drawn")
    learning_rate: float = Field(5e-4, gt=0, le=1000, description="AdamW")
    read_as: dict[Name, Name] = Field(
        {}, description="scopes that no task of the training has, and the scope of a task like which they are read"
    )


class Optimisation(Settings):
    """Length, learning rates, batches and numerics of a stage."""

    steps: int = Field(2000, ge=1, le=MAX_STEPS)
    batch: int = Field(16, ge=1, le=MAX_ROWS, description="edits per batch")
    accumulate: int = Field(1, ge=1, le=MAX_ROWS, description="batches per step")
    learning_rate: float = Field(5e-4, gt=0, le=1000, description="Adam, hypernetwork")
    step_size_learning_rate: float = Field(5e-3, gt=0, le=1000, description="Adam, log_lr = log(alpha)")
    warmup_steps: int = Field(50, ge=0, le=MAX_STEPS, description="steps of linear warm-up")
    cooldown_fraction: float = Field(
        0.3, ge=0, le=1, description="share of the steps, at the end, with the rate falling linearly to zero"
    )
    clip: float = Field(100.0, gt=0, le=1e9, description="largest norm of all gradients together")
    validate_every: int = Field(250, ge=1, le=MAX_STEPS, description="steps")
    checkpoint_every: int = Field(250, ge=1, le=MAX_STEPS, description="steps")
    validation_edits: int = Field(64, ge=1, le=MAX_ROWS, description="held-out edits per task, never trained on")
    patience: int | None = Field(
        None, ge=1, le=MAX_STEPS, description="validations without a better loss before stopping"
    )
    threads: int | None = Field(None, ge=1, le=4096, description="CPU threads; None leaves PyTorch's choice")
    matmul_precision: Literal["highest", "high", "medium"] = Field(
        "highest", description="of float32 products; medium rounds factors to bf16, three times as fast with AMX"
    )
    mixed_precision: Literal["no", "bf16"] = Field(
        "no", description="bf16 computes matrix products in bfloat16 (autocast); parameters stay in float32"
    )


class TrunkCacheSettings(Settings):
    """Cache of trunk states, so that a text passes the frozen trunk once.

    It changes losses in the last digits at most, so a run may be resumed with another setting. With ``scope: step`` a
    resumed run has exactly the losses of an uninterrupted one; with ``scope: run`` they agree to about six digits.
    """

    scope: Literal["step", "run"] = Field("step", description="clear the cache at every step, or never")
    memory: float = Field(0.25, ge=0, le=MAX_GIGABYTES, description="GB in memory; 0 disables the cache")
    folder: Name | None = Field(None, description="also keep states here, for later runs; None keeps none")
    disk: float = Field(8.0, ge=0, le=MAX_GIGABYTES, description="GB in the folder")


class Recipe(Settings):
    """Settings of one training stage."""

    base: Name = "bundled"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    seed: int = Field(0, ge=0, le=MAX_SEED)
    editor: Annotated[SerializeAsAny[GradientEditorConfig], BeforeValidator(_config_of_method)] = Field(
        default_factory=lambda: editor_config({})
    )
    start_from: Name | None = Field(
        None, description="editor to initialise from: a shipped name or a file; its encoder is not warmed up again"
    )
    tasks: tuple[TaskMix, ...] = Field(min_length=1)
    mixture: Literal["equal", "size", "temperature"] = "equal"
    temperature: float = Field(
        2.0, ge=1e-3, le=MAX_WEIGHT, description="shares proportional to size ** (1 / temperature)"
    )
    scope_template_share: float = Field(
        0.5, ge=0, le=1, description="share of instructions drawn from the templates of the task's scope"
    )
    instruction_noise: InstructionNoise = InstructionNoise()
    chat: float = Field(0.0, ge=0, le=1, description="share of queries and edits in the base model's chat template")
    without_subject: float = Field(
        0.0, ge=0, le=1, description="share of edits that do not name their subject, which `editor.contrast` uses"
    )
    encoder_warmup: EncoderWarmup = EncoderWarmup()
    encoder_update: EncoderUpdate = EncoderUpdate()
    objective: Objective = Objective()
    optimisation: Optimisation = Optimisation()
    trunk_cache: TrunkCacheSettings = TrunkCacheSettings()
    store_dtype: Literal["float32", "bfloat16"] = "float32"

    def settings(self) -> dict[str, Any]:
        """Return all settings that decide a run's numbers; the trunk cache decides none."""
        return self.model_dump(mode="json", exclude={"trunk_cache"})

    @field_validator("tasks", mode="before")
    @classmethod
    def _read_mapping(cls, raw: Any) -> Any:
        """Accept ``{counterfact: {files: ...}}`` for ``[{task: counterfact, files: ...}]``."""
        return task_list(raw) if isinstance(raw, dict) else raw

    @model_validator(mode="after")
    def _check_distinct_tasks(self) -> Recipe:
        names = [mix.task for mix in self.tasks]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"tasks listed twice: {', '.join(repeated)}; give one entry with all its files")
        return self


def task_list(tasks: dict[str, Any]) -> list[Any]:
    """Return tasks given by name as a list of entries, in the same order."""
    return [{"task": name, **entry} if isinstance(entry, dict) else entry for name, entry in tasks.items()]


def parse_recipe(raw: Any, source: object = "recipe") -> Recipe:
    """Check the settings of one stage.

    Args:
        raw: Mapping of settings, as read from YAML or JSON.
        source: Where it comes from, for messages.

    Raises:
        RecipeError: With every mistake, each by its place.
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
        raise RecipeError(source, _mistakes(error, raw.get("tasks"))) from None


def _mistakes(error: ValidationError, tasks: Any) -> list[str]:
    """Return each mistake with its place; an entry of ``tasks`` that was given by name is placed by its name."""
    names = list(tasks) if isinstance(tasks, dict) else []
    mistakes = []
    problems = error.errors()
    for problem in problems:
        place = problem["loc"]
        nested = [other for other in problems if other["loc"][: len(place)] == place]
        if problem["type"] == "too_short" and len(nested) > 1:
            continue  # "too few" follows from the mistakes inside the entries, which are listed
        if names and len(place) > 1 and place[0] == "tasks" and isinstance(place[1], int):
            place = ("tasks", names[place[1]], *place[2:])
        value = problem.get("input")
        shown = f" (given: {short_repr(value)})" if isinstance(value, (str, int, float, bool)) else ""
        mistakes.append(f"{location_text(place) or 'recipe'}: {shorten(problem['msg'])}{shown}")
    return mistakes
