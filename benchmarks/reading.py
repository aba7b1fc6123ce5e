"""How many instructions an editor reads as their scope: whether other subjects are to change, too.

    python benchmarks/reading.py --base smollm2-135m-instruct --editor smollm2 --out docs/results/reading-smollm2.json

No edit is made: an instruction counts as read if ``reaches_others`` (:mod:`instructedit.training.reach`) is true for
the scope `everywhere` and false for `only`. The texts are the test templates of the two scopes and those of
``contrast_texts.yaml``, each under a neutral name, as ``--instruction`` gives them. Whoever guesses has 50% on average
over the two scopes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from result_files import parser_for_an_editor, write_result
from tqdm import tqdm

from instructedit.assets import read_yaml
from instructedit.editors.instructedit import InstructEdit
from instructedit.editors.lookup import load_editor
from instructedit.editors.saving import digest_of
from instructedit.errors import EditorError
from instructedit.evaluation.intervals import estimate
from instructedit.instructions.templates import NEUTRAL_NAME
from instructedit.models.language_model import LanguageModel, load_language_model
from instructedit.tasks.loading import free_text_task

SCOPES = ("only", "everywhere")
TEST_KINDS = ("test", "negated", "short", "foreign", "misspelt")
CONTRAST = Path(__file__).with_name("contrast_texts.yaml")


def texts_by_kind() -> dict[str, dict[str, list[str]]]:
    """Return the texts by kind and scope; the contrast pairs of all languages but English are one kind."""
    held_out = {scope: read_yaml(f"instructions/held_out/{scope}.yaml") for scope in SCOPES}
    kinds = {kind: {scope: held_out[scope][kind] for scope in SCOPES} for kind in TEST_KINDS}
    contrast = yaml.safe_load(CONTRAST.read_text(encoding="utf-8"))
    for kind in ("negated", "short"):
        kinds[f"contrast, {kind}"] = {scope: contrast[scope].pop(kind) for scope in SCOPES}
    kinds["contrast, foreign"] = {scope: [t for texts in contrast[scope].values() for t in texts] for scope in SCOPES}
    return kinds


@torch.no_grad()
def read_right(editor: InstructEdit, language_model: LanguageModel, texts: list[str], scope: str) -> list[float]:
    """Return for each text 1 if it is read as its scope, else 0."""
    instructions = free_text_task().instructions
    right = []
    for text in texts:
        embedding = editor.embeddings(language_model, [], [instructions.render(text, name=NEUTRAL_NAME)])
        wide = editor.reaches_others(embedding)
        if wide is None:
            raise EditorError("the editor has no reach (`editor.reach` in its recipe), so it does not classify scopes")
        right.append(float(wide.item() == (scope == "everywhere")))
    return right


def main() -> None:
    """Read all texts and write the JSON."""
    options = parser_for_an_editor(__doc__.splitlines()[0]).parse_args()
    language_model = load_language_model(options.base, dtype=options.dtype)
    editor = load_editor(options.editor, language_model)
    if not isinstance(editor, InstructEdit):
        raise EditorError(f"{options.editor} reads no instruction")
    rows: list[dict[str, Any]] = []
    for kind, by_scope in tqdm(texts_by_kind().items(), unit="kind"):
        right = {scope: read_right(editor, language_model, texts, scope) for scope, texts in by_scope.items()}
        rows.append({"kind": kind, **{scope: estimate(values).as_dict() for scope, values in right.items()}})
        print(kind, {scope: round(rows[-1][scope]["mean"], 3) for scope in SCOPES}, flush=True)
    write_result(options.out, language_model, rows, editor=options.editor, editor_digest=digest_of(options.editor))


if __name__ == "__main__":
    main()
