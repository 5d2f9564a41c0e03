"""`penstock ingest`; `beam_runner.py` is the same with `--engine beam`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.output import Json, emit, note, say, size

if TYPE_CHECKING:
    from pipeline.jobs.report import IngestReport

Text = str | None
Sources = Annotated[
    list[str],
    typer.Argument(metavar="SOURCE...", help="Files, folders, FORMAT:WHERE; or JOB.yaml."),
]
Into = Annotated[Text, typer.Option(metavar="STORE", help="Made if it is not there.")]
Name = Annotated[Text, typer.Option(help="Name of the job: one run of it at a time.")]
Format = Annotated[Text, typer.Option(help="By default told from the source.")]
Branch = Annotated[Text, typer.Option(help="Where the episodes go (main).")]
Tag = Annotated[Text, typer.Option(help="Name for the resulting version.")]
Namespace = Annotated[Text, typer.Option(help="In place of the dataset's own id.")]
NewSpec = Annotated[
    Text, typer.Option(metavar="NAME", help="Episodes of other fields join as NAME.")
]
OnChange = Annotated[
    Text, typer.Option(metavar="quarantine|replace", help="A known id with other content.")
]
Link = Annotated[bool, typer.Option("--link", help="Refer to the sources' files, copy nothing.")]
Gate = Annotated[Text, typer.Option(metavar="FILE", help="Quality rules (YAML).")]
Dtype = Annotated[Text, typer.Option(help="Cast numbers with a fraction, such as float32.")]
CommitEvery = Annotated[int | None, typer.Option(metavar="N", help="One commit per N episodes.")]
MaxEpisodes = Annotated[int | None, typer.Option(metavar="N", help="The first N of each source.")]
Backfill = Annotated[bool, typer.Option("--backfill", help="Read unchanged sources again too.")]
Lag = Annotated[Text, typer.Option(metavar="TIME", help="Leave files younger than this (10m).")]
Timeout = Annotated[Text, typer.Option(metavar="TIME", help="Give up after this (30m).")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Read and check, write nothing.")]
SingleWriter = Annotated[
    bool,
    typer.Option(
        "--single-writer",
        help="Nobody else writes to STORE: for storage without conditional writes.",
    ),
]
SharedFilesystem = Annotated[
    bool, typer.Option("--shared-filesystem", help="Workers elsewhere see the same paths.")
]
Message = Annotated[Text, typer.Option("--message", "-m", help="For the log.")]
Engine = Annotated[Text, typer.Option(metavar="in-process|dask|beam", help="What does the work.")]
Workers = Annotated[int | None, typer.Option(metavar="N", help="Processes that work at once.")]
Dask = Annotated[Text, typer.Option(metavar="ADDRESS", help="A Dask scheduler.")]
Runner = Annotated[Text, typer.Option(help="A Beam runner, with --engine beam.")]
Every = Annotated[Text, typer.Option(metavar="TIME", help="Run again and again (5m).")]


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
    into: Into = None,
    name: Name = None,
    format: Format = None,
    branch: Branch = None,
    tag: Tag = None,
    namespace: Namespace = None,
    new_spec: NewSpec = None,
    on_change: OnChange = None,
    link: Link = False,
    gate: Gate = None,
    dtype: Dtype = None,
    commit_every: CommitEvery = None,
    max_episodes: MaxEpisodes = None,
    backfill: Backfill = False,
    lag: Lag = None,
    timeout: Timeout = None,
    dry_run: DryRun = False,
    single_writer: SingleWriter = False,
    shared_filesystem: SharedFilesystem = False,
    message: Message = None,
    engine: Engine = None,
    workers: Workers = None,
    dask: Dask = None,
    runner: Runner = None,
    every: Every = None,
    json: Json = False,
) -> int:
    flags = {flag: value for flag, value in locals().items() if flag not in ("sources", "json")}

    from pipeline.cli.progress import steps_bar
    from pipeline.jobs import engines
    from pipeline.jobs.jobfile import job_of
    from pipeline.store.layout import new_id

    wanted, options = _sources_and_options(sources, engine)
    asked = job_of(wanted, _given(flags))
    job = asked.job(new_id())
    with steps_bar("ingest", quiet=json) as listener:
        report = engines.run(job, asked.engine_config(options), listener)
    if json:
        emit({name: value for name, value in vars(report).items() if name != "guesses"})
    else:
        _tell(report)
    for guess in report.guesses:
        note(f"guessed: {guess}")
    return 3 if report.episodes_quarantined else 0


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    """What was said on the command line, which holds against a job file."""
    return {
        name: value for name, value in flags.items() if value is not None and value is not False
    }


def _sources_and_options(
    given: list[str], engine: str | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Parts sources from options we do not know, which are Beam's own (`--name=value`)."""
    from schemas.errors import UsageError

    options = tuple(argument for argument in given if argument.startswith("--"))
    if options and engine != "beam":
        raise UsageError(f"No such option: {options[0]}; `penstock ingest --help` lists them.")
    return tuple(argument for argument in given if argument not in options), options


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
