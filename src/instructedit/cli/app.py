"""The ``instructedit`` command; each subcommand is a module that only calls the library."""

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
    convert,
    demo,
    doctor,
    edit,
    editors,
    edits,
    evaluate,
    export,
    instructions,
    metrics,
    models,
    push,
    reproduce,
    tasks,
    train,
)
from instructedit.cli.console import discard_output, err, fail, log_to_console, out
from instructedit.cli.failures import INTERRUPTED, ClickException, failure_of
from instructedit.cli.threads import request_threads
from instructedit.threads import sleep_while_waiting

app = typer.Typer(
    name="instructedit",
    help="Edit facts in a language model by instruction.\n\n"
    "Start with `instructedit demo`, which downloads SmolLM2-135M-Instruct and edits it. --model accepts a name that "
    "`instructedit models` lists, a folder with a Hugging Face checkpoint, a GGUF file, or a hub id.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,  # it would interpret markup in untrusted text
)
app.command("demo")(demo.demo)
app.command("edit")(edit.edit)
app.command("export")(export.export)
app.command("push")(push.push)
app.command("evaluate")(evaluate.evaluate_command)
app.command("train")(train.train_command)
app.command("convert")(convert.convert)
app.command("reproduce")(reproduce.reproduce)
app.command("tasks")(tasks.tasks)
app.command("metrics")(metrics.metrics)
app.command("editors")(editors.editors)
app.add_typer(edits.app, name="edits")
app.add_typer(models.app, name="models")
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
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version and exit.")
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of CPU threads. Default: the environment variable OMP_NUM_THREADS, or the free cores."
        ),
    ] = None,
) -> None:
    request_threads(threads)


def main() -> None:
    """Run the command; every error becomes a message and an exit code (see :mod:`instructedit.cli.failures`)."""
    sleep_while_waiting()
    sys.exit(_run(sys.argv[1:]))


def _run(arguments: list[str]) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # escape characters that the terminal's encoding lacks
            stream.reconfigure(errors="backslashreplace")
    log_to_console()
    try:
        not_unicode = next((text for text in arguments if not _is_unicode(text)), None)
        if not_unicode is not None:
            fail("DataError", f"the argument {not_unicode!a} is not UTF-8 text")
            return 2
        # Without standalone_mode=False typer would print errors itself, and interpret markup in untrusted text.
        result: Any = app(arguments, prog_name="instructedit", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()  # an error such as a full disk occurs here, where it can be reported
    except ClickException as error:
        return _usage(error)
    except (KeyboardInterrupt, typer.Abort):
        result = 130
    except Exception as error:  # noqa: BLE001 - the user gets a message instead of a traceback
        if os.environ.get("INSTRUCTEDIT_DEBUG"):
            traceback.print_exc()
        _discard_unwritable_output()
        failure = failure_of(error)
        fail(failure.kind, failure.message)
        return failure.code
    if result == 130:  # newer versions of typer return 130 instead of raising an exception
        err.print(INTERRUPTED)
    return result if isinstance(result, int) else 0


def _usage(error: Any) -> int:
    """Print the usage and the problem of a wrong command line, and return the exit code."""
    message = error.format_message()
    context = getattr(error, "ctx", None)
    if message:  # empty if the help has been printed
        if context is not None:
            err.print(context.get_usage(), soft_wrap=True)
            err.print(f"Try '{context.command_path} --help' for help.", style="dim", soft_wrap=True)
        fail("usage", message)
    return int(error.exit_code)


def _discard_unwritable_output() -> None:
    """Discard buffered output that cannot be written, so that Python does not fail on it again when it exits."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        discard_output(sys.stdout)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


if __name__ == "__main__":
    main()
