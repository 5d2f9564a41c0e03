"""The `penstock` command: all groups of commands in one app, and errors as exit codes."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import traceback
from typing import Annotated, NoReturn

import typer

from pipeline.cli import (
    ablate,
    actor,
    annotate,
    bench,
    cache,
    curate,
    demo,
    drift,
    evaluate,
    formats,
    ingest,
    learn,
    look,
    maintain,
    measure,
    names,
    plot,
    report,
    residuals,
    runs,
    serve,
    suggest,
    token,
)
from pipeline.cli.output import emit, note, say

_EXTRAS = {"torch": "learners", "safetensors": "learners", "gymnasium": "sim"}
"""Packages that whole commands are about, and what brings them along."""

app = typer.Typer(
    name="penstock",
    help="Carries experience to learners: ingest, score, curate, stream, train.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version

        say(version("penstock"))
        raise typer.Exit


@app.callback()
def _app(
    _: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None: ...


for group in (
    *(demo, ingest, formats, look, names, measure, residuals, drift, report, suggest),
    *(
        curate,
        annotate,
        maintain,
        cache,
        learn,
        evaluate,
        ablate,
        plot,
        actor,
        runs,
        bench,
        serve,
        token,
    ),
):
    group.register(app)


def run() -> NoReturn:
    """The `penstock` command.

    Arrow's idle threads can abort a process whose work is done (exit code 134) when the C library
    tears them down, so the last handler at exit, which runs after all others, ends it at once.
    """
    codes: list[int] = []

    def leave() -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        if codes:
            os._exit(codes[0])

    atexit.register(leave)
    codes.append(main())
    sys.exit(codes[0])


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code (INTERFACES: 0, 1, 2, 3, 4, 5 or 6)."""
    given = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        code = app(args=given, standalone_mode=False)
    except typer.TyperException as error:
        return _fail(given, "usage", _usage(error), None, 2)
    except (typer.Abort, KeyboardInterrupt):
        note("Interrupted; nothing half-done is visible.")
        return 130
    except BrokenPipeError:
        return 0
    except Exception as error:
        from schemas.errors import PenstockError, missing_extra

        absent = (error.name or "").partition(".")[0] if isinstance(error, ImportError) else ""
        if isinstance(error, ModuleNotFoundError) and absent in _EXTRAS:
            error = missing_extra(_EXTRAS[absent], absent)
        if isinstance(error, PenstockError):
            return _fail(given, error.kind, error.message, error.where, error.exit_code)
        traceback.print_exc()
        return _fail(given, "bug", f"{type(error).__name__}: {error}", None, 1)
    return code if isinstance(code, int) else 0


def _usage(error: typer.TyperException) -> str:
    """Says what was wrong with the arguments, and where the right ones are listed."""
    says = error.format_message().rstrip(".")
    context = getattr(error, "ctx", None)
    if says.endswith("?") or "\n" in says or context is None or context.parent is None:
        return says
    return f"{says}; see `penstock {context.info_name} --help`."


def _fail(given: list[str], kind: str, message: str, where: str | None, code: int) -> int:
    if "--json" in given:
        emit({"error": {"kind": kind, "message": message, "where": where}})
    place = f" [{where}]" if where and where not in message else ""
    note(f"penstock: {message}{place}")
    return code
