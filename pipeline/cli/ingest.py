"""`penstock ingest`; `beam_runner.py` is the same with `--engine beam`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.output import Json, emit, note, say, size

if TYPE_CHECKING:
    from pipeline.jobs.report import IngestReport

Sources = Annotated[
    list[str], typer.Argument(metavar="SOURCE...", help="Files, folders, or FORMAT:WHERE.")
]
Into = Annotated[str, typer.Option("--into", metavar="STORE", help="Made if it is not there.")]
Format = Annotated[str | None, typer.Option("--format", help="By default told from the source.")]
Branch = Annotated[str, typer.Option("--branch", help="Where the episodes go.")]
Tag = Annotated[str | None, typer.Option("--tag", help="Name for the resulting version.")]
Namespace = Annotated[
    str | None, typer.Option("--namespace", help="In place of the dataset's own id.")
]
MaxEpisodes = Annotated[
    int | None, typer.Option("--max-episodes", min=1, help="Only the first N of each source.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Read and check, write nothing.")]
SingleWriter = Annotated[
    bool,
    typer.Option(
        "--single-writer",
        help="Nobody else writes to STORE: for storage without conditional writes.",
    ),
]
Message = Annotated[str | None, typer.Option("--message", "-m", help="For the log.")]
Engine = Annotated[str, typer.Option("--engine", help="in-process or beam.")]
Runner = Annotated[str | None, typer.Option("--runner", help="A Beam runner, with --engine beam.")]


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(
        "ingest",
        help="Bring episodes into a store.\n\n"
        "Example: penstock ingest minari:hopper/medium-v0 demos.hdf5 --into ./store",
        context_settings={"ignore_unknown_options": True},
    )(ingest)


def ingest(
    sources: Sources,
    into: Into,
    format: Format = None,
    branch: Branch = "main",
    tag: Tag = None,
    namespace: Namespace = None,
    max_episodes: MaxEpisodes = None,
    dry_run: DryRun = False,
    single_writer: SingleWriter = False,
    message: Message = None,
    engine: Engine = "in-process",
    runner: Runner = None,
    json: Json = False,
) -> int:
    from pipeline.cli.progress import steps_bar
    from pipeline.jobs.on_beam import run_ingest
    from pipeline.store.layout import new_id
    from schemas.jobs import IngestJob

    wanted, options = _sources_and_options(sources, engine)
    chosen = _runner_of(engine, runner)
    job = IngestJob(
        sources=wanted,
        into=into,
        format=format,
        branch=branch,
        tag=tag,
        namespace=namespace,
        max_episodes=max_episodes,
        dry_run=dry_run,
        single_writer=single_writer,
        message=message,
        run_id=new_id(),
    )
    with steps_bar("ingest", quiet=json) as listener:
        report = run_ingest(job, runner=chosen, options=options, listener=listener)
    if json:
        emit({name: value for name, value in vars(report).items() if name != "guesses"})
    else:
        _tell(report)
    for guess in report.guesses:
        note(f"guessed: {guess}")
    return 3 if report.episodes_quarantined else 0


def _sources_and_options(given: list[str], engine: str) -> tuple[tuple[str, ...], list[str]]:
    """Parts sources from options we do not know, which are Beam's own (`--name=value`)."""
    from schemas.errors import UsageError

    options = [argument for argument in given if argument.startswith("--")]
    if options and engine != "beam":
        raise UsageError(f"No such option: {options[0]}; `penstock ingest --help` lists them.")
    return tuple(argument for argument in given if argument not in options), options


def _runner_of(engine: str, runner: str | None) -> str:
    from schemas.errors import UnknownNameError, UsageError, suggest

    if engine not in ("in-process", "beam"):
        raise UnknownNameError(
            f"Expected an engine, came {engine!r}; {suggest(engine, ('in-process', 'beam'))}"
        )
    if runner is not None and engine != "beam":
        raise UsageError("Expected --runner only with --engine beam.")
    return runner or "FnApiRunner"


def _tell(report: IngestReport) -> None:
    place = f"{report.branch}:{report.number}" if report.number else "nothing (dry run)"
    say(
        f"{place}: {report.episodes_added:,} episodes added ({report.steps_added:,} steps, "
        f"{size(report.bytes_written)}), {report.episodes_known:,} known, "
        f"{report.episodes_quarantined:,} quarantined, {report.seconds:.1f} s"
    )
    for code, count in sorted(report.reasons.items()):
        say(f"  {code}: {count}")
    if report.episodes_quarantined:
        print("  penstock quarantine STORE lists them.", file=sys.stderr)
