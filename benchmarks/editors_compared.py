"""Command-line options of the benchmarks that measure several editors of one base model in a table of their own."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def comparing_parser(description: str, task: str) -> argparse.ArgumentParser:
    """Return a parser with the options that these benchmarks share.

    Args:
        description: of the benchmark.
        task: whose instructions the editors get by default.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("editors", nargs="+", help="a name or file, or LABEL=FILE")
    parser.add_argument("--out", type=Path, required=True, help="write the result as JSON here")
    parser.add_argument("--base", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--task", default=task)
    parser.add_argument("--edits", type=int, default=120)
    return parser


def labelled(editors: Sequence[str]) -> list[tuple[str, str]]:
    """Return the label and the name or file of each editor; without a label, the name is the label."""
    parts = [each.rpartition("=") for each in editors]
    return [(label or name, name) for label, _, name in parts]
