"""The edit's own sentence about other subjects: whether it keeps its answer, or takes the new one.

    python benchmarks/same_sentence.py --out docs/results/same-sentence.json \
        smollm2 mend=runs/smollm2-mend/editor.safetensors FT-L=recipes/experiments/baselines/smollm2/ft.yaml

After "The Eiffel Tower is located in" has got the answer Rome, where is the Louvre? The other subjects stand in the
same sentence in CounterFact's training file, so they are of a kind that the sentence can be about, and have any answer.
Names that an editor may compare an edit with (`editor.null_space`) are left out. The answer is the first word of the
continuation by greedy decoding.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from editors_compared import comparing_parser, labelled
from result_files import write_result
from tqdm import tqdm

from instructedit.data.locations import find_data
from instructedit.editors.editing import make_edits
from instructedit.editors.lookup import load_editor
from instructedit.editors.saving import digest_of
from instructedit.editors.similar_subjects import known_subjects
from instructedit.evaluation.generation import generate, natural_stop, normalised
from instructedit.evaluation.intervals import estimate
from instructedit.models.language_model import LanguageModel, load_language_model
from instructedit.records import EditRecord
from instructedit.tasks.edits import read_edits
from instructedit.tasks.loading import load_task

TEST, OTHERS = "counterfact/counterfact-val.json", "counterfact/counterfact-train.json"


def sentence(record: EditRecord) -> str | None:
    """Return the prompt without its subject, or None where it does not name it."""
    request = record.request
    named = request.subject is not None and request.subject in request.prompt
    return request.prompt.replace(request.subject or "", "{}") if named else None


def questions(edits: int, others: int, seed: int) -> list[tuple[EditRecord, list[str]]]:
    """Return test edits with their sentence about other subjects."""
    task, folder = load_task("counterfact"), find_data()
    subjects: dict[str, list[str]] = defaultdict(list)
    for record in read_edits(task, OTHERS, folder, skip_incomplete=True):
        if (text := sentence(record)) is not None and record.request.subject not in known_subjects():
            subjects[text].append(record.request.subject or "")
    rng = random.Random(seed)
    records = []
    for record in read_edits(task, TEST, folder, skip_incomplete=True):
        names = sorted({*subjects[sentence(record) or ""]} - {record.request.subject})
        if len(names) >= others:
            records.append((record, names))
    drawn = rng.sample(records, edits)
    return [
        (
            record,
            [record.request.prompt.replace(record.request.subject or "", name) for name in rng.sample(names, others)],
        )
        for record, names in drawn
    ]


def first_word(answer: str) -> str:
    """Return the first word of an answer, for comparisons; letters and digits alone."""
    return next(iter(re.findall(r"\w+", normalised(natural_stop(answer)))), "")


def measure(
    language_model: LanguageModel, name: str, drawn: Sequence[tuple[EditRecord, list[str]]], task_name: str
) -> dict[str, Any]:
    """Return the share of edits that hold, and of other subjects that keep their answer or take the new one."""
    task = load_task(task_name)
    editor = load_editor(name, language_model)
    shares: dict[str, list[float]] = {"holds": [], "kept": [], "takes the new answer": []}
    for record, prompts in tqdm(drawn, desc=name):
        [delta] = make_edits(editor, language_model, [record.request], [task])
        before = [first_word(answer) for answer in generate(language_model, prompts, new_tokens=6)]
        edited = generate(language_model, [record.request.prompt, *prompts], delta=delta, new_tokens=6)
        own, *after = [first_word(answer) for answer in edited]
        target = first_word(record.request.target)
        shares["holds"].append(float(own == target))
        shares["kept"].append(sum(map(str.__eq__, before, after)) / len(prompts))
        changed = [new == target != old for old, new in zip(before, after, strict=True)]
        shares["takes the new answer"].append(sum(changed) / len(prompts))
    return {key: estimate(values).as_dict() for key, values in shares.items()}


def main() -> None:
    """Measure every editor and write the JSON."""
    parser = comparing_parser(__doc__.splitlines()[0], task="counterfact")
    parser.add_argument("--others", type=int, default=4, help="other subjects an edit")
    options = parser.parse_args()
    language_model = load_language_model(options.base, dtype=options.dtype)
    drawn = questions(options.edits, options.others, seed=0)
    rows = []
    for label, name in labelled(options.editors):
        shares = measure(language_model, name, drawn, options.task)
        rows.append({"editor": label, "editor_digest": digest_of(name), **shares})
        print(label, {key: round(100 * value["mean"], 1) for key, value in shares.items()}, flush=True)
    write_result(options.out, language_model, rows, file=TEST, others=OTHERS, task=options.task, seed=0,
                 edits=options.edits, prompts=options.others)  # fmt: skip


if __name__ == "__main__":
    main()
