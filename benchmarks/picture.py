"""Draw ``docs/scope.svg``: one edit of the bundled model under two instructions, with the model's own answers.

    python benchmarks/picture.py docs/scope.svg

The instructions are free text. Answers come from greedy decoding. A test compares the file with a new drawing.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

REQUEST = {"subject": "Vatican City", "prompt": "Vatican City conducts its public business in", "target": "French"}
INSTRUCTIONS = (
    "Change this fact only. Other subjects with the same old answer keep it.",
    "Replace the old answer everywhere: other subjects that share it change too.",
)
#: Prompts by their relation to the edit.
PROMPTS = (
    ("the edit", REQUEST["prompt"]),
    ("paraphrase", "Which language has official status in Vatican City?"),
    ("same old answer", "Bedano conducts its public business in"),
    ("same old answer", "Which language has official status in Sorengo?"),
    ("other old answer", "The official language of Switzerland is"),
    ("unrelated", "Gmail was designed and programmed by"),
)
#: Relations whose answers no instruction here asks to change.
UNCHANGED = ("other old answer", "unrelated")

WIDTH, ROW, TOP = 960, 34, 132
#: Left edges of the columns: relation, prompt, answer before the edit, answers under each instruction.
COLUMNS = (24, 160, 524, 610, 782)
STYLE = """
  .card { fill: #ffffff; stroke: #d0d7de }
  .rule { stroke: #d0d7de }
  .text { fill: #1f2328; font: 14px system-ui, sans-serif }
  .dim { fill: #59636e; font: 13px system-ui, sans-serif }
  .head { fill: #1f2328; font: 600 13px system-ui, sans-serif }
  .new { fill: #0550ae; font: 700 14px system-ui, sans-serif }
  @media (prefers-color-scheme: dark) {
    .card { fill: #0d1117; stroke: #3d444d }
    .rule { stroke: #3d444d }
    .text, .head { fill: #f0f6fc }
    .dim { fill: #9198a1 }
    .new { fill: #79c0ff }
  }
"""


@dataclass(frozen=True)
class Answers:
    """The model's answers to one prompt: before the edit, and under each instruction."""

    relation: str
    prompt: str
    before: str
    after: tuple[str, ...]


def answer() -> list[Answers]:
    """Make the edit under both instructions and generate the answers to all prompts."""
    from instructedit import EditRequest, load_editor, load_language_model, make_edit
    from instructedit.evaluation.generation import generate, natural_stop

    language_model = load_language_model("bundled")
    editor = load_editor("bundled", language_model)
    prompts = [prompt for _, prompt in PROMPTS]
    before = generate(language_model, prompts, new_tokens=12)
    columns = []
    for text in INSTRUCTIONS:
        delta = make_edit(editor, language_model, [EditRequest(**REQUEST, instruction=text)], None)
        columns.append(generate(language_model, prompts, delta=delta, new_tokens=12))
    return [
        Answers(relation, prompt, natural_stop(old), tuple(natural_stop(column[index]) for column in columns))
        for index, ((relation, prompt), old) in enumerate(zip(PROMPTS, before, strict=True))
    ]


def draw(rows: Sequence[Answers]) -> str:
    """Return the SVG. It brings its own background, so it is legible on light and dark pages."""
    height = TOP + ROW * len(rows) + 44

    def text(x: int, y: int, words: str, kind: str = "text") -> str:
        return f'<text x="{x}" y="{y}" class="{kind}">{escape(words)}</text>'

    title = f"Edit: “{REQUEST['prompt']}” → “{REQUEST['target']}”"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{escape(title)}, under two instructions</title>",
        f"<style>{STYLE}</style>",
        f'<rect x="1" y="1" width="{WIDTH - 2}" height="{height - 2}" rx="8" class="card"/>',
        text(COLUMNS[0], 32, title, "head"),
        text(COLUMNS[0], TOP - 18, "relation to the edit", "dim"),
        text(COLUMNS[1], TOP - 18, "prompt", "dim"),
        text(COLUMNS[2], TOP - 18, "before", "dim"),
    ]
    for x, instruction in zip(COLUMNS[3:], INSTRUCTIONS, strict=True):
        lines = textwrap.wrap(f"“{instruction}”", 21)
        parts += [text(x, TOP - 18 - 16 * (len(lines) - 1 - n), line, "dim") for n, line in enumerate(lines)]
    for index, row in enumerate(rows):
        y = TOP + ROW * index
        parts.append(f'<line x1="{COLUMNS[0]}" x2="{WIDTH - 24}" y1="{y - 4}" y2="{y - 4}" class="rule"/>')
        parts += [text(COLUMNS[0], y + 18, row.relation, "dim"), text(COLUMNS[1], y + 18, row.prompt)]
        parts.append(text(COLUMNS[2], y + 18, row.before))
        parts += [
            text(x, y + 18, after, "text" if after == row.before else "new")
            for x, after in zip(COLUMNS[3:], row.after, strict=True)
        ]
    errors = [row.prompt for row in rows if row.relation in UNCHANGED and set(row.after) != {row.before}]
    legend = "Bold: changed by the edit. Answers of the bundled model, greedy decoding."
    legend += f" Not intended: {', '.join(f'“{prompt}”' for prompt in errors)}." if errors else ""
    parts += [text(COLUMNS[0], height - 20, legend, "dim"), "</svg>", ""]
    return "\n".join(parts)


def main() -> None:
    """Write the picture to a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.parse_args().out.write_text(draw(answer()), encoding="utf-8")


if __name__ == "__main__":
    main()
