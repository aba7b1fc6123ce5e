"""The batched runner: many independent edits at once, each with all its probes, before and after."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

from instructedit.data.pool import RecordPool
from instructedit.editors.base import Editor, Edits
from instructedit.editors.instructedit import with_instruction
from instructedit.errors import DataError
from instructedit.evaluation.generation import generate, matches, natural_stop, normalised
from instructedit.evaluation.intervals import Estimate, estimate
from instructedit.evaluation.metrics import ngram_entropy, score_and_magnitude, sentiment_shift
from instructedit.evaluation.protocols import Control, InstructionChooser, Protocol, described
from instructedit.evaluation.scoring import Query, Scored, score
from instructedit.instructions.templates import Split
from instructedit.models.language_model import LanguageModel
from instructedit.records import PORTABILITY_KINDS, EditRecord, ProbeKind
from instructedit.tasks.loading import load_task
from instructedit.tasks.task import Task

#: Probes of one kind that a record contributes at most; a few records have dozens.
PROBES_A_KIND = 8
REPLIES = 5
FLUENCY_TOKENS = 60
TRUNK_BYTES = 500_000_000


@dataclass(frozen=True)
class Evaluation:
    """Scores of one task.

    Attributes:
        task, protocol, instruction: what was measured.
        metrics: each metric's mean and 95% interval over edits.
        edits: how many edits.
        seconds: wall time of all of it.
        records: every edit's own values, by record id.
    """

    task: str
    protocol: Protocol
    instruction: str
    metrics: dict[str, Estimate]
    edits: int
    seconds: float
    records: dict[str, dict[str, float]] = field(repr=False, default_factory=dict)

    def as_dict(self, with_records: bool = False) -> dict[str, Any]:
        """For JSON."""
        found: dict[str, Any] = {
            "task": self.task,
            "protocol": str(self.protocol),
            "instruction": self.instruction,
            "edits": self.edits,
            "interval": "95%, bootstrap over edits",
            "seconds": round(self.seconds, 2),
            "metrics": {name: value.as_dict() for name, value in self.metrics.items()},
        }
        if with_records:
            found["records"] = self.records
        return found


@dataclass(frozen=True)
class _Probe:
    """One question to one record's edit: where its result goes, and how it is read.

    Attributes:
        wanted: one of ``answers`` is said; what the unedited model says is said still; or none of ``answers`` is.
    """

    metric: str
    edit: int
    prompt: str
    answers: tuple[str, ...]
    wanted: Literal["said", "kept", "gone"] = "said"

    @property
    def queries(self) -> list[Query]:
        """Of an answer under other names the first is scored; of answers that are to be gone, each."""
        scored = self.answers if self.wanted == "gone" else self.answers[:1]
        return [Query(self.edit, self.prompt, answer) for answer in scored]

    def value(self, after: Sequence[Scored], before: Sequence[Scored]) -> float:
        """Of its queries' scores."""
        if self.wanted == "kept":
            return after[0].agreement(before[0])
        if self.wanted == "gone":
            return float(all(scored.hits < 1 for scored in after))
        return after[0].hits

    def value_of_text(self, after: str, before: str) -> float:
        """Of texts that were generated."""
        if self.wanted == "kept":
            return float(normalised(natural_stop(after)) == normalised(natural_stop(before)))
        if self.wanted == "gone":
            said = normalised(after)
            return float(not any(said.startswith(normalised(answer)) for answer in self.answers))
        return float(matches(after, self.answers))


def evaluate(
    editor: Editor,
    language_model: LanguageModel,
    task: Task,
    records: Sequence[EditRecord],
    *,
    protocol: Protocol = Protocol.PLAIN,
    instruction: Control = Control.UNSEEN,
    templates: Split | None = None,
    opposite: str | None = None,
    descriptions: Sequence[str] | None = None,
    fluency: bool = False,
    headlines_only: bool = False,
    seed: int = 0,
    batch: int = 32,
    on_edits: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """Edit the base model once per record, each edit by itself, and ask all its probes before and after.

    Args:
        instruction: which instruction the edits get; see :class:`Control`.
        templates, opposite, descriptions: see :class:`InstructionChooser`. The metric ``following`` is over the probes
            of which the task and its opposite want different things.
        fluency: also generate a text after every edit and measure its n-gram entropy.
        headlines_only: leave out portability, prefixed locality and the probability forms.
        batch: edits at a time.
        on_edits: called with the number of edits done.

    Raises:
        DataError: no records, one that the task has nothing to ask of, or the instruction does not fit the task.
        EditorError: a request cannot be edited.
    """
    if not records:
        raise DataError(f"there are no records of task {task.name} to evaluate")
    unfit = next((record for record in records if not task.fits(record)), None)
    if unfit is not None:
        raise DataError(f"has nothing of what task {task.name} is about", record=records.index(unfit))
    began = time.monotonic()
    chooser = InstructionChooser(task, instruction, templates, seed, opposite, descriptions)
    against = opposite or task.opposite
    deciding = _deciding(task, load_task(against)) if against else ()
    pool = RecordPool(records)
    values: dict[str, dict[str, float]] = {}
    # The edit, the questions before and the questions after meet the same texts: their trunk is run once.
    with language_model.remembering_trunks(editor.split_layer, memory=TRUNK_BYTES):
        for start in range(0, len(records), batch):
            part = list(records[start : start + batch])
            if task.is_wider:  # what a wider edit leaves alone is not in the record itself
                part = [pool.completed(record, 2, seed) for record in part]
            instructions = [chooser(record.request) for record in part]
            edits = editor.edit(language_model, [record.request for record in part], instructions)
            probes = _all_probes(part, instructions, task, protocol, headlines_only)
            found = _evaluate_part(
                editor.split_layer, language_model, part, probes, edits, protocol, headlines_only, deciding
            )
            if fluency:
                _add_fluency(found, language_model, part, edits)
            for record, row in zip(part, found, strict=True):
                values[f"{record.record_id}#{len(values)}"] = row
            on_edits(len(values))
    names = sorted({name for row in values.values() for name in row}, key=_metric_order)
    return Evaluation(
        task=task.name,
        protocol=protocol,
        instruction=described(instruction, templates),
        metrics={name: estimate([row[name] for row in values.values() if name in row], seed) for name in names},
        edits=len(values),
        seconds=time.monotonic() - began,
        records=values,
    )


def _evaluate_part(
    split_layer: int,
    language_model: LanguageModel,
    records: Sequence[EditRecord],
    probes: Sequence[_Probe],
    edits: Edits,
    protocol: Protocol,
    headlines_only: bool,
    deciding: Sequence[str],
) -> list[dict[str, float]]:
    collected: list[dict[str, list[float]]] = [defaultdict(list) for _ in records]
    if protocol is Protocol.GENERATION:
        prompts = [probe.prompt for probe in probes]
        rows = [probe.edit for probe in probes]
        longest = max(len(language_model.text.pair("a", answer).ids) for p in probes for answer in p.answers[:1])
        new_tokens = min(48, longest + 8)
        after = generate(language_model, prompts, edits=edits, rows=rows, new_tokens=new_tokens)
        before = generate(language_model, prompts, new_tokens=new_tokens)
        for probe, text, old in zip(probes, after, before, strict=True):
            row = collected[probe.edit]
            row[probe.metric].append(probe.value_of_text(text, old))
            if probe.metric == "reliability":
                row["reliability_before"].append(probe.value_of_text(old, old))
    else:
        queries = [query for probe in probes for query in probe.queries]
        scored_after = iter(score(language_model, split_layer, queries, edits))
        scored_before = iter(score(language_model, split_layer, queries, None))
        for probe in probes:
            count = len(probe.queries)
            new, past = list(islice(scored_after, count)), list(islice(scored_before, count))
            row = collected[probe.edit]
            row[probe.metric].append(probe.value(new, past))
            if probe.metric == "reliability":
                row["reliability_before"].append(probe.value(past, past))
        _add_likelihood_metrics(
            collected, split_layer, language_model, records, edits, probability_forms=not headlines_only
        )
    found = []
    for row in collected:
        means = {name: sum(numbers) / len(numbers) for name, numbers in row.items()}
        if f"locality/{ProbeKind.NEIGHBOUR}" in means:
            means["kept"] = means[f"locality/{ProbeKind.NEIGHBOUR}"]
        for whole in ("locality", "portability"):
            parts = [number for name, numbers in row.items() if name.startswith(whole + "/") for number in numbers]
            if parts:
                means[whole] = sum(parts) / len(parts)
        told = [number for name in deciding for number in row.get(name, ())]
        if told:
            means["following"] = sum(told) / len(told)
        found.append(means)
    return found


def _deciding(task: Task, opposite: Task) -> tuple[str, ...]:
    """The metrics that tell whether an edit followed the task and not its opposite."""
    changes, stays = task.deciding_kinds(opposite)
    names = [f"reached/{kind}" if kind is not ProbeKind.NEIGHBOUR else "changed" for kind in changes]
    names += [f"locality/{kind}" for kind in stays]
    return (*names, "reliability", "generalization") if task.forgets != opposite.forgets else tuple(names)


def _all_probes(
    records: Sequence[EditRecord],
    instructions: Sequence[str | None],
    task: Task,
    protocol: Protocol,
    headlines_only: bool,
) -> list[_Probe]:
    probes: list[_Probe] = []
    for edit, (record, text) in enumerate(zip(records, instructions, strict=True)):
        prefix = text if protocol is Protocol.PAPER else None
        probes += _probes(edit, record, prefix, task)
        if not headlines_only:
            probes += _further_probes(edit, record, prefix, task, text)
    return probes


def _probes(edit: int, record: EditRecord, prefix: str | None, task: Task) -> list[_Probe]:
    probes: list[_Probe] = []
    request = record.request
    target = (request.target,)
    for metric, prompts in (("reliability", (request.prompt,)), ("generalization", record.rephrases)):
        for prompt in prompts:
            asked = with_instruction(prompt, prefix)
            if task.forgets:
                assert request.ground_truth is not None  # see Task.fits
                probes.append(_Probe(metric, edit, asked, (*target, request.ground_truth), "gone"))
            else:
                probes.append(_Probe(metric, edit, asked, target))
    for kind in task.out_of_scope:
        for probe in record.of_kind(kind)[:PROBES_A_KIND]:
            probes.append(_Probe(f"locality/{kind}", edit, probe.prompt, probe.answers, "kept"))
    for kind in task.portability_in_scope:
        for probe in record.of_kind(kind)[:PROBES_A_KIND]:
            probes.append(_Probe(f"reached/{kind}", edit, with_instruction(probe.prompt, prefix), probe.answers))
    for probe in record.of_kind(ProbeKind.NEIGHBOUR)[:PROBES_A_KIND]:
        if ProbeKind.NEIGHBOUR not in task.out_of_scope:  # else it is asked as locality/neighbour already
            probes.append(_Probe("kept", edit, probe.prompt, probe.answers, "kept"))
        probes.append(_Probe("changed", edit, probe.prompt, target))
    return probes


def _further_probes(
    edit: int, record: EditRecord, prefix: str | None, task: Task, instruction: str | None
) -> list[_Probe]:
    probes = []
    for kind in PORTABILITY_KINDS:
        for probe in record.of_kind(kind)[:PROBES_A_KIND]:
            prompt = with_instruction(probe.prompt, prefix)
            probes.append(_Probe(f"portability/{kind}", edit, prompt, probe.answers))
    if instruction is not None:
        for kind in task.out_of_scope:
            for probe in record.of_kind(kind)[:PROBES_A_KIND]:
                prompt = with_instruction(probe.prompt, instruction)
                probes.append(_Probe("locality_prefixed", edit, prompt, probe.answers, "kept"))
    return probes


def _add_likelihood_metrics(
    collected: list[dict[str, list[float]]],
    split_layer: int,
    language_model: LanguageModel,
    records: Sequence[EditRecord],
    edits: Edits,
    probability_forms: bool,
) -> None:
    """ROME's probability forms where the true object is known, SERAC's sentiment shift where there are replies."""
    queries: list[Query] = []
    places: list[tuple[int, str]] = []

    def ask(edit: int, name: str, prompt: str, answer: str) -> None:
        places.append((edit, name))
        queries.append(Query(edit, prompt, answer))

    for edit, record in enumerate(records):
        request = record.request
        for reply in record.same_label_replies[:REPLIES]:
            ask(edit, "same", request.prompt, reply)
        for reply in record.other_label_replies[:REPLIES]:
            ask(edit, "other", request.prompt, reply)
        if probability_forms and request.ground_truth and record.of_kind(ProbeKind.NEIGHBOUR):
            prompts = [("efficacy", request.prompt)]
            prompts += [("paraphrase", prompt) for prompt in record.rephrases]
            prompts += [("neighbourhood", p.prompt) for p in record.of_kind(ProbeKind.NEIGHBOUR)[:PROBES_A_KIND]]
            for name, prompt in prompts:
                ask(edit, f"{name}:new", prompt, request.target)
                ask(edit, f"{name}:true", prompt, request.ground_truth)
    if not queries:
        return
    after: list[dict[str, list[Scored]]] = [defaultdict(list) for _ in records]
    before: list[dict[str, list[Scored]]] = [defaultdict(list) for _ in records]
    now: Sequence[Scored | None] = score(language_model, split_layer, queries, edits)
    then = _replies_before(language_model, split_layer, queries, places)
    for store, scored in ((after, now), (before, then)):
        for (edit, name), value in zip(places, scored, strict=True):
            if value is not None:
                store[edit][name].append(value)
    for row, new, old in zip(collected, after, before, strict=True):
        if new["same"] and new["other"]:
            likelihoods = [[s.log_likelihood for s in part] for part in (new["same"], new["other"], old["same"])]
            row["sentiment_shift"].append(sentiment_shift(*likelihoods))
        for name in ("efficacy", "paraphrase", "neighbourhood"):
            for first, second in zip(new[f"{name}:new"], new[f"{name}:true"], strict=True):
                ends = (first.log_likelihood, second.log_likelihood)
                right, magnitude = score_and_magnitude(*(ends if name != "neighbourhood" else ends[::-1]))
                row[f"{name}_score"].append(right)
                row[f"{name}_magnitude"].append(magnitude)


def _replies_before(
    language_model: LanguageModel, split_layer: int, queries: Sequence[Query], places: Sequence[tuple[int, str]]
) -> list[Scored | None]:
    """Only the wanted replies are needed from the unedited model."""
    wanted = [index for index, (_, name) in enumerate(places) if name == "same"]
    scored = score(language_model, split_layer, [queries[index] for index in wanted], None)
    found: list[Scored | None] = [None] * len(queries)
    for index, value in zip(wanted, scored, strict=True):
        found[index] = value
    return found


def _add_fluency(
    found: list[dict[str, float]], language_model: LanguageModel, records: Sequence[EditRecord], edits: Edits
) -> None:
    prompts = [record.request.prompt for record in records]
    texts = generate(language_model, prompts, edits=edits, rows=range(len(records)), new_tokens=FLUENCY_TOKENS)
    for row, prompt, text in zip(found, prompts, texts, strict=True):
        row["fluency"] = ngram_entropy((prompt + " " + text).split())


_ORDER = (
    "reliability",
    "generalization",
    "locality",
    "following",
    "kept",
    "changed",
    "portability",
    "sentiment_shift",
    "fluency",
)


def _metric_order(name: str) -> tuple[int, str]:
    return (_ORDER.index(name) if name in _ORDER else len(_ORDER), name)
