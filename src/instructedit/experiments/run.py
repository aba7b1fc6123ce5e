"""Running an experiment: every editor and seed in a process of its own, every result kept once it is computed."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from instructedit.editors.base import Editor
from instructedit.editors.lookup import load_editor
from instructedit.errors import EditorError, InstructEditError
from instructedit.evaluation.metrics import MetricGroup, get_metric, registered_metrics
from instructedit.evaluation.protocols import Protocol, described
from instructedit.evaluation.provenance import provenance
from instructedit.evaluation.runner import Evaluation, evaluate
from instructedit.experiments.caching import CachingEditor
from instructedit.experiments.cells import cell_file, cell_folder, kept_cell, settings
from instructedit.experiments.cluster import Cluster
from instructedit.experiments.plan import Entry, EvaluationSpec, Experiment, load_experiment, slug, stages_of
from instructedit.experiments.processes import Children, end_with_parent
from instructedit.models.language_model import LanguageModel, load_language_model
from instructedit.records import EditRecord
from instructedit.storage.writing import as_json, locked, make_folder, write_atomically
from instructedit.tasks.edits import read_edits
from instructedit.tasks.loading import load_task
from instructedit.threads import THREADS_VARIABLE, free_threads
from instructedit.training.log import LOG, training_cost
from instructedit.training.loop import EDITOR
from instructedit.training.memory import peak_bytes
from instructedit.training.stages import train_stages

#: What an experiment's `by_knowledge` measures besides the metrics of its tests.
KNOWLEDGE = ("known", "certainty")
#: Number of edits that are timed.
TIMED_EDITS = 32


def run_all(
    path: Path,
    experiment: Experiment,
    out: Path,
    data: Path,
    jobs: int | None,
    on_done: Callable[[str], None] = lambda what: None,
    cluster: Cluster | None = None,
) -> None:
    """Train and evaluate all that has no results yet.

    Args:
        path: The experiment's file, which each process reads.
        experiment: Its content, with what the command line overrides.
        out: Folder for everything.
        data: Folder with the data sets.
        jobs: Number of processes at a time, which share the cores; None for 1, or as many as a cluster takes.
        on_done: Called with editor and seed, in words, after each process.
        cluster: Runs the processes, in place of this machine.

    Raises:
        DataError: ``out`` cannot be written, or another process runs an experiment there.
        EditorError: Some processes failed; the others are done.
    """
    jobs = jobs or (1 if cluster is None else max(1, len(experiment.work())))
    processes = cluster or Children({THREADS_VARIABLE: str(max(1, free_threads() // jobs)), **os.environ})
    make_folder(out)
    with locked(out):
        _run_all(path.resolve(), experiment, out.resolve(), data.resolve(), jobs, on_done, processes)


def _run_all(
    path: Path,
    experiment: Experiment,
    out: Path,
    data: Path,
    jobs: int,
    on_done: Callable[[str], None],
    processes: Children | Cluster,
) -> None:
    edits = str(experiment.edits)
    seeds = [str(seed) for seed in experiment.seeds]
    failed: list[str] = []

    def run(work: tuple[str, int]) -> None:
        label, seed = work
        arguments = ["-m", "instructedit.experiments.run", str(path), str(out), str(data)]
        status, errors = processes.run([*arguments, edits, ",".join(seeds), label, str(seed)])
        if processes.ended:
            return
        if status:
            failed.append(f"{label}, seed {seed}: {(errors.strip().splitlines() or ['?'])[-1]}")
        on_done(f"{label}, seed {seed}")

    with ThreadPoolExecutor(jobs) as pool:
        try:
            list(pool.map(run, experiment.work()))
        finally:
            processes.end()  # some are left after Ctrl-C
    if failed:
        raise EditorError(
            "some runs failed, all others are finished; run the command again to retry:\n" + "\n".join(failed)
        )


def run_one(experiment: Experiment, label: str, seed: int, out: Path, data: Path) -> None:
    """Train one editor, if it is trained, and evaluate it where it has no scores yet.

    Raises:
        DataError: Another process runs the same editor and seed, or a result is not finite.
    """
    with locked(make_folder(cell_folder(out, label, seed))):
        _run_one(experiment, label, seed, out, data)


def _run_one(experiment: Experiment, label: str, seed: int, out: Path, data: Path) -> None:
    entry = experiment.editors[label]
    cell_settings = {test: settings(experiment, entry, seed, test) for test in experiment.tests}
    missing = [
        test for test, digest in cell_settings.items() if kept_cell(cell_file(out, label, seed, test), digest) is None
    ]
    if not missing:
        return
    language_model = load_language_model(experiment.base, dtype=experiment.dtype)
    folder = out / "editors" / f"{slug(label)}-{seed}"
    name, editor, cost = _make_editor(entry, experiment.base, seed, language_model, folder, data)
    records = {
        (task, file): read_edits(load_task(task), file, data, skip_incomplete=True)
        for task, file in dict.fromkeys((test.task, test.file) for test in missing)
    }
    caching_editors: dict[tuple[object, ...], CachingEditor] = {}
    evaluations: dict[tuple[object, ...], tuple[Evaluation, float, int]] = {}
    for test in missing:
        key = _score_key(editor, test)
        if key not in evaluations:
            evaluations[key] = _evaluate(
                editor, language_model, test, experiment, records[test.task, test.file], caching_editors
            )
        evaluation, seconds, peak = evaluations[key]
        cell = {
            **provenance(name, editor, language_model, test.file, data),
            "editor": label,
            "seed": seed,
            "test": test.label,
            **evaluation.as_dict(with_records=True),
            "instruction": described(test.instruction, test.templates),
            **cost,
            "seconds_an_edit": seconds,
            "peak_bytes": peak,
            "settings": cell_settings[test],
        }
        path = cell_file(out, label, seed, test)
        write_atomically(path, (as_json(cell, file=path) + "\n").encode())


def _score_key(editor: Editor, test: EvaluationSpec) -> tuple[object, ...]:
    """Return a key that is equal for evaluations on which an editor has the same scores.

    An editor that reads no instruction is evaluated once for all instructions, unless they also precede the queries.
    """
    key = (test.task, test.file, test.opposite, test.protocol, tuple(test.metrics))
    prefixed = test.protocol is Protocol.PAPER or MetricGroup.EXTENDED in metric_groups(test)
    return (*key, test.instruction, test.templates) if editor.reads_instruction or prefixed else key


def metric_groups(test: EvaluationSpec) -> set[MetricGroup]:
    """Return the groups of metrics that a test measures: the core and those of the metrics that it shows."""
    return {MetricGroup.CORE, *(get_metric(name).group for name in test.metrics)}


def _evaluate(
    editor: Editor,
    language_model: LanguageModel,
    test: EvaluationSpec,
    experiment: Experiment,
    records: Sequence[EditRecord],
    caching_editors: dict[tuple[object, ...], CachingEditor],
) -> tuple[Evaluation, float, int]:
    """Return an editor's scores, seconds per edit, and the process's peak memory until then in bytes."""
    task = load_task(test.task)
    sample = random.Random(0).sample(records, min(experiment.edits, len(records)))
    timed = [record.request for record in sample[:TIMED_EDITS]]
    instructions = [task.instructions.render_held_out(request) for request in timed]
    editor.edit(language_model, timed[:1], instructions[:1])  # one-off work, such as statistics, is not timed
    began = time.perf_counter()
    editor.edit(language_model, timed, instructions)
    seconds, peak = (time.perf_counter() - began) / len(timed), peak_bytes()
    knowledge = map(get_metric, KNOWLEDGE if experiment.by_knowledge else ())
    edit_key = (test.task, test.file, test.instruction, test.templates, test.opposite)
    evaluation = evaluate(
        caching_editors.setdefault(edit_key, CachingEditor(editor)),
        language_model,
        task,
        sample,
        protocol=test.protocol,
        instruction=test.instruction,
        templates=test.templates,
        opposite=test.opposite,
        metrics=tuple(dict.fromkeys((*registered_metrics(*metric_groups(test)), *knowledge))),
    )
    return evaluation, seconds, peak


def _make_editor(
    entry: Entry, base: str, seed: int, language_model: LanguageModel, folder: Path, data: Path
) -> tuple[str | Path, Editor, dict[str, float]]:
    """Return the editor's name or file, the editor, trained in ``folder`` or loaded, and the cost of its training."""
    if entry.pretrained is not None:
        return entry.pretrained, load_editor(entry.pretrained, language_model), {}
    editor = train_stages(stages_of(entry, base, seed), language_model, folder, data)
    seconds, peak = training_cost(folder / LOG)
    return folder / EDITOR, editor, {"training_seconds": seconds, "training_peak_bytes": peak}


def main(arguments: Sequence[str]) -> None:
    """Run one editor and seed: the process that :func:`run_all` starts, and whose last line of errors it reports."""
    end_with_parent()
    path, out, data, edits, seeds, label, seed = arguments
    experiment = load_experiment(Path(path)).model_copy(
        update={"edits": int(edits), "seeds": tuple(map(int, seeds.split(",")))}
    )
    try:
        run_one(experiment, label, int(seed), Path(out), Path(data))
    except InstructEditError as error:
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main(sys.argv[1:])
