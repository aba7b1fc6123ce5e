"""Result files of the benchmarks that are no experiments."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from instructedit.models.language_model import LanguageModel
from instructedit.storage.writing import write_atomically


def parser_for_an_editor(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options of a benchmark that measures one editor of one model."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, required=True, help="write the result as JSON here")
    parser.add_argument("--base", required=True)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--editor", required=True)
    return parser


def write_result(path: Path, model: LanguageModel, rows: Sequence[dict[str, Any]], **about: Any) -> None:
    """Write rows as JSON, with the model and the versions that they were measured with, and what else is to be said."""
    versions = {package: version(package) for package in ("instructedit", "torch", "transformers")}
    result = {"base": model.fingerprint, **about, "versions": versions, "rows": rows}
    write_atomically(path, (json.dumps(result, indent=2) + "\n").encode())
