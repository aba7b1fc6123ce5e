"""The ``instructedit`` command. Each command lives in a file of its own and only calls the library."""

from __future__ import annotations

import logging
import sys

import typer

from instructedit.cli import analyze, build_base, demo, doctor, edit, evaluate, instructions, reproduce, tasks, train
from instructedit.cli.console import err
from instructedit.errors import InstructEditError

app = typer.Typer(
    name="instructedit",
    help="Edit what a language model knows, by instruction.\n\n"
    "Start with `instructedit demo`. Models are `bundled`, a folder with a Hugging Face checkpoint, or a hub id.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
)
app.command("demo")(demo.demo)
app.command("edit")(edit.edit)
app.command("evaluate")(evaluate.evaluate_command)
app.command("train")(train.train_command)
app.command("reproduce")(reproduce.reproduce)
app.command("tasks")(tasks.tasks)
app.add_typer(instructions.app, name="instructions")
app.add_typer(analyze.app, name="analyze")
app.command("doctor")(doctor.doctor)
app.command("build-base")(build_base.build_base_command)


def main() -> None:
    """Entry point: an error that we raise on purpose becomes its message and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        app()
    except InstructEditError as error:
        err.print(f"[bold red]error[/] {type(error).__name__}", highlight=False)
        err.print(str(error), highlight=False, markup=False)
        sys.exit(2)
    except KeyboardInterrupt:
        err.print("interrupted")
        sys.exit(130)


if __name__ == "__main__":
    main()
