"""Which edit is trained on next: a mixture of tasks, drawn anew for every step from the step's number alone.

Nothing has to be remembered between steps, so a run that is killed and resumed draws what it would have drawn.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from instructedit.data.opinions import opinion_questions
from instructedit.data.pool import RecordPool
from instructedit.editors.instructedit import with_instruction
from instructedit.records import EditRecord, EditRequest, ProbeKind
from instructedit.tasks.task import Task
from instructedit.training.recipe import Objective
from instructedit.training.recombine import Recombination


@dataclass(frozen=True)
class Wanted:
    """A continuation whose likelihood is to rise (or to fall), and how much that counts."""

    prompt: str
    answer: str
    weight: float


@dataclass(frozen=True)
class Example:
    """One edit of a training step.

    Attributes:
        task: its task's name.
        request, instruction: what the editor sees.
        rise, fall: continuations that are to become more, or less, likely.
        stay: (prompt, answer) pairs whose predictions are to stay.
        locality: multiplies c_loc for this edit.
        worst_token: share of each answer's loss that stands on its worst token.
    """

    task: str
    request: EditRequest
    instruction: str
    rise: tuple[Wanted, ...]
    fall: tuple[Wanted, ...]
    stay: tuple[tuple[str, str], ...]
    locality: float = 1.0
    worst_token: float = 0.0


@dataclass(frozen=True)
class Source:
    """A task with the records that it is trained on, and how often those are recombined."""

    task: Task
    pool: RecordPool
    weight: float = 1.0
    locality: float = 1.0
    recombine: float = 0.0
    worst_token: float = 0.0

    @cached_property
    def recombination(self) -> Recombination:
        """Of this source's records."""
        return Recombination(self.pool.records)

    def draw(self, rng: random.Random) -> EditRecord:
        """A record, or one recombined from several."""
        record = rng.choice(self.pool.records)
        return self.recombination(record, rng) if rng.random() < self.recombine else record


def shares(sources: Sequence[Source], mixture: str, temperature: float) -> list[float]:
    """Each task's share of the edits: equal, by size, or by size ** (1 / temperature); then its weight."""
    exponent = {"equal": 0.0, "size": 1.0, "temperature": 1.0 / temperature}[mixture]
    raw = [source.weight * len(source.pool.records) ** exponent for source in sources]
    return [value / sum(raw) for value in raw]


def draw(
    sources: Sequence[Source],
    weights: Sequence[float],
    count: int,
    objective: Objective,
    wordings: float,
    rng: random.Random,
) -> list[Example]:
    """``count`` examples; tasks are drawn evenly along their shares, so a batch is as mixed as the mixture."""
    offset = rng.random()
    points = [(index + offset) / count for index in range(count)]
    examples = []
    for point in points:
        edge, chosen = 0.0, len(sources) - 1
        for index, weight in enumerate(weights):
            edge += weight
            if point < edge:
                chosen = index
                break
        source = sources[chosen]
        examples.append(example(source, source.draw(rng), objective, wordings, rng))
    return examples


def example(source: Source, record: EditRecord, objective: Objective, wordings: float, rng: random.Random) -> Example:
    """What one record teaches in one step; probes, paraphrase and instruction are drawn at random."""
    task, request = source.task, record.request
    if record.same_label_replies:
        request = _another_reply(record, rng)
    elif record.rephrases and rng.random() < 0.25:
        # Now and then the edit is asked for in the words of the paraphrase, and the prompt is the paraphrase.
        request = request.model_copy(update={"prompt": rng.choice(record.rephrases)})
    instruction = task.instructions.draw_for_training(request, rng, wordings)

    def query(prompt: str) -> str:
        return with_instruction(prompt, instruction) if objective.prefix_queries else prompt

    prompts = [(query(request.prompt), 1.0)]
    others = [prompt for prompt in (record.request.prompt, *record.rephrases) if prompt != request.prompt]
    if others and objective.rephrase_weight > 0 and "rephrase" in task.in_scope:
        prompts.append((query(rng.choice(others)), objective.rephrase_weight))
    rise: list[Wanted] = []
    fall: list[Wanted] = []
    if task.forgets:
        assert request.ground_truth is not None  # see Task.fits
        # Both alike: where the old answer counts more, the easiest way to be rid of it is to say the new one.
        given, forgetting = (request.ground_truth, request.target), objective.forget_weight
        fall += [Wanted(prompt, answer, forgetting * weight) for prompt, weight in prompts for answer in given]
    else:
        rise += [Wanted(prompt, request.target, weight) for prompt, weight in prompts]
    if "opposite_label" in task.in_scope and record.other_label_replies and objective.opposite_weight > 0:
        fall.append(Wanted(request.prompt, rng.choice(record.other_label_replies), objective.opposite_weight))
    neighbours = [
        source.pool.in_sentence_of(record.request, probe) if rng.random() < objective.own_sentence else probe
        for probe in source.pool.neighbours(record, objective.neighbours, rng)
    ]
    if task.renames:
        rise += [Wanted(probe.prompt, request.target, objective.reach_weight) for probe in neighbours]
    for kind in task.portability_in_scope:
        found = record.of_kind(kind)
        for probe in rng.sample(found, min(objective.neighbours, len(found))):
            rise.append(Wanted(query(probe.prompt), rng.choice(probe.answers), objective.reach_weight))
    own = [probe for probe in record.of_kind(*task.out_of_scope) if probe.kind is not ProbeKind.NEIGHBOUR]
    rng.shuffle(own)
    # The probe that names the new target and asks for the old answer is the hardest to keep: always among them.
    own.sort(key=lambda probe: probe.kind is not ProbeKind.FORGETFULNESS)
    near = neighbours if ProbeKind.NEIGHBOUR in task.out_of_scope else []
    # Neighbours leave at least one place to another kind of probe.
    kept = [*near, *own[: max(1, objective.stay_probes - len(near))]]
    stay = [(probe.prompt, rng.choice(probe.answers)) for probe in kept]
    missing = objective.stay_probes - len(stay)
    if missing > 0 and ProbeKind.UNRELATED in task.out_of_scope:
        stay += [(probe.prompt, probe.answers[0]) for probe in source.pool.unrelated(record, missing, rng)]
    return Example(
        task.name, request, instruction, tuple(rise), tuple(fall), tuple(stay), source.locality, source.worst_token
    )


def _another_reply(record: EditRecord, rng: random.Random) -> EditRequest:
    """ConvSent: the topic's question and wanted reply are drawn anew in every step."""
    question = rng.choice(opinion_questions()).format(topic=record.request.subject)
    return record.request.model_copy(update={"prompt": question, "target": rng.choice(record.same_label_replies)})


def split_validation(
    pools: Mapping[str, Sequence[EditRecord]], per_task: int, seed: int
) -> tuple[dict[str, list[EditRecord]], dict[str, list[EditRecord]]]:
    """Hold out ``per_task`` records of each task by SUBJECT, over all tasks at once.

    Two tasks may read the same file; a subject held out in one is trained on in none.

    Returns:
        training and validation records by task.
    """
    held: set[str] = set()
    for name, records in sorted(pools.items()):
        subjects = sorted({_subject(record) for record in records})
        random.Random(f"{seed}-{name}").shuffle(subjects)
        already = sum(_subject(record) in held for record in records)
        held.update(subjects[: max(0, min(per_task, max(1, len(subjects) // 5)) - already)])
    train = {name: [r for r in records if _subject(r) not in held] for name, records in pools.items()}
    validation = {name: [r for r in records if _subject(r) in held][:per_task] for name, records in pools.items()}
    return train, validation


def _subject(record: EditRecord) -> str:
    return record.request.subject or record.request.prompt
