"""Running an experiment: every editor and seed in a process of its own, every result kept as soon as it is there."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from instructedit.editors.base import Editor, Edits
from instructedit.editors.saving import digest_of, find_editor
from instructedit.errors import DataError, EditorError
from instructedit.evaluation.protocols import Protocol, described
from instructedit.evaluation.provenance import provenance
from instructedit.evaluation.runner import Evaluation, evaluate
from instructedit.experiments.plan import Entry, Experiment, Test, load_experiment, recipes_of
from instructedit.instructions.templates import held_out_templates
from instructedit.models.language_model import LanguageModel, load_language_model
from instructedit.records import EditRecord, EditRequest
from instructedit.storage.reading import as_mapping, parse_json, read_json_file, read_text
from instructedit.storage.writing import as_json, locked, make_folder, write_atomically
from instructedit.tasks.edits import read_edits
from instructedit.tasks.loading import load_task
from instructedit.training.loop import EDITOR, LOG, train
from instructedit.training.memory import peak_bytes

logger = logging.getLogger(__name__)

#: Edits whose making is timed.
TIMED = 32
#: Batches of edits that :class:`Remembered` holds: 2,048 edits at the batch of an evaluation.
REMEMBERED_BATCHES = 64


class Remembered(Editor):
    """An editor that makes each batch of edits once: the protocols ask after the same edits, and some edits take long.

    The last :data:`REMEMBERED_BATCHES` batches are held; one that was forgotten is made again.

    Args:
        editor: that makes them.
    """

    def __init__(self, editor: Editor) -> None:
        super().__init__()
        self.name, self.split_layer = editor.name, editor.split_layer
        self._editor = editor
        self._made: OrderedDict[tuple[object, ...], Edits] = OrderedDict()

    def edit(
        self, language_model: LanguageModel, requests: Sequence[EditRequest], instructions: Sequence[str | None]
    ) -> Edits:
        asked = (*requests, *instructions)
        if asked not in self._made:
            self._made[asked] = self._editor.edit(language_model, requests, instructions)
            if len(self._made) > REMEMBERED_BATCHES:
                self._made.popitem(last=False)
        self._made.move_to_end(asked)
        return self._made[asked]


def cell_file(out: Path, label: str, seed: int, test: Test) -> Path:
    """Where one editor's scores on one test are kept."""
    return _folder_of(out, label, seed) / f"{_slug(test.name)}.json"


def run_all(
    path: Path,
    experiment: Experiment,
    out: Path,
    data: Path,
    jobs: int,
    on_done: Callable[[str], None] = lambda what: None,
) -> None:
    """Run what has not been run, ``jobs`` processes at a time; the cores are shared among them.

    Raises:
        DataError: ``out`` cannot be written, or another process runs an experiment there.
        EditorError: some of it failed; the rest has been run all the same.
    """
    make_folder(out)
    with locked(out):
        _run_all(path, experiment, out, data, jobs, on_done)


def _run_all(
    path: Path, experiment: Experiment, out: Path, data: Path, jobs: int, on_done: Callable[[str], None]
) -> None:
    cores = os.cpu_count() or 1
    environment = {"OMP_NUM_THREADS": str(max(1, cores // jobs)), **os.environ}
    edits = str(experiment.edits)
    seeds = [str(seed) for seed in experiment.seeds]
    failed: list[str] = []
    children = _Children(environment)

    def run(work: tuple[str, int]) -> None:
        label, seed = work
        command = [sys.executable, "-m", "instructedit.experiments.run"]
        command += [str(path), str(out), str(data), edits, ",".join(seeds), label, str(seed)]
        status, said = children.run(command)
        if children.ended:
            return
        if status:
            failed.append(f"{label}, seed {seed}: {(said.strip().splitlines() or ['?'])[-1]}")
        on_done(f"{label}, seed {seed}")

    with ThreadPoolExecutor(jobs) as pool:
        try:
            list(pool.map(run, experiment.work()))
        finally:
            children.end()  # none is left, but after Ctrl-C
    if failed:
        raise EditorError("these failed, the rest is done; the same command tries them again:\n" + "\n".join(failed))


class _Children:
    """Processes that end when this one does, however it does: each holds the reading end of a pipe from it.

    Args:
        environment: of each.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.ended = False
        self._environment = environment
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()

    def run(self, command: Sequence[str]) -> tuple[int, str]:
        """Exit status and standard error of a process; nothing is started once :meth:`end` has been called."""
        with self._lock:
            if self.ended:
                return 0, ""
            child = subprocess.Popen(
                command,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
            self._running.add(child)
        assert child.stderr is not None
        assert child.stdin is not None
        try:
            said = child.stderr.read()
            return child.wait(), said
        finally:
            with self._lock:
                self._running.discard(child)
            child.stdin.close()
            child.stderr.close()

    def end(self) -> None:
        """End all that run."""
        with self._lock:
            self.ended = True
            for child in self._running:
                child.terminate()


def end_with_parent() -> None:
    """End this process when standard input is closed, which the parent holds open for as long as it lives."""

    def wait() -> None:
        with suppress(OSError):
            while os.read(0, 1):
                pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def run_one(experiment: Experiment, label: str, seed: int, out: Path, data: Path) -> None:
    """Train one editor if it has to be trained, and score it on every test that has no scores yet.

    Raises:
        DataError: another process runs the same editor and seed, or a result has a number that is not finite.
    """
    with locked(make_folder(_folder_of(out, label, seed))):
        _run_one(experiment, label, seed, out, data)


def _folder_of(out: Path, label: str, seed: int) -> Path:
    return out / "cells" / f"{_slug(label)}-{seed}"


def _run_one(experiment: Experiment, label: str, seed: int, out: Path, data: Path) -> None:
    entry = experiment.editors[label]
    missing = [
        test
        for test in experiment.tests
        if kept_cell(cell_file(out, label, seed, test), settings(experiment, entry, seed, test)) is None
    ]
    if not missing:
        return
    language_model = load_language_model(experiment.base)
    name, editor, cost = _made(
        entry, experiment.base, seed, language_model, out / "editors" / f"{_slug(label)}-{seed}", data
    )
    records = {
        (name, file): read_edits(load_task(name), file, data, skip_incomplete=True)
        for name, file in {(test.task, test.file) for test in missing}
    }
    remembering: dict[tuple[object, ...], Remembered] = {}
    measured: dict[tuple[object, ...], tuple[Evaluation, float, int]] = {}
    for test in missing:
        key = _of_same_scores(editor, test)
        if key not in measured:
            measured[key] = _measure(
                editor, language_model, test, experiment.edits, records[test.task, test.file], remembering
            )
        found, seconds, peak = measured[key]
        cell = {
            **provenance(name, editor, language_model, test.file, data),
            "editor": label,
            "seed": seed,
            "test": test.name,
            **found.as_dict(with_records=True),
            "instruction": described(test.instruction, test.templates),
            **cost,
            "seconds_an_edit": seconds,
            "peak_bytes": peak,
            "settings": settings(experiment, entry, seed, test),
        }
        path = cell_file(out, label, seed, test)
        write_atomically(path, (as_json(cell, file=path) + "\n").encode())


def _of_same_scores(editor: Editor, test: Test) -> tuple[object, ...]:
    """Tests on which an editor has the same scores: one that reads no instruction is measured once for all of them."""
    asked = (test.task, test.file, test.opposite, test.protocol, tuple(test.metrics))
    # These depend on the instruction's text even so: it stands before the queries.
    prefixed = test.protocol is Protocol.PAPER or not _headlines_only(test)
    return (*asked, test.instruction, test.templates) if editor.reads_instruction or prefixed else asked


def _headlines_only(test: Test) -> bool:
    return not {"portability", "locality_prefixed"} & set(test.metrics)


def _measure(
    editor: Editor,
    language_model: LanguageModel,
    test: Test,
    edits: int,
    records: Sequence[EditRecord],
    remembering: dict[tuple[object, ...], Remembered],
) -> tuple[Evaluation, float, int]:
    """An editor's scores on a test, seconds an edit, and the process's peak memory by then in bytes."""
    task = load_task(test.task)
    chosen = random.Random(0).sample(records, min(edits, len(records)))
    few = [record.request for record in chosen[:TIMED]]
    texts = [task.instructions.render_held_out(request) for request in few]
    editor.edit(language_model, few[:1], texts[:1])  # what is made once, such as statistics, is not timed
    began = time.perf_counter()
    editor.edit(language_model, few, texts)
    seconds, peak = (time.perf_counter() - began) / len(few), peak_bytes()
    kind = (test.task, test.file, test.instruction, test.templates, test.opposite)
    evaluation = evaluate(
        remembering.setdefault(kind, Remembered(editor)),
        language_model,
        task,
        chosen,
        protocol=test.protocol,
        instruction=test.instruction,
        templates=test.templates,
        opposite=test.opposite,
        fluency="fluency" in test.metrics,
        headlines_only=_headlines_only(test),
    )
    return evaluation, seconds, peak


def settings(experiment: Experiment, entry: Entry, seed: int, test: Test) -> str:
    """A digest of what decides a cell, so that scores of an older experiment are not taken for it.

    Data files, models and the texts that training draws are taken as they are: with new ones, give a new --out.
    """
    if entry.use is not None:
        made: object = digest_of(entry.use) or entry.use  # by content: the experiment may be read from anywhere
    else:
        made = [recipe.settings() for recipe in recipes_of(entry, experiment.base, seed)]
    task = load_task(test.task)
    opposite = test.opposite or task.opposite
    whole = {
        "made": made,
        "test": test.model_dump(mode="json", exclude_defaults=True),
        "task": task.model_dump(mode="json", exclude_defaults=True),
        "opposite": load_task(opposite).model_dump(mode="json", exclude_defaults=True) if opposite else None,
        "templates": held_out_templates(test.templates) if test.templates else None,
        "base": experiment.base,
        "edits": experiment.edits,
    }
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]


def _made(
    entry: Entry, base: str, seed: int, language_model: LanguageModel, folder: Path, data: Path
) -> tuple[str | Path, Editor, dict[str, float]]:
    """The editor's name or file, the editor, and what training it took.

    The first part of a training is in ``folder``, those that go on from it in folders inside.
    """
    if entry.use is not None:
        return entry.use, find_editor(entry.use, language_model), {}
    seconds, peak = 0.0, 0
    for number, recipe in enumerate(recipes_of(entry, base, seed)):
        if number:
            recipe = recipe.model_copy(update={"start_from": str(folder / EDITOR)})
            folder = folder / "then"
        editor = train(recipe, language_model, folder, data)
        took, most = _cost_in(folder / LOG)
        seconds, peak = seconds + took, max(peak, most)
    return folder / EDITOR, editor, {"training_seconds": seconds, "training_peak_bytes": peak}


def _cost_in(log: Path) -> tuple[float, int]:
    """Seconds and peak bytes of a finished training.

    Raises:
        DataError: the log is damaged.
    """
    lines = [
        as_mapping(parse_json(line, file=log, place=f"line {number}"), log)
        for number, line in enumerate(read_text(log).split("\n"), start=1)
        if line
    ]
    seconds = [line.get("seconds") for line in lines if line.get("phase") == "train"]
    peaks = [line.get("peak_bytes", 0) for line in lines]
    if not seconds or not all(isinstance(value, (int, float)) for value in (*seconds, *peaks)):
        raise DataError("is not the log of a training; delete its folder, and the editor is trained anew", file=log)
    return float(seconds[-1] or 0.0), max(peaks)


def kept_cell(path: Path, wanted: str) -> dict[str, Any] | None:
    """Scores that are kept; None where there are none, or damaged ones, or those of other settings."""
    if not path.is_file():
        return None
    try:
        cell = as_mapping(read_json_file(path), path)
    except DataError as error:
        logger.warning("%s; it is scored anew", error)
        return None
    if cell.get("settings") != wanted:
        return None
    return cell if _is_cell(cell) else None


def _is_cell(cell: Mapping[str, Any]) -> bool:
    """Whether scores have what a report reads of them."""
    objects = all(isinstance(cell.get(name), dict) for name in ("records", "metrics"))
    return objects and {"base", "seed", "seconds_an_edit", "peak_bytes"} <= cell.keys()


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def main(arguments: Sequence[str]) -> None:
    """The process that :func:`run_all` starts."""
    end_with_parent()
    path, out, data, edits, seeds, label, seed = arguments
    experiment = load_experiment(Path(path)).model_copy(
        update={"edits": int(edits), "seeds": tuple(map(int, seeds.split(",")))}
    )
    run_one(experiment, label, int(seed), Path(out), Path(data))


if __name__ == "__main__":
    main(sys.argv[1:])
