"""The batched runner: many independent edits at once, each with all its probes, before and after."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from instructedit.editors.base import Editor, Edits
from instructedit.editors.instructedit import with_instruction
from instructedit.errors import DataError
from instructedit.evaluation.generation import generate, matches, natural_stop, normalised
from instructedit.evaluation.intervals import Estimate, estimate
from instructedit.evaluation.metrics import ngram_entropy, score_and_magnitude, sentiment_shift
from instructedit.evaluation.protocols import Control, InstructionChooser, Protocol
from instructedit.evaluation.scoring import Query, Scored, score
from instructedit.models.language_model import LanguageModel
from instructedit.records import PORTABILITY_KINDS, EditRecord, ProbeKind
from instructedit.tasks.pool import RecordPool
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
    """One query of one record: where its result goes, and how it is read."""

    metric: str
    query: Query
    answers: tuple[str, ...]
    stays: bool  # compared with the unedited model instead of with the answer


def evaluate(
    editor: Editor,
    language_model: LanguageModel,
    task: Task,
    records: Sequence[EditRecord],
    *,
    protocol: Protocol = Protocol.PLAIN,
    instruction: Control = Control.UNSEEN,
    wording: str | None = None,
    fluency: bool = False,
    headlines_only: bool = False,
    seed: int = 0,
    batch: int = 32,
    on_edits: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """Edit the base model once per record, each edit by itself, and ask all its probes before and after.

    Args:
        instruction: which instruction the edits get; see :class:`Control`.
        wording: see :class:`InstructionChooser`.
        fluency: also generate a text after every edit and measure its n-gram entropy.
        headlines_only: leave out portability, prefixed locality and the probability forms.
        batch: edits at a time.
        on_edits: called with the number of edits done.

    Raises:
        DataError: no records, or the instruction does not fit the task.
        EditorError: a request cannot be edited.
    """
    if not records:
        raise DataError(f"there are no records of task {task.name} to evaluate")
    began = time.monotonic()
    chooser = InstructionChooser(task, instruction, wording, seed)
    pool = RecordPool(records)
    values: dict[str, dict[str, float]] = {}
    # The edit, the questions before and the questions after meet the same texts: their trunk is run once.
    with language_model.remembering_trunks(editor.cut, memory=TRUNK_BYTES):
        for start in range(0, len(records), batch):
            part = list(records[start : start + batch])
            if task.renames:  # what a renaming leaves alone is not in the record itself
                part = [pool.completed(record, 2, seed) for record in part]
            instructions = [chooser(record.request) for record in part]
            edits = editor.edit(language_model, [record.request for record in part], instructions)
            probes = _all_probes(part, instructions, task, protocol, headlines_only)
            found = _evaluate_part(editor.cut, language_model, part, probes, edits, protocol, headlines_only)
            if fluency:
                _add_fluency(found, language_model, part, edits)
            for record, row in zip(part, found, strict=True):
                values[f"{record.record_id}#{len(values)}"] = row
            on_edits(len(values))
    names = sorted({name for row in values.values() for name in row}, key=_metric_order)
    return Evaluation(
        task=task.name,
        protocol=protocol,
        instruction=str(instruction) + (f", {wording} wordings" if wording else ""),
        metrics={name: estimate([row[name] for row in values.values() if name in row], seed) for name in names},
        edits=len(values),
        seconds=time.monotonic() - began,
        records=values,
    )


def _evaluate_part(
    cut: int,
    language_model: LanguageModel,
    records: Sequence[EditRecord],
    probes: Sequence[_Probe],
    edits: Edits,
    protocol: Protocol,
    headlines_only: bool,
) -> list[dict[str, float]]:
    collected: list[dict[str, list[float]]] = [defaultdict(list) for _ in records]
    if protocol is Protocol.GENERATION:
        prompts = [probe.query.prompt for probe in probes]
        rows = [probe.query.edit for probe in probes]
        longest = max(len(language_model.text.pair("a", answer).ids) for p in probes for answer in p.answers[:1])
        new_tokens = min(48, longest + 8)
        after = generate(language_model, prompts, edits=edits, rows=rows, new_tokens=new_tokens)
        before = generate(language_model, prompts, new_tokens=new_tokens)
        for probe, text, old in zip(probes, after, before, strict=True):
            row = collected[probe.query.edit]
            same = normalised(natural_stop(text)) == normalised(natural_stop(old))
            row[probe.metric].append(float(same if probe.stays else matches(text, probe.answers)))
            if probe.metric == "reliability":
                row["reliability_before"].append(float(matches(old, probe.answers)))
    else:
        queries = [probe.query for probe in probes]
        scored_after = score(language_model, cut, queries, edits)
        scored_before = score(language_model, cut, queries, None)
        for probe, new, past in zip(probes, scored_after, scored_before, strict=True):
            row = collected[probe.query.edit]
            row[probe.metric].append(new.agreement(past) if probe.stays else new.hits)
            if probe.metric == "reliability":
                row["reliability_before"].append(past.hits)
        _add_likelihood_metrics(collected, cut, language_model, records, edits, probability_forms=not headlines_only)
    found = []
    for row in collected:
        means = {name: sum(numbers) / len(numbers) for name, numbers in row.items()}
        if f"locality/{ProbeKind.NEIGHBOUR}" in means:
            means["kept"] = means[f"locality/{ProbeKind.NEIGHBOUR}"]
        for whole in ("locality", "portability"):
            parts = [number for name, numbers in row.items() if name.startswith(whole + "/") for number in numbers]
            if parts:
                means[whole] = sum(parts) / len(parts)
        found.append(means)
    return found


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
    request = record.request
    target = (request.target,)
    probes = [_wanted("reliability", edit, with_instruction(request.prompt, prefix), target)]
    for prompt in record.rephrases:
        probes.append(_wanted("generalization", edit, with_instruction(prompt, prefix), target))
    for kind in task.stay:
        for probe in record.of_kind(kind)[:PROBES_A_KIND]:
            probes.append(_staying(f"locality/{kind}", edit, probe.prompt, probe.answers))
    for probe in record.of_kind(ProbeKind.NEIGHBOUR)[:PROBES_A_KIND]:
        if ProbeKind.NEIGHBOUR not in task.stay:  # else it is asked as locality/neighbour already
            probes.append(_staying("kept", edit, probe.prompt, probe.answers))
        probes.append(_wanted("changed", edit, probe.prompt, target))
    return probes


def _further_probes(
    edit: int, record: EditRecord, prefix: str | None, task: Task, instruction: str | None
) -> list[_Probe]:
    probes = []
    for kind in PORTABILITY_KINDS:
        for probe in record.of_kind(kind)[:PROBES_A_KIND]:
            prompt = with_instruction(probe.prompt, prefix)
            probes.append(_wanted(f"portability/{kind}", edit, prompt, probe.answers))
    if instruction is not None:
        for kind in task.stay:
            for probe in record.of_kind(kind)[:PROBES_A_KIND]:
                prompt = with_instruction(probe.prompt, instruction)
                probes.append(_staying("locality_prefixed", edit, prompt, probe.answers))
    return probes


def _wanted(metric: str, edit: int, prompt: str, answers: tuple[str, ...]) -> _Probe:
    return _Probe(metric, Query(edit, prompt, answers[0]), answers, stays=False)


def _staying(metric: str, edit: int, prompt: str, answers: tuple[str, ...]) -> _Probe:
    return _Probe(metric, Query(edit, prompt, answers[0]), answers, stays=True)


def _add_likelihood_metrics(
    collected: list[dict[str, list[float]]],
    cut: int,
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
    now: Sequence[Scored | None] = score(language_model, cut, queries, edits)
    then = _replies_before(language_model, cut, queries, places)
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
    language_model: LanguageModel, cut: int, queries: Sequence[Query], places: Sequence[tuple[int, str]]
) -> list[Scored | None]:
    """Only the wanted replies are needed from the unedited model."""
    wanted = [index for index, (_, name) in enumerate(places) if name == "same"]
    scored = score(language_model, cut, [queries[index] for index in wanted], None)
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


_ORDER = ("reliability", "generalization", "locality", "kept", "changed", "portability", "sentiment_shift", "fluency")


def _metric_order(name: str) -> tuple[int, str]:
    return (_ORDER.index(name) if name in _ORDER else len(_ORDER), name)
