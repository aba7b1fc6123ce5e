"""From recipe to base model: facts table, corpus, tokenizer, training, recall."""

from __future__ import annotations

import logging
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from instructedit.base_model.corpus import Corpus, Document, read_corpus
from instructedit.base_model.pretrain import BaseModelRecipe, pretrain, recall
from instructedit.data.bundled_edits import FactEdits, named_requests
from instructedit.data.facts import FACTS_FILE, Fact, named_facts, read_facts, read_trex, write_facts
from instructedit.data.readers import read_records
from instructedit.data.scope_edits import ScopeEdits
from instructedit.errors import DataError, RecipeError, mistakes_of
from instructedit.models.language_model import BUNDLED, BUNDLED_FOLDER, CARD, load_language_model
from instructedit.records import EditRecord, ProbeKind
from instructedit.storage.reading import as_mapping, read_json_file, read_yaml_file
from instructedit.storage.writing import as_json, locked, make_folder, write_atomically
from instructedit.tasks.loading import shipped_tasks

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.safetensors"
RECALL_SAMPLE = 2000
RELATION_SAMPLE = 200
OWN_EDITS = 150
SCOPE_SUBJECTS = 1500
SCOPE_TRAINING = 3000


class OwnEdits(BaseModel):
    """Where the shipped demo edits take their entities from, and whom they have to avoid.

    Attributes:
        avoid: files whose subjects no demo edit may have: those that editors are trained on.
        tests: files whose subjects no edit that is made for training may have.
        recent: a KnowEdit file whose requests the base model was not taught.
        topics: a ConvSent file whose topics are used; its sentences are not.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    avoid: tuple[str, ...]
    tests: tuple[str, ...] = ()
    recent: str
    topics: str


class BuildRecipe(BaseModel):
    """How a base model is built; paths are relative to the data folder.

    Attributes:
        model: its shape and training.
        start_from: ``bundled`` or the folder of a model to go on from instead of random weights; it has to have
            the shape that ``model`` says.
        trex: folder with T-REx facts, to remake the facts table; None takes the shipped table.
        named: KnowEdit files whose locality facts go into the table, by source name.
        records: files whose true answers are taught in their own words.
        replies: ConvSent files whose replies are taught.
        edits: how the edits are made that ship with the package; None makes none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: BaseModelRecipe = BaseModelRecipe()
    start_from: str | None = None
    trex: str | None = None
    named: dict[str, tuple[str, ...]] = {}
    records: tuple[str, ...] = ()
    replies: tuple[str, ...] = ()
    edits: OwnEdits | None = None


def load_build_recipe(path: Path) -> BuildRecipe:
    """Read a YAML build recipe.

    Raises:
        DataError: it cannot be read.
        RecipeError: with every mistake.
    """
    raw = as_mapping(read_yaml_file(path), path)
    try:
        return BuildRecipe.model_validate(raw)
    except ValidationError as error:
        raise RecipeError(path, mistakes_of(error)) from None


def gather_facts(recipe: BuildRecipe, data: Path | None) -> list[Fact]:
    """The facts table: remade from the sources, or the shipped one."""
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
    """Rendered instructions that training may see, for the few documents that carry one."""
    texts = []
    for task in shipped_tasks().values():
        for template in task.instructions.templates:
            for label in ("positive", "negative") if "[LABEL]" in template else ("",):
                filled = template.replace("[LABEL]", label).replace("[TOPIC]", "the topic")
                texts.append(task.instructions.render(filled))
    return texts


def recall_samples(corpus: Corpus, seed: int = 5) -> dict[str, list[Document]]:
    """Documents to measure recall on: facts as statements, as questions, and in the data sets' own words."""
    rng = random.Random(seed)
    facts = rng.sample(list(corpus.facts), min(RECALL_SAMPLE, len(corpus.facts)))
    groups = rng.sample(list(corpus.true_answers), min(RECALL_SAMPLE, len(corpus.true_answers)))
    return {**_in_both_forms(facts, rng), "own_words": [rng.choice(group) for group in groups]}


def _in_both_forms(facts: Sequence[Fact], rng: random.Random) -> dict[str, list[Document]]:
    return {
        "statement": [Document(rng.choice(fact.statements()), fact.object) for fact in facts],
        "question": [Document(rng.choice(fact.questions()), fact.object) for fact in facts],
    }


def _recalls(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, samples: Mapping[str, Sequence[Document]]
) -> dict[str, float]:
    """Recall by kind of query, of the kinds that there are documents for."""
    return {name: round(recall(model, tokenizer, asked), 4) for name, asked in samples.items() if asked}


def recall_by_relation(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, facts: Sequence[Fact], seed: int = 5
) -> dict[str, dict[str, float]]:
    """What the model knows of each relation, as statements and as questions; relations in order of their facts."""
    relations: dict[str, list[Fact]] = defaultdict(list)
    for fact in facts:
        relations[fact.relation].append(fact)
    rng = random.Random(seed)
    table: dict[str, dict[str, float]] = {}
    for relation, known in sorted(relations.items(), key=lambda entry: (-len(entry[1]), entry[0])):
        asked = rng.sample(known, min(RELATION_SAMPLE, len(known)))
        recalls = _recalls(model, tokenizer, _in_both_forms(asked, rng))
        table[relation] = {"facts": len(known), "asked": len(asked), **recalls}
    return table


def unmet(tests: Sequence[EditRecord], training: Sequence[EditRecord]) -> list[EditRecord]:
    """The test records without what training asks in the same words; a record whose own prompt it asks goes whole."""
    asked = {probe.prompt for record in training for probe in record.probes}
    asked |= {prompt for record in training for prompt in (record.request.prompt, *record.rephrases)}
    judged = (ProbeKind.REASONING, ProbeKind.LOGICAL)
    left = [
        record.model_copy(
            update={"probes": tuple(p for p in record.probes if p.kind not in judged or p.prompt not in asked)}
        )
        for record in tests
        if record.request.prompt not in asked
    ]
    return [record for record in left if record.of_kind(*judged)]


def write_own_edits(facts: Sequence[Fact], recipe: OwnEdits, data: Path, out: Path) -> None:
    """Our own edits, a JSON Lines file a kind; same facts and files, same edits.

    Those of ``scope-train`` are for training: their subjects are in no test file, nor in the other kinds.
    """

    def subjects(files: Sequence[str]) -> set[str]:
        records = (record for name in files for record in read_records(data / name, skip_incomplete=True))
        return {record.request.subject or "" for record in records}

    avoid = subjects(recipe.avoid)
    maker = FactEdits(facts, avoid)
    topics = sorted({record.request.subject or "" for record in read_records(data / recipe.topics)})
    missing = named_requests(read_records(data / recipe.recent))
    kinds = {
        "counterfact": maker.counterfactual(OWN_EDITS),
        "questions": maker.questions(OWN_EDITS),
        "recent": maker.recent(missing, OWN_EDITS),
        "convsent": maker.opinions(topics, OWN_EDITS),
    }
    taken = subjects(recipe.tests) | {record.request.subject or "" for found in kinds.values() for record in found}
    scopes = ScopeEdits(facts)
    usable = [subject for subject in scopes.subjects() if subject not in taken]
    untrained = [subject for subject in usable if subject not in avoid]
    tested = set(random.Random(0).sample(untrained, min(SCOPE_SUBJECTS, len(untrained) // 2)))
    kinds["scope-test"] = scopes.records(tested, 2 * OWN_EDITS)
    kinds["scope-train"] = scopes.records(set(usable) - tested, SCOPE_TRAINING)
    kinds["scope-test"] = unmet(kinds["scope-test"], kinds["scope-train"])
    for kind, records in kinds.items():
        lines = "".join(record.model_dump_json(exclude_defaults=True) + "\n" for record in records)
        write_atomically(out / f"{kind}.jsonl", lines.encode())


def _load_start(recipe: BuildRecipe) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """The model and tokenizer to go on from.

    Raises:
        RecipeError: its shape is not the recipe's.
    """
    assert recipe.start_from is not None
    found = load_language_model(recipe.start_from)
    model, tokenizer = found.model, found.tokenizer
    if not isinstance(model, GPT2LMHeadModel) or not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise RecipeError(recipe.start_from, ["start_from: not a model that build-base makes"])
    config, shape = model.config, recipe.model
    mine = (shape.vocabulary, shape.blocks, shape.width, shape.heads, shape.positions)
    theirs = (config.vocab_size, config.n_layer, config.n_embd, config.n_head, config.n_positions)
    if mine != theirs:
        raise RecipeError(recipe.start_from, [f"start_from: has another shape, {theirs} instead of {mine}"])
    return model, tokenizer


def _card_of(source: str | None) -> dict[str, Any] | None:
    """The card of the model that this one goes on from."""
    return None if source is None else _read_card(BUNDLED_FOLDER if source == BUNDLED else Path(source))


def _read_card(folder: Path) -> dict[str, Any] | None:
    file = folder / CARD
    if not file.is_file():
        return None
    return as_mapping(read_json_file(file), file)


def _done(out: Path) -> dict[str, Any] | None:
    """The card of a finished build; a damaged one is as good as none, as the build that it is of can be made again."""
    try:
        return _read_card(out)
    except DataError as error:
        logger.warning("%s; the model is built anew", error)
        return None


def build_base(
    recipe: BuildRecipe,
    data: Path | None,
    out: Path,
    on_step: Callable[[int, int, float], None] = lambda step, steps, loss: None,
) -> dict[str, Any]:
    """Build a base model into ``out``: config, bf16 safetensors, tokenizer, ``facts.tsv.gz`` and ``card.json``.

    A build that was stopped goes on after its last whole pass; one that is done is not done again.

    Returns:
        The card: recipe, sizes, and recall by kind of query and by relation.

    Raises:
        DataError: the recipe names data files, but there is no data folder; or ``out`` cannot be written, or another
            process is building there.
        CheckpointError: another recipe's build was stopped in this folder.
        ModelError: the loss is not finite.
    """
    if data is None and (recipe.records or recipe.replies or recipe.trex):
        raise DataError("this recipe reads the data sets; set INSTRUCTEDIT_DATA or give --data")
    with locked(make_folder(out)):
        return _built(recipe, data, out, on_step)


def _built(
    recipe: BuildRecipe, data: Path | None, out: Path, on_step: Callable[[int, int, float], None]
) -> dict[str, Any]:
    settings = recipe.model_dump(mode="json")
    done = _done(out)
    if done is not None and done.get("recipe") == settings:
        return done
    facts = gather_facts(recipe, data)
    folder = data or Path()
    corpus = read_corpus(
        facts,
        [folder / name for name in recipe.records],
        [folder / name for name in recipe.replies],
        instruction_prefixes(),
    )
    samples = recall_samples(corpus)

    def measure(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
        return _recalls(model, tokenizer, samples)

    start = None if recipe.start_from is None else _load_start(recipe)
    checkpoint = out / CHECKPOINT
    model, tokenizer, history = pretrain(corpus, recipe.model, start, checkpoint, settings, on_step, measure)
    torch.nn.Module.to(model, torch.bfloat16)
    try:
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
    except (OSError, SafetensorError) as error:  # a full disk; the checkpoint stays, and the same command goes on
        raise DataError(f"the model cannot be written: {error}", file=out) from None
    write_facts(facts, out / "facts.tsv.gz")
    if recipe.edits is not None and data is not None:
        write_own_edits(facts, recipe.edits, data, out / "edits")
    model.float()
    card = {
        "recipe": settings,
        "parameters": sum(p.numel() for p in model.parameters()),
        "facts": len(facts),
        "recall": measure(model, tokenizer),
        "recall_sample": RECALL_SAMPLE,
        "recall_by_relation": recall_by_relation(model, tokenizer, facts),
        "history": history,
        "before": _card_of(recipe.start_from),
    }
    write_atomically(out / CARD, (as_json(card, indent=2, file=out / CARD) + "\n").encode())
    checkpoint.unlink()
    return card
