"""The ``instructedit`` command. Each command lives in a file of its own and only calls the library."""

from __future__ import annotations

import io
import os
import sys
import traceback
from typing import Annotated, Any

import typer

from instructedit.cli import (
    analyze,
    build_base,
    demo,
    doctor,
    edit,
    editors,
    evaluate,
    instructions,
    reproduce,
    tasks,
    train,
)
from instructedit.cli.console import err, fail, leave, log_to_console, out
from instructedit.cli.failures import INTERRUPTED, ClickException, failure_of

app = typer.Typer(
    name="instructedit",
    help="Edit what a language model knows, by instruction.\n\n"
    "Start with `instructedit demo`. Models are `bundled`, a folder with a Hugging Face checkpoint, or a hub id.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,  # it reads users' text as markup
)
app.command("demo")(demo.demo)
app.command("edit")(edit.edit)
app.command("evaluate")(evaluate.evaluate_command)
app.command("train")(train.train_command)
app.command("reproduce")(reproduce.reproduce)
app.command("tasks")(tasks.tasks)
app.command("editors")(editors.editors)
app.add_typer(instructions.app, name="instructions")
app.add_typer(analyze.app, name="analyze")
app.command("doctor")(doctor.doctor)
app.command("build-base")(build_base.build_base_command)


def _show_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        out.print(f"instructedit {version('instructedit')}")
        raise typer.Exit


@app.callback()
def _start(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version and end.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point: whatever goes wrong becomes a message and an exit code (:mod:`instructedit.cli.failures`)."""
    sys.exit(_run(sys.argv[1:]))


def _run(arguments: list[str]) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a character that the terminal lacks is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    log_to_console()
    try:
        wrong = next((text for text in arguments if not _is_unicode(text)), None)
        if wrong is not None:
            fail("DataError", f"the argument {wrong!a} is not UTF-8 text")
            return 2
        # Not standalone: typer's own error messages would read users' text as markup.
        result: Any = app(arguments, prog_name="instructedit", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()  # a full disk shows now, where it can still be reported
    except ClickException as error:
        return _usage(error)
    except (KeyboardInterrupt, typer.Abort):
        result = 130
    except Exception as error:  # noqa: BLE001 - the last place where a user can be told in words
        if os.environ.get("INSTRUCTEDIT_DEBUG"):
            traceback.print_exc()
        _leave_unwritable()
        failure = failure_of(error)
        fail(failure.kind, failure.message)
        return failure.code
    if result == 130:  # newer versions of typer return it instead of raising
        err.print(INTERRUPTED)
    return result if isinstance(result, int) else 0


def _usage(error: Any) -> int:
    """A mistake in the command line itself: the usage, where help is, and what is wrong."""
    message = error.format_message()
    context = getattr(error, "ctx", None)
    if message:  # none: the help has been printed already
        if context is not None:
            err.print(context.get_usage(), soft_wrap=True)
            err.print(f"Try '{context.command_path} --help' for help.", style="dim", soft_wrap=True)
        fail("usage", message)
    return int(error.exit_code)


def _leave_unwritable() -> None:
    """Give up on a standard output that cannot be written, or Python fails on it once more while it ends."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        leave(sys.stdout)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


if __name__ == "__main__":
    main()
