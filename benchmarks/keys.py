"""Which keys tell an edit's subject from other subjects, by matrix: the input of the matrix, or its contrast.

    python benchmarks/keys.py --base smollm2-135m-instruct --limit 100 --out docs/results/keys-smollm2.json

A delta k^T v adds (x . k) v to a matrix's output, so an edit reaches a prompt as far as the prompt's input x responds
to the edit's key k: x . k, relative to the response of the edit's own input. Keys are the input u at the last token of
the edit prompt; its contrast u - u0 with the same sentence about somebody else (`editor.contrast`); and the input at
the last token of the subject. The response is measured for the edit's paraphrase, for a neighbour (another subject with
the same old object, in its own sentence), and for the edit's sentence about the subject of another edit; to a key at
the subject, that of the token that responds most. Inputs are normalised as the hypernetwork does.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import torch
from result_files import write_result
from torch import Tensor
from tqdm import tqdm

from instructedit.data.locations import find_data
from instructedit.editors.contrast import with_other_subject
from instructedit.editors.gradient import chosen_matrices
from instructedit.editors.mend import MendConfig
from instructedit.editors.subject_activations import subject_token
from instructedit.models.inputs import read_inputs
from instructedit.models.language_model import LanguageModel, load_language_model
from instructedit.models.structure import Matrix
from instructedit.models.text import pad
from instructedit.records import EditRecord, ProbeKind
from instructedit.tasks.edits import read_edits
from instructedit.tasks.loading import load_task

MATRICES = ("*.self_attn.[vo]_proj", "*.mlp.gate_proj", "*.mlp.down_proj")
PROBES = ("paraphrase", "neighbour", "same sentence")


def inputs_of(language_model: LanguageModel, matrices: tuple[Matrix, ...], prompt: str) -> list[Tensor]:
    """Return the input of every matrix at every token of a prompt, (tokens, inputs) each."""
    batch = pad([language_model.text.encode_prompt(prompt)], language_model.text.pad_id)
    inputs = read_inputs(language_model, batch, [matrix.name for matrix in matrices])
    return [inputs[matrix.name][0] for matrix in matrices]


def usable(record: EditRecord) -> bool:
    """Return whether the subject is in the prompt and in the paraphrase, and there is a neighbour."""
    subject = record.request.subject
    if not subject or not record.rephrases or not record.of_kind(ProbeKind.NEIGHBOUR):
        return False
    return all(subject in text for text in (record.request.prompt, record.rephrases[0]))


def prompts_of(record: EditRecord, other: EditRecord) -> dict[str, str]:
    """Return the edit's prompt, that about somebody else, and the prompts whose responses are measured."""
    prompt, subject = record.request.prompt, record.request.subject or ""
    return {
        "edit": prompt,
        "other": with_other_subject(prompt, subject) or prompt,
        "paraphrase": record.rephrases[0],
        "neighbour": record.of_kind(ProbeKind.NEIGHBOUR)[0].prompt,
        "same sentence": prompt.replace(subject, other.request.subject or ""),
    }


def measure(language_model: LanguageModel, matrices: tuple[Matrix, ...], records: list[EditRecord]) -> list[Any]:
    """Return a row for each matrix and key."""
    prompts = [prompts_of(record, records[index - 1]) for index, record in enumerate(records)]
    subjects = [subject_token(language_model, record.request.prompt, record.request) for record in records]
    inputs = [
        {kind: inputs_of(language_model, matrices, prompt) for kind, prompt in each.items()}
        for each in tqdm(prompts, unit="edit")
    ]
    rows = []
    for number, matrix in enumerate(matrices):
        every = torch.cat([states[number] for each in inputs for states in each.values()]).float()
        mean, deviation = every.mean(0), every.std(0) + 1e-7
        edits = [{kind: (states[number] - mean) / deviation for kind, states in each.items()} for each in inputs]
        last = [{kind: states[-1] for kind, states in edit.items()} for edit in edits]
        rows.append({"matrix": matrix.name, "key": "last token", **responses([e["edit"] for e in last], last)})
        contrasts = [e["edit"] - e["other"] for e in last]
        rows.append({"matrix": matrix.name, "key": "last token, contrast", **responses(contrasts, last)})
        keys = [edit["edit"][token] for edit, token in zip(edits, subjects, strict=True)]
        most = [
            {kind: states[(states @ key).argmax()] for kind, states in edit.items()} | {"edit": key}
            for key, edit in zip(keys, edits, strict=True)
        ]
        rows.append({"matrix": matrix.name, "key": "subject", **responses(keys, most)})
    return rows


def responses(keys: list[Tensor], inputs: list[dict[str, Tensor]]) -> dict[str, Any]:
    """Return median responses, and the share of edits whose paraphrase responds more than each of the others."""
    relative = {
        kind: torch.stack([(x[kind] @ key) / (x["edit"] @ key) for key, x in zip(keys, inputs, strict=True)])
        for kind in PROBES
    }
    paraphrase, *others = PROBES
    return {
        "response": {kind: round(values.median().item(), 4) for kind, values in relative.items()},
        "paraphrase_more": {
            kind: round((relative[paraphrase] > relative[kind]).float().mean().item(), 4) for kind in others
        },
    }


def main() -> None:
    """Measure all matrices and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="write the result as JSON here")
    parser.add_argument("--base", required=True)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--matrices", nargs="+", default=list(MATRICES), help="names or shell patterns")
    parser.add_argument("--limit", type=int, default=100, help="edits, drawn at random with seed 0")
    options = parser.parse_args()
    language_model = load_language_model(options.base, dtype=options.dtype)
    matrices = chosen_matrices(language_model, MendConfig(matrices=tuple(options.matrices)))
    task = load_task("counterfact")
    file = task.files.test or ""
    records = [record for record in read_edits(task, file, find_data(), skip_incomplete=True) if usable(record)]
    records = random.Random(0).sample(records, min(options.limit, len(records)))
    rows = measure(language_model, matrices, records)
    for row in rows:
        print(row)
    write_result(options.out, language_model, rows, file=file, edits=len(records), seed=0)


if __name__ == "__main__":
    main()
