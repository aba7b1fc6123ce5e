"""Training examples: a mixture of tasks, drawn anew for every step from the seed and the step's number alone.

No state is kept between steps, so a run that is killed and resumed draws what it would have drawn.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from instructedit.data.opinions import opinion_questions
from instructedit.data.pool import RecordPool
from instructedit.editors.instructedit import with_instruction
from instructedit.records import EditRecord, EditRequest, Probe, ProbeKind
from instructedit.tasks.task import Task
from instructedit.training.instruction_noise import with_noise
from instructedit.training.recipe import InstructionNoise, Objective
from instructedit.training.recombine import Recombination
from instructedit.training.unrelated_questions import draw_question

#: Share of edits whose request is phrased as a paraphrase; the original prompt is then the paraphrase to generalise to.
PARAPHRASED_REQUESTS = 0.25
NO_NOISE = InstructionNoise()


@dataclass(frozen=True)
class WeightedTarget:
    """A continuation of a prompt, with its weight in L_edit."""

    prompt: str
    answer: str
    weight: float


@dataclass(frozen=True)
class Example:
    """One edit of a training step.

    Attributes:
        task: Name of its task.
        request: What the editor is given.
        instruction: What the editor is conditioned on.
        likelihood_targets: Continuations that the edit must make likely.
        unlikelihood_targets: Continuations that the edit must make unlikely.
        locality_targets: (prompt, answer) pairs whose predictions the edit must not change.
        locality: Factor on c_loc for this edit.
        worst_token: Share of each answer's loss that goes to its worst token.
    """

    task: str
    request: EditRequest
    instruction: str | None
    likelihood_targets: tuple[WeightedTarget, ...]
    unlikelihood_targets: tuple[WeightedTarget, ...]
    locality_targets: tuple[tuple[str, str], ...]
    locality: float = 1.0
    worst_token: float = 0.0


@dataclass(frozen=True)
class Source:
    """A task with its records and its settings in the mixture; see :class:`TaskMix`."""

    task: Task
    pool: RecordPool
    weight: float = 1.0
    locality: float = 1.0
    recombine: float = 0.0
    worst_token: float = 0.0

    @cached_property
    def recombination(self) -> Recombination:
        """Recombination of this source's records."""
        return Recombination(self.pool.records)

    def draw(self, rng: random.Random) -> EditRecord:
        """Return a record, or one recombined from several."""
        record = rng.choice(self.pool.records)
        return self.recombination(record, rng) if rng.random() < self.recombine else record


def task_shares(sources: Sequence[Source], mixture: str, temperature: float) -> list[float]:
    """Return each task's share of the edits; the shares sum to 1.

    Args:
        sources: The tasks.
        mixture: ``equal``, ``size``, or ``temperature`` for size ** (1 / temperature); the task's weight multiplies it.
        temperature: Used by the last.
    """
    exponent = {"equal": 0.0, "size": 1.0, "temperature": 1.0 / temperature}[mixture]
    raw = [source.weight * len(source.pool.records) ** exponent for source in sources]
    return [value / sum(raw) for value in raw]


def draw_batch(
    sources: Sequence[Source],
    shares: Sequence[float],
    count: int,
    objective: Objective,
    scope_template_share: float,
    rng: random.Random,
    noise: InstructionNoise = NO_NOISE,
) -> list[Example]:
    """Return ``count`` examples; tasks are drawn evenly along their shares, so each batch is mixed as the mixture.

    Args:
        sources: The tasks.
        shares: Their shares, which sum to 1.
        count: Number of examples.
        objective: Numbers and weights of targets.
        scope_template_share: Share of instructions drawn from the templates of the task's scope.
        rng: Source of all randomness.
        noise: On the instructions.
    """
    offset = rng.random()
    points = [(index + offset) / count for index in range(count)]
    examples = []
    for point in points:
        edge, chosen = 0.0, len(sources) - 1
        for index, share in enumerate(shares):
            edge += share
            if point < edge:
                chosen = index
                break
        source = sources[chosen]
        example = make_example(source, source.draw(rng), objective, scope_template_share, rng, noise)
        others = _other_requests(sources, objective.other_requests, rng)
        others += tuple(draw_question(_any_record(sources, rng), rng) for _ in range(objective.unrelated_questions))
        examples.append(replace(example, locality_targets=example.locality_targets + others))
    return examples


def make_example(
    source: Source,
    record: EditRecord,
    objective: Objective,
    scope_template_share: float,
    rng: random.Random,
    noise: InstructionNoise = NO_NOISE,
) -> Example:
    """Turn a record into an example; its phrasing, instruction, paraphrase and probes are drawn at random.

    The draws come in a fixed order, on which the reproducibility of every trained editor depends.
    """
    task = source.task
    request = _draw_request(record, rng)
    own_instruction = task.instructions.draw_for_training(request, rng, scope_template_share, noise.kinds)
    instruction = with_noise(own_instruction, task, noise, rng)
    prefix = instruction if objective.prefix_queries else None
    likelihood, unlikelihood = _targets_of_request(task, record, request, prefix, objective, rng)
    neighbours = [
        source.pool.in_sentence_of(record.request, probe) if rng.random() < objective.own_sentence else probe
        for probe in source.pool.neighbours(record, objective.neighbours, rng)
    ]
    likelihood += _propagation_targets(task, record, request, neighbours, prefix, objective, rng)
    locality = _locality_targets(source, record, neighbours, objective, rng)
    return Example(
        task.name,
        request,
        instruction,
        tuple(likelihood),
        tuple(unlikelihood),
        tuple(locality),
        source.locality,
        source.worst_token,
    )


def _draw_request(record: EditRecord, rng: random.Random) -> EditRequest:
    """Return the record's request: for ConvSent with another question and reply, else at times as a paraphrase."""
    request = record.request
    if record.same_label_replies:
        question = rng.choice(opinion_questions()).format(topic=request.subject)
        return request.model_copy(update={"prompt": question, "target": rng.choice(record.same_label_replies)})
    if record.rephrases and rng.random() < PARAPHRASED_REQUESTS:
        return request.model_copy(update={"prompt": rng.choice(record.rephrases)})
    return request


def _query(prompt: str, prefix: str | None) -> str:
    return prompt if prefix is None else with_instruction(prompt, prefix)


def _targets_of_request(
    task: Task,
    record: EditRecord,
    request: EditRequest,
    prefix: str | None,
    objective: Objective,
    rng: random.Random,
) -> tuple[list[WeightedTarget], list[WeightedTarget]]:
    """Return likelihood and unlikelihood targets of the request itself and of a paraphrase."""
    prompts = [(_query(request.prompt, prefix), 1.0)]
    paraphrases = [prompt for prompt in (record.request.prompt, *record.rephrases) if prompt != request.prompt]
    if paraphrases and objective.rephrase_weight > 0 and "rephrase" in task.in_scope:
        prompts.append((_query(rng.choice(paraphrases), prefix), objective.rephrase_weight))
    likelihood: list[WeightedTarget] = []
    unlikelihood: list[WeightedTarget] = []
    if task.forgets:
        assert request.ground_truth is not None  # see Task.fits
        # Equal weights: if the old answer counted more, the easiest way to lose it would be to give the new one.
        unlikelihood += [
            WeightedTarget(prompt, answer, objective.forget_weight * weight)
            for prompt, weight in prompts
            for answer in (request.ground_truth, request.target)
        ]
    else:
        likelihood += [WeightedTarget(prompt, request.target, weight) for prompt, weight in prompts]
    if "opposite_label" in task.in_scope and record.other_label_replies and objective.opposite_weight > 0:
        reply = rng.choice(record.other_label_replies)
        unlikelihood.append(WeightedTarget(request.prompt, reply, objective.opposite_weight))
    return likelihood, unlikelihood


def _propagation_targets(
    task: Task,
    record: EditRecord,
    request: EditRequest,
    neighbours: Sequence[Probe],
    prefix: str | None,
    objective: Objective,
    rng: random.Random,
) -> list[WeightedTarget]:
    """Return likelihood targets beyond the request that the task's scope includes."""
    weight = objective.propagation_weight
    targets = []
    if task.renames:
        targets += [WeightedTarget(probe.prompt, request.target, weight) for probe in neighbours]
    for kind in task.portability_in_scope:
        probes = record.of_kind(kind)
        for probe in rng.sample(probes, min(objective.neighbours, len(probes))):
            targets.append(WeightedTarget(_query(probe.prompt, prefix), rng.choice(probe.answers), weight))
    return targets


def _locality_targets(
    source: Source, record: EditRecord, neighbours: Sequence[Probe], objective: Objective, rng: random.Random
) -> list[tuple[str, str]]:
    """Return (prompt, answer) pairs that the edit must not change: neighbours, the record's probes, unrelated ones."""
    kinds = source.task.out_of_scope
    others = [probe for probe in record.of_kind(*kinds) if probe.kind is not ProbeKind.NEIGHBOUR]
    rng.shuffle(others)
    # The probe that names the new target and asks for the old answer is the hardest to keep: it always comes first.
    others.sort(key=lambda probe: probe.kind is not ProbeKind.FORGETFULNESS)
    near = list(neighbours) if ProbeKind.NEIGHBOUR in kinds else []
    # At least one probe of another kind stands beside the neighbours.
    probes = [*near, *others[: max(1, objective.locality_probes - len(near))]]
    targets = [(probe.prompt, rng.choice(probe.answers)) for probe in probes]
    missing = objective.locality_probes - len(targets)
    if missing > 0 and ProbeKind.UNRELATED in kinds:
        targets += [(probe.prompt, probe.answers[0]) for probe in source.pool.unrelated(record, missing, rng)]
    return targets


def _other_requests(sources: Sequence[Source], count: int, rng: random.Random) -> tuple[tuple[str, str], ...]:
    """Return (prompt, answer) of other records of any task, in one of their phrasings; some are questions."""
    drawn = []
    for _ in range(count):
        record = _any_record(sources, rng)
        request = record.request
        drawn.append((rng.choice((request.prompt, *record.rephrases)), request.ground_truth or request.target))
    return tuple(drawn)


def _any_record(sources: Sequence[Source], rng: random.Random) -> EditRecord:
    """Return a record of any task, every task being as likely."""
    return rng.choice(rng.choice(sources).pool.records)
