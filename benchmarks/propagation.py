"""Does an edit reach the questions that follow from it, for relations and entities that training had and had not?

    python benchmarks/propagation.py --out docs/results/propagation-smollm2.json smollm2 in-context \
        mend=runs/smollm2-mend/editor.safetensors FT-L=recipes/experiments/baselines/smollm2/ft.yaml

After the edit "The name of the country of citizenship of Ann is" Canada, what is the capital of that country? The
questions are the reasoning and logical probes of a test file (RippleEdits' kinds, Cohen et al. 2024). A question's
relation is seen if the editor's training had the same sentence, with any subject in it; its entity is seen if its
answer occurs in training as an answer or a subject. The fact in the prompt (`in-context`) is the reference.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from editors_compared import comparing_parser, labelled
from result_files import write_result

from instructedit.data.locations import find_data
from instructedit.editors.lookup import load_editor
from instructedit.editors.saving import digest_of
from instructedit.evaluation.metrics.metric import Metric
from instructedit.evaluation.metrics.query import MetricQuery
from instructedit.evaluation.queries import RecordQueries
from instructedit.evaluation.runner import evaluate
from instructedit.models.language_model import load_language_model
from instructedit.records import EditRecord, ProbeKind
from instructedit.tasks.edits import read_edits
from instructedit.tasks.loading import load_task
from instructedit.training.data import read_sources
from instructedit.training.recipe_file import load_stages

KINDS = (ProbeKind.REASONING, ProbeKind.LOGICAL)


def sentence(prompt: str, subject: str | None) -> str:
    """Return a prompt with a gap in the place of its subject."""
    return prompt.replace(subject, "{}") if subject else prompt


@dataclass(frozen=True)
class Seen:
    """What training had.

    Attributes:
        relations: sentences with a gap for the subject.
        entities: subjects and answers, in lower case.
    """

    relations: frozenset[str]
    entities: frozenset[str]

    @classmethod
    def of(cls, records: Iterable[EditRecord]) -> Seen:
        """Collect the sentences and entities of records with all their probes."""
        relations: set[str] = set()
        entities: set[str] = set()
        for record in records:
            request = record.request
            prompts = (request.prompt, *record.rephrases, *(probe.prompt for probe in record.probes))
            relations |= {sentence(prompt, request.subject) for prompt in prompts}
            answers = [answer for probe in record.probes for answer in probe.answers]
            entities |= {
                name.casefold() for name in (request.subject, request.target, request.ground_truth, *answers) if name
            }
        return cls(frozenset(relations), frozenset(entities))

    def metric(self, relation: bool, entity: bool) -> Metric:
        """Return the accuracy on the questions whose relation and entity are seen or not."""

        def queries(plan: RecordQueries) -> list[MetricQuery]:
            return [
                query
                for kind in KINDS
                for query in plan.portability[kind]
                if (sentence(query.prompt, plan.record.request.subject) in self.relations) is relation
                and any(answer.casefold() in self.entities for answer in query.answers) is entity
            ]

        name = f"{'seen' if relation else 'unseen'} relation, {'seen' if entity else 'unseen'} entity"
        return Metric(
            name,
            "accuracy on questions that follow from the edit",
            "mean token accuracy",
            queries,
            lambda results: sum(result.score for result in results) / len(results),
        )


def main() -> None:
    """Measure every editor and write the JSON."""
    parser = comparing_parser(__doc__.splitlines()[0], task="recent")
    parser.add_argument("--recipe", default="smollm2", help="whose training records count as seen")
    parser.add_argument("--file", default="wikirecent/recent_test.reconstructed.json")
    options = parser.parse_args()
    data, task = find_data(), load_task(options.task)
    sources = [source for stage in load_stages(options.recipe) for source in read_sources(stage, data)[0]]
    seen = Seen.of(record for source in sources for record in source.pool.records)
    metrics = [seen.metric(relation, entity) for relation in (True, False) for entity in (True, False)]
    records = read_edits(task, options.file, data, skip_incomplete=True)
    drawn = random.Random(0).sample(records, options.edits)
    plans = [RecordQueries(row, record, task) for row, record in enumerate(drawn)]
    questions = {metric.name: sum(len(metric.queries(plan)) for plan in plans) for metric in metrics}
    language_model = load_language_model(options.base, dtype=options.dtype)
    rows: list[dict[str, Any]] = []
    for label, name in labelled(options.editors):
        editor = load_editor(name, language_model)
        evaluation = evaluate(editor, language_model, task, drawn, metrics=metrics)
        measured = {key: value.as_dict() for key, value in evaluation.metrics.items()}
        rows.append({"editor": label, "editor_digest": digest_of(name), "metrics": measured})
        print(label, {key: round(100 * value["mean"], 1) for key, value in measured.items()}, flush=True)
    write_result(options.out, language_model, rows, file=options.file, task=options.task, recipe=options.recipe, seed=0,
                 edits=options.edits, questions=questions)  # fmt: skip


if __name__ == "__main__":
    main()
