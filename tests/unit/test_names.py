"""No identifier of the package is a vague word or a private synonym of a term of the field."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import instructedit

PACKAGE = Path(instructedit.__file__).parent
FILES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}

#: Word that is not used as an identifier -> what to write instead.
REPLACEMENTS = {
    "Asked": "ProposalContext",
    "Board": "Leaderboard",
    "InstructionBank": "InstructionTemplates",
    "Named": "LabelledEditor",
    "Remembered": "CachingEditor",
    "Values": "SubjectActivations, or what the values are",
    "asked": "the prompts, queries or requests that it holds",
    "closes": "append_period",
    "confine": "project",
    "cut": "split_layer",
    "descend": "loss_and_backward",
    "enough": "loss_threshold",
    "fall": "unlikelihood",
    "fault": "validation_error",
    "found": "what was found: matches, tensors, tasks, …",
    "places": "token positions",
    "regular_moment": "regularised_covariance",
    "rise": "likelihood",
    "room": "package, or the number of free tokens",
    "said": "the answers or texts that it holds",
    "stay": "locality",
    "stray": "exploration_rate",
    "theta": "log_lr",
    "told": "what the text or embedding is conditioned on",
}


def identifiers(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield every name that a module defines or uses, with its line."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name, node.lineno
            case ast.AsyncFunctionDef(name=name):
                yield name, node.lineno
            case ast.arg(arg=name) | ast.keyword(arg=str(name)):
                yield name, node.lineno
            case ast.alias(name=name, asname=alias):
                yield alias or name.rpartition(".")[2], node.lineno
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield name, node.lineno
            case _:
                pass


def breaches(tree: ast.AST) -> list[str]:
    """Return a line for each identifier that has a replacement; underscores around it do not matter."""
    return [
        f"line {line}: {name} -> {REPLACEMENTS[name.strip('_')]}"
        for name, line in identifiers(tree)
        if name.strip("_") in REPLACEMENTS
    ]


@pytest.mark.parametrize("file", sorted(FILES))
def test_names_are_the_fields(file: str) -> None:
    assert breaches(ast.parse(FILES[file].read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "found = 1",
        "x.told",
        "def f(asked): pass",
        "def f(*, said=1): pass",
        "f(theta=1)",
        "def _stay(): pass",
        "class Board: pass",
        "import a.cut",
        "from a import b as stray",
        "for rise, fall in x: pass",
        "[fault for fault in x]",
        "lambda enough: 1",
        "try: pass\nexcept E as fault: pass",
        "match x:\n    case [found, *told]: pass",
    ],
)
def test_a_breach_is_seen(source: str) -> None:
    assert breaches(ast.parse(source))


def test_words_inside_other_words_are_fine() -> None:
    assert not breaches(ast.parse("not_found = asked_for = FOUND = 'found'  # told"))
