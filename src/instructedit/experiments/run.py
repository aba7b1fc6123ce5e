"""Running an experiment: every editor and seed in a process of its own, every result kept as soon as it is there."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from instructedit.data import data_file
from instructedit.editors.base import Editor, Edits
from instructedit.editors.files import digest_of, find_editor
from instructedit.errors import EditorError
from instructedit.evaluation.runner import evaluate
from instructedit.experiments.plan import Entry, Experiment, Test, load_experiment, recipes_of
from instructedit.files import write_atomically
from instructedit.models.language_model import LanguageModel, load_language_model
from instructedit.records import EditRequest
from instructedit.tasks.grammar import wordings
from instructedit.tasks.readers import read_records
from instructedit.tasks.task import fitting, load_task
from instructedit.training.loop import EDITOR, LOG, train
from instructedit.training.memory import peak_bytes

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
        self.name, self.cut = editor.name, editor.cut
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
    return out / "cells" / f"{_slug(label)}-{seed}" / f"{_slug(test.name)}.json"


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
        EditorError: some of it failed; the rest has been run all the same.
    """
    cores = os.cpu_count() or 1
    environment = {"OMP_NUM_THREADS": str(max(1, cores // jobs)), **os.environ}
    edits = str(experiment.edits)
    seeds = [str(seed) for seed in experiment.seeds]
    failed: list[str] = []

    def run(work: tuple[str, int]) -> None:
        label, seed = work
        command = [sys.executable, "-m", "instructedit.experiments.run"]
        command += [str(path), str(out), str(data), edits, ",".join(seeds), label, str(seed)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            failed.append(f"{label}, seed {seed}: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
        on_done(f"{label}, seed {seed}")

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(run, experiment.work()))
    if failed:
        raise EditorError("these failed, the rest is done; the same command tries them again:\n" + "\n".join(failed))


def run_one(experiment: Experiment, label: str, seed: int, out: Path, data: Path) -> None:
    """Train one editor if it has to be trained, and score it on every test that has no scores yet."""
    entry = experiment.editors[label]
    missing = [
        test
        for test in experiment.tests
        if not _is_kept(cell_file(out, label, seed, test), settings(experiment, entry, seed, test))
    ]
    if not missing:
        return
    language_model = load_language_model(experiment.base)
    editor, cost = _made(entry, experiment.base, seed, language_model, out / "editors" / f"{_slug(label)}-{seed}", data)
    names = {test.file for test in missing}
    files = {name: read_records(data_file(name, data), skip_incomplete=True) for name in names}
    remembering: dict[tuple[object, ...], Remembered] = {}
    for test in missing:
        task = load_task(test.task)
        whole = fitting(task, files[test.file], test.file)
        records = random.Random(0).sample(whole, min(experiment.edits, len(whole)))
        few = [record.request for record in records[:TIMED]]
        told = [task.instructions.unseen(request) for request in few]
        editor.edit(language_model, few[:1], told[:1])  # what is made once, such as statistics, is not timed
        began = time.perf_counter()
        editor.edit(language_model, few, told)
        seconds, peak = (time.perf_counter() - began) / len(few), peak_bytes()
        kind = (test.task, test.file, test.instruction, test.wording, test.opposite)
        remembered = remembering.setdefault(kind, Remembered(editor))
        found = evaluate(
            remembered,
            language_model,
            task,
            records,
            protocol=test.protocol,
            instruction=test.instruction,
            wording=test.wording,
            opposite=test.opposite,
            fluency="fluency" in test.metrics,
            headlines_only=not {"portability", "locality_prefixed"} & set(test.metrics),
        )
        cell = {
            "editor": label,
            "seed": seed,
            "test": test.name,
            "base": language_model.fingerprint,
            **found.as_dict(with_records=True),
            **cost,
            "seconds_an_edit": seconds,
            "peak_bytes": peak,
            "settings": settings(experiment, entry, seed, test),
        }
        write_atomically(cell_file(out, label, seed, test), (json.dumps(cell) + "\n").encode())


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
        "wordings": wordings(test.wording) if test.wording else None,
        "base": experiment.base,
        "edits": experiment.edits,
    }
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]


def _made(
    entry: Entry, base: str, seed: int, language_model: LanguageModel, folder: Path, data: Path
) -> tuple[Editor, dict[str, float]]:
    """The editor, and what training it took: one part in ``folder``, those that go on from it in folders inside."""
    if entry.use is not None:
        return find_editor(entry.use, language_model), {}
    seconds, peak = 0.0, 0
    for number, recipe in enumerate(recipes_of(entry, base, seed)):
        if number:
            recipe = recipe.model_copy(update={"start_from": str(folder / EDITOR)})
            folder = folder / "then"
        editor = train(recipe, language_model, folder, data)
        lines = [json.loads(line) for line in (folder / LOG).read_text(encoding="utf-8").splitlines()]
        seconds += [line["seconds"] for line in lines if line.get("phase") == "train"][-1]
        peak = max(peak, *(line.get("peak_bytes", 0) for line in lines))
    return editor, {"training_seconds": seconds, "training_peak_bytes": peak}


def _is_kept(path: Path, wanted: str) -> bool:
    try:
        return bool(json.loads(path.read_text(encoding="utf-8"))["settings"] == wanted)
    except (OSError, ValueError, KeyError):
        return False


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def main(arguments: Sequence[str]) -> None:
    """The process that :func:`run_all` starts."""
    path, out, data, edits, seeds, label, seed = arguments
    experiment = load_experiment(Path(path)).model_copy(
        update={"edits": int(edits), "seeds": tuple(map(int, seeds.split(",")))}
    )
    run_one(experiment, label, int(seed), Path(out), Path(data))


if __name__ == "__main__":
    main(sys.argv[1:])
