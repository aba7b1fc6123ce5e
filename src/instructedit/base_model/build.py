"""From build recipe to base model: facts table, corpus, training, recall, card."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from instructedit.artifacts import CARD, LOG, MODEL_WEIGHTS, shipped_models
from instructedit.base_model.corpus import read_corpus
from instructedit.base_model.pretrain import pretrain
from instructedit.base_model.recall import RECALL_SAMPLE, recall_by_kind, recall_by_relation, recall_samples
from instructedit.base_model.recipe import BuildRecipe
from instructedit.base_model.shipped_edits import write_shipped_edits
from instructedit.data.facts import FACTS_FILE, Fact, named_facts, read_facts, read_trex, write_facts
from instructedit.data.readers import read_records
from instructedit.errors import DataError, RecipeError
from instructedit.models.language_model import load_language_model
from instructedit.storage.reading import as_mapping, read_bytes, read_json_file
from instructedit.storage.writing import as_json, locked, make_folder, write_atomically
from instructedit.tasks.loading import shipped_tasks

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.safetensors"
FACTS = "facts.tsv.gz"
EDITS = "edits"


def build_stages(
    stages: Sequence[BuildRecipe],
    data: Path | None,
    out: Path,
    on_step: Callable[[int, int, float], None] = lambda step, steps, loss: None,
) -> dict[str, Any]:
    """Build a base model in stages, each from the model of the stage before; resume where a build was stopped.

    Args:
        stages: Settings of each stage.
        data: The data folder; None if no stage reads it.
        out: Folder for everything. A model of one stage is built here; stages are built in ``stage-1``, ``stage-2``,
            ..., and the files of the last are copied here.
        on_step: Called with the step, the number of steps and the loss.

    Returns:
        The card of the final model.

    Raises:
        DataError: As :func:`build_base`.
        CheckpointError: As :func:`build_base`.
        ModelError: As :func:`build_base`.
    """
    if len(stages) == 1:
        return build_base(stages[0], data, out, on_step)
    folders = [out / f"stage-{number}" for number in range(1, len(stages) + 1)]
    with locked(make_folder(out)):
        for number, (recipe, folder) in enumerate(zip(stages, folders, strict=True)):
            if number:
                recipe = recipe.model_copy(update={"start_from": str(folders[number - 1])})
            card = build_base(recipe, data, folder, on_step)
        for file in sorted(file for file in folders[-1].rglob("*") if file.is_file()):
            write_atomically(out / file.relative_to(folders[-1]), read_bytes(file))
    return card


def build_base(
    recipe: BuildRecipe,
    data: Path | None,
    out: Path,
    on_step: Callable[[int, int, float], None] = lambda step, steps, loss: None,
) -> dict[str, Any]:
    """Build one stage of a base model into ``out``; resume after the last epoch if it was stopped.

    The folder gets ``config.json``, the weights in bfloat16, the tokenizer, ``facts.tsv.gz``, ``card.json``,
    ``log.jsonl`` and, if the recipe makes them, the edits that ship with the package. A finished build is not repeated.

    Args:
        recipe: Settings of the stage.
        data: The data folder; None if the recipe reads none of its files.
        out: The folder.
        on_step: Called with the step, the number of steps and the loss.

    Returns:
        The card: sizes, recall by kind of query and by relation, and recipe, recall and history of each stage.

    Raises:
        DataError: The recipe names data files, but there is no data folder; or ``out`` cannot be written, or another
            process is building there.
        RecipeError: The model to start from has another shape.
        CheckpointError: The checkpoint is damaged, or of another recipe.
        ModelError: The loss is not finite.
    """
    if data is None and (recipe.records or recipe.replies or recipe.trex):
        raise DataError("this recipe needs the data sets; set INSTRUCTEDIT_DATA or give --data")
    with locked(make_folder(out)):
        settings = recipe.model_dump(mode="json") | {"start_from": _digest(recipe.start_from)}
        finished = _finished_card(out)
        if finished is not None and finished["stages"][-1]["recipe"] == settings:
            return finished
        return _build(recipe, settings, data, out, on_step)


def _build(
    recipe: BuildRecipe,
    settings: dict[str, Any],
    data: Path | None,
    out: Path,
    on_step: Callable[[int, int, float], None],
) -> dict[str, Any]:
    facts = gather_facts(recipe, data)
    folder = data or Path()
    record_files = [folder / name for name in recipe.records]
    reply_files = [folder / name for name in recipe.replies]
    corpus = read_corpus(facts, record_files, reply_files, instruction_prefixes())
    samples = recall_samples(corpus)

    def evaluate(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
        return recall_by_kind(model, tokenizer, samples)

    start = None if recipe.start_from is None else _load_start(recipe.start_from, recipe)
    checkpoint = out / CHECKPOINT
    model, tokenizer, history = pretrain(corpus, recipe.model, start, checkpoint, settings, on_step, evaluate)
    torch.nn.Module.to(model, torch.bfloat16)
    try:
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
    except (OSError, SafetensorError) as error:  # a full disk; the checkpoint stays, so the same command resumes
        raise DataError(f"the model cannot be written: {error}", file=out) from None
    write_facts(facts, out / FACTS)
    if recipe.edits is not None and data is not None:
        write_shipped_edits(facts, recipe.edits, data, out / EDITS)
    model.float()
    recall = evaluate(model, tokenizer)
    stages = [*_stages_before(recipe.start_from), {"recipe": settings, "recall": recall, "history": history}]
    card = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "facts": len(facts),
        "recall": recall,
        "recall_sample": RECALL_SAMPLE,
        "recall_by_relation": recall_by_relation(model, tokenizer, facts),
        "stages": stages,
    }
    write_atomically(out / LOG, "".join(as_json(entry) + "\n" for entry in log_entries(stages)).encode())
    write_atomically(out / CARD, (as_json(card, indent=2, file=out / CARD) + "\n").encode())
    checkpoint.unlink()
    return card


def log_entries(stages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the log of a base model: an entry per epoch of each stage."""
    return [{"stage": number, **epoch} for number, stage in enumerate(stages, 1) for epoch in stage["history"]]


def gather_facts(recipe: BuildRecipe, data: Path | None) -> list[Fact]:
    """Return the facts table: made anew from the sources, or the shipped one."""
    if recipe.trex is None or data is None:
        return read_facts(FACTS_FILE)
    facts = read_trex(data / recipe.trex)
    seen: set[tuple[str, str]] = set()
    for source, files in recipe.named.items():
        for name in files:
            for fact in named_facts(read_records(data / name, skip_incomplete=True), source):
                if (fact.relation, fact.subject) not in seen:
                    seen.add((fact.relation, fact.subject))
                    facts.append(fact)
    return facts


def instruction_prefixes() -> list[str]:
    """Return rendered instructions of training, for the few documents that one precedes."""
    texts = []
    for task in shipped_tasks().values():
        for template in task.instructions.templates:
            for label in ("positive", "negative") if "[LABEL]" in template else ("",):
                filled = template.replace("[LABEL]", label).replace("[TOPIC]", "the topic")
                texts.append(task.instructions.render(filled))
    return texts


def _load_start(source: str, recipe: BuildRecipe) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """Load the model and tokenizer to initialise from.

    Raises:
        RecipeError: The model has another shape than the recipe's.
    """
    loaded = load_language_model(source)
    model, tokenizer = loaded.model, loaded.tokenizer
    if not isinstance(model, GPT2LMHeadModel) or not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise RecipeError(source, ["start_from: not a model that `instructedit build-base` wrote"])
    config, settings = model.config, recipe.model
    expected = (settings.vocabulary, settings.blocks, settings.width, settings.heads, settings.positions)
    actual = (config.vocab_size, config.n_layer, config.n_embd, config.n_head, config.n_positions)
    if expected != actual:
        raise RecipeError(source, [f"start_from: the model has the shape {actual}, the recipe {expected}"])
    return model, tokenizer


def _folder(source: str) -> Path:
    return shipped_models().get(source, Path(source))


def _digest(source: str | None) -> str | None:
    """Return the SHA-256 of a model's weights file, which identifies it wherever it is; the name if there is none."""
    if source is None:
        return None
    file = _folder(source) / MODEL_WEIGHTS
    return hashlib.sha256(read_bytes(file)).hexdigest() if file.is_file() else source


def _stages_before(source: str | None) -> list[Any]:
    """Return the stages in the card of the model that a build starts from."""
    card = None if source is None else _read_card(_folder(source))
    return [] if card is None else list(card["stages"])


def _read_card(folder: Path) -> dict[str, Any] | None:
    """Return a model's card; None if it has none.

    Raises:
        DataError: The file is damaged, or is not a card.
    """
    file = folder / CARD
    if not file.is_file():
        return None
    card = as_mapping(read_json_file(file), file)
    stages = card.get("stages")
    if not isinstance(stages, list) or not stages or not all(isinstance(stage, dict) for stage in stages):
        raise DataError("is not the card of a base model: `stages` is missing", file=file)
    return card


def _finished_card(out: Path) -> dict[str, Any] | None:
    """Return the card of a finished build; None if there is none or it is damaged, as the build can be repeated."""
    try:
        card = _read_card(out)
    except DataError as error:
        logger.warning("%s; the model is built again", error)
        return None
    return card if card is None or "recipe" in card["stages"][-1] else None
