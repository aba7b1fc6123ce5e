"""The log of a training run: a JSON Lines file with one entry per step, validation and phase."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from instructedit.errors import CheckpointError, DataError
from instructedit.storage.reading import as_mapping, parse_json, read_text
from instructedit.storage.writing import append_line, as_json, write_atomically

LOG = "log.jsonl"


class TrainingLog:
    """A log file that is flushed entry by entry and can be rewound to a checkpoint.

    Args:
        path: The file.
        append: Keep what it holds; otherwise it is emptied.
        writes: Whether this process writes it; of several processes one does.
    """

    def __init__(self, path: Path, *, append: bool, writes: bool) -> None:
        self.path = path
        self._writes = writes
        if writes and not append:
            write_atomically(path, b"")

    def write(self, entry: dict[str, Any]) -> None:
        """Append an entry.

        Raises:
            DataError: The file cannot be written, or a number of the entry is not finite.
        """
        if self._writes:
            append_line(self.path, as_json(entry, file=self.path), sync=False)

    def rewind(self, step: int) -> float:
        """Remove the entries that an interrupted run wrote after its last checkpoint; those steps are repeated.

        Args:
            step: Number of steps that the checkpoint has behind it.

        Returns:
            Seconds that the remaining steps took.

        Raises:
            CheckpointError: The log is missing, damaged, or lacks steps that the checkpoint has behind it.
        """
        if not self._writes:
            return 0.0
        lines, seconds, logged_steps = [], 0.0, 0
        for line, entry in self._complete_entries():
            if entry["phase"] == "train" and entry["step"] >= step:
                break
            if entry["phase"] == "validation" and entry["step"] > step:
                break
            lines.append(line)
            logged_steps += entry["phase"] == "train"
            seconds = float(entry.get("seconds", seconds))
        if logged_steps < step:
            raise self._cannot_resume(
                f"file {self.path}: contains only {logged_steps} of the checkpoint's {step} steps"
            )
        write_atomically(self.path, "".join(line + "\n" for line in lines).encode())
        return seconds

    def _complete_entries(self) -> list[tuple[str, dict[str, Any]]]:
        """Return the lines up to the first damaged one, each with its entry."""
        try:
            content = read_text(self.path)
        except DataError as error:
            raise self._cannot_resume(str(error)) from None
        entries = []
        for line in content.split("\n")[:-1]:  # the last line is unfinished if the run was killed while writing it
            try:
                entry = parse_json(line)
            except DataError:
                break
            if not _is_entry(entry):
                break
            entries.append((line, entry))
        return entries

    def _cannot_resume(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{problem}. The run cannot be resumed; give another --out, or delete the folder")


def training_cost(log: Path) -> tuple[float, int]:
    """Return seconds, over all stages, and peak bytes of a finished training.

    Raises:
        DataError: The log is damaged.
    """
    entries = [
        as_mapping(parse_json(line, file=log, place=f"line {number}"), log)
        for number, line in enumerate(read_text(log).split("\n"), start=1)
        if line
    ]
    steps = [(entry.get("step"), entry.get("seconds")) for entry in entries if entry.get("phase") == "train"]
    peaks = [entry.get("peak_bytes", 0) for entry in entries]
    numbers = [*(number for step in steps for number in step), *peaks]
    if not steps or not all(isinstance(number, (int, float)) for number in numbers):
        raise DataError("is not a training log; delete its folder to train the editor again", file=log)
    total = stage = 0.0
    for entry in (entry for entry in entries if entry.get("phase") == "train"):
        if entry["step"] == 0:  # a new stage, whose clock starts at zero
            total += stage
        stage = float(entry["seconds"])
    return total + stage, max(peaks)


def _is_entry(entry: Any) -> bool:
    """Return whether an entry has the fields that resuming reads."""
    if not isinstance(entry, dict) or not isinstance(entry.get("phase"), str):
        return False
    has_step = entry["phase"] not in ("train", "validation") or isinstance(entry.get("step"), int)
    return has_step and isinstance(entry.get("seconds", 0.0), (int, float))
