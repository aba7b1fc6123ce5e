"""Build recipes of base models, in stages; see :mod:`instructedit.training.recipe_file` for how stages are merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from instructedit.artifacts import recipe_file, shipped_models
from instructedit.errors import RecipeError, validation_messages
from instructedit.storage.reading import as_mapping, read_yaml_file
from instructedit.training.recipe import MAX_SEED, Settings
from instructedit.training.recipe_file import resolve_path, resolve_stages


class BaseModelSettings(Settings):
    """Shape of a base model, and its training in one stage."""

    vocabulary: int = Field(6144, ge=300, le=10_000_000, description="tokens in the byte-level BPE")
    blocks: int = Field(6, ge=1, le=1000)
    width: int = Field(256, ge=16, le=65_536, description="hidden size")
    heads: int = Field(4, ge=1, le=1024)
    positions: int = Field(256, ge=32, le=1_000_000, description="longest sequence, tokens")
    epochs: int = Field(12, ge=1, le=1_000_000, description="passes over the corpus; each phrases the facts anew")
    batch_tokens: int = Field(6144, ge=256, le=100_000_000, description="padded tokens per step")
    matrix_learning_rate: float = Field(4e-3, gt=0, le=1000, description="Muon, on the blocks' matrices")
    learning_rate: float = Field(3e-3, gt=0, le=1000, description="AdamW, on everything else")
    weight_decay: float = Field(0.01, ge=0, le=1000)
    warmup_fraction: float = Field(0.02, ge=0, le=1, description="share of the steps, at the start")
    cooldown_fraction: float = Field(
        0.5, ge=0, le=1, description="share of the steps, at the end, with the rate falling linearly to zero"
    )
    whole_text_share: float = Field(0.1, ge=0, le=1, description="share of rows with a loss on the prompt, too")
    shifted_share: float = Field(0.2, ge=0, le=1, description="share of rows that start at a random position")
    exclusion_share: float = Field(0.0, ge=0, le=1, description="share of facts also queried with an answer ruled out")
    stated_context_share: float = Field(
        0.0, ge=0, le=1, description="share of facts also queried after a made-up statement"
    )
    seed: int = Field(0, ge=0, le=MAX_SEED)


class ShippedEdits(Settings):
    """Sources of the edits that ship with the package, and the subjects that they may not have.

    Attributes:
        avoid: Files that editors are trained on; no edit for tests or the demo has a subject of theirs.
        tests: Test files; no edit for training has a subject of theirs.
        recent: A KnowEdit file whose requests are not in the corpus.
        topics: A ConvSent file whose topics are used, but not its sentences.
    """

    avoid: tuple[str, ...]
    tests: tuple[str, ...] = ()
    recent: str
    topics: str


class BuildRecipe(Settings):
    """Settings of one stage of a base model; data files are relative to the data folder.

    Attributes:
        model: Shape and training.
        start_from: ``bundled`` or the folder of a model of the same shape to initialise from; None starts from random
            weights.
        trex: Folder with T-REx facts, to make the facts table anew; None uses the shipped table.
        named: KnowEdit files whose locality facts go into the table, by source name.
        records: Files whose true answers are in the corpus, in the files' own words.
        replies: ConvSent files whose replies are in the corpus.
        edits: How the edits are made that ship with the package; None makes none.
    """

    model: BaseModelSettings = BaseModelSettings()
    start_from: str | None = None
    trex: str | None = None
    named: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    records: tuple[str, ...] = ()
    replies: tuple[str, ...] = ()
    edits: ShippedEdits | None = None


def load_build_stages(name_or_path: str | Path) -> list[BuildRecipe]:
    """Read a build recipe.

    Args:
        name_or_path: A YAML file, or the name of a shipped base model for its recipe.

    Returns:
        The settings of each stage. From the second on, ``start_from`` is None; building fills it in.

    Raises:
        DataError: The file cannot be read.
        RecipeError: The recipe has mistakes; those of the first wrong stage are listed.
    """
    path = recipe_file(name_or_path, shipped_models())
    raw = as_mapping(read_yaml_file(path), path)
    if isinstance(raw.get("start_from"), str):
        raw = {**raw, "start_from": resolve_path(raw["start_from"], path.parent, shipped_models())}
    return [_parse(settings, place) for place, settings in resolve_stages(raw, path, ("start_from",))]


def _parse(settings: dict[Any, Any], place: object) -> BuildRecipe:
    try:
        return BuildRecipe.model_validate(settings)
    except ValidationError as error:
        raise RecipeError(place, validation_messages(error)) from None
