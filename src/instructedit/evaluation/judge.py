"""A language model that says whether two answers are the same, for free generation.

"Neil Armstrong" and "It was Armstrong, in 1969." are one answer, which a comparison of words does not see. Every
verdict is kept in the cache folder and requested once: evaluations can be repeated, and cost calls only for new texts.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from instructedit.endpoints.chat import ChatEndpoint, json_in
from instructedit.errors import DataError, EditorError
from instructedit.storage.cache import cache_folder
from instructedit.storage.reading import parse_json, read_text
from instructedit.storage.writing import append_line

logger = logging.getLogger(__name__)

_SYSTEM = (
    "You compare a language model's answer to a prompt with the expected answer. They are the same if both state the "
    "same thing: another spelling, an alias, a full sentence or further text around it makes no difference. Another "
    "person, place, date, number or thing does, and so does an answer that leaves open which of several it is. Judge "
    "by the expected answer alone, even where you know that it is wrong. Answer with a JSON object and nothing else: "
    '{"same": true} or {"same": false}'
)


class Judge:
    """Says whether an answer is one of the expected ones.

    Args:
        endpoint: the language model.
        file: JSON Lines of all verdicts so far; default one in the cache folder for this model and address.

    Attributes:
        calls: number of questions that were put to the endpoint.
    """

    def __init__(self, endpoint: ChatEndpoint, file: Path | None = None) -> None:
        self.endpoint = endpoint
        self.calls = 0
        self._warned = False
        identity = f"{endpoint.address}\n{endpoint.model}\n{_SYSTEM}"
        self._file = file or cache_folder() / "judge" / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.jsonl"
        self._verdicts = _read_verdicts(self._file)

    @property
    def name(self) -> str:
        """The model and its address, for results."""
        return f"{self.endpoint.model} at {self.endpoint.address}"

    def same(self, prompt: str, expected: Sequence[str], given: str) -> bool:
        """Return whether the given answer states one of the expected answers.

        Args:
            prompt: that the model answered.
            expected: aliases of one answer.
            given: the model's text.

        Raises:
            EditorError: the endpoint did not answer.
        """
        if not given.strip():
            return False
        question = json.dumps({"prompt": prompt, "expected": list(expected), "given": given}, ensure_ascii=False)
        key = hashlib.sha256(question.encode(errors="surrogatepass")).hexdigest()
        if key not in self._verdicts:
            self.calls += 1
            try:
                self._verdicts[key] = self.endpoint.complete(_SYSTEM, question, _verdict)
            except EditorError as error:
                raise EditorError(f"the judge {self.name} did not answer: {error}") from None
            self._keep(key)
        return self._verdicts[key]

    def _keep(self, key: str) -> None:
        try:
            append_line(self._file, json.dumps({"question": key, "same": self._verdicts[key]}), sync=False)
        except DataError as error:  # usually a full disk; the evaluation needs the verdict, not the file
            if not self._warned:
                logger.warning("%s: verdicts are not kept, and will be requested again", error)
            self._warned = True


def _verdict(content: str | None) -> bool:
    """Return the verdict in an answer.

    Raises:
        DataError: the answer is not JSON.
        ValueError: it has no such verdict.
    """
    value = json_in(content)
    same = value.get("same") if isinstance(value, dict) else None
    if not isinstance(same, bool):
        raise ValueError("expected true or false under `same`")
    return same


def _read_verdicts(file: Path) -> dict[str, bool]:
    """Return the verdicts of a file by question; a line that was cut off is left out."""
    verdicts: dict[str, bool] = {}
    for line in read_text(file).splitlines() if file.is_file() else ():
        try:
            entry = parse_json(line)
        except DataError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("same"), bool) and isinstance(entry.get("question"), str):
            verdicts[entry["question"]] = entry["same"]
    return verdicts
