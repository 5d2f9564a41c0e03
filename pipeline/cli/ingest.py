"""`penstock ingest`; `beam_runner.py` is the same with `--engine beam`."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.output import Json, emit, note, say, size

if TYPE_CHECKING:
    from pipeline.jobs.report import IngestReport
    from schemas.jobs import JobFile

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
MetricsFile = Annotated[
    Text, typer.Option(metavar="FILE", help="Write the outcome there for Prometheus.")
]
LogFormat = Annotated[
    Text, typer.Option(metavar="text|json", help="By default json where nobody watches.")
]
HARD_SECONDS = 10.0
"""A job past its timeout that does not end by itself is ended after so many more."""


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
    metrics_file: MetricsFile = None,
    log_format: LogFormat = None,
    json: Json = False,
) -> int:
    flags = {flag: value for flag, value in locals().items() if flag not in ("sources", "json")}

    from pipeline.cli.logs import job_logs
    from pipeline.jobs.jobfile import job_of
    from pipeline.jobs.schedule import repeat, stopped_by_signals

    wanted, options = _sources_and_options(sources, engine)
    asked = job_of(wanted, _given(flags))
    with job_logs(asked.log_format) as is_logged:
        once = _Run(asked, options, json=json, is_logged=is_logged)
        if asked.every is None:
            return once.run(lambda: False)
        with stopped_by_signals() as stop:
            repeat(lambda: once.run_patiently(stop.is_set), asked.every, stop)
        return 0


class _Run:
    """Runs of one job, and what they tell."""

    def __init__(
        self, asked: JobFile, options: tuple[str, ...], *, json: bool, is_logged: bool
    ) -> None:
        self._asked = asked
        self._options = options
        self._json = json
        self._is_logged = is_logged

    def run(self, is_stopped: Callable[[], bool]) -> int:
        """Runs the job; returns the exit code."""
        from pipeline.jobs.events import tell
        from schemas.errors import PenstockError

        began = time.time()
        try:
            report = self._report(is_stopped)
        except PenstockError as error:
            self._measure(error.exit_code, began, None)
            if self._is_logged and (self._asked.log_format or error.exit_code != 2):
                tell("refused", kind=error.kind, message=error.message, where=error.where)
            raise
        code = 3 if report.episodes_quarantined else 0
        self._measure(code, began, report)
        self._tell(report)
        return code

    def run_patiently(self, is_stopped: Callable[[], bool]) -> int:
        """Like `run`, but an error is told and left for the next run."""
        from schemas.errors import PenstockError

        try:
            return self.run(is_stopped)
        except PenstockError as error:
            note(f"penstock: {error.message}")
            return error.exit_code

    def _report(self, is_stopped: Callable[[], bool]) -> IngestReport:
        from pipeline.cli.progress import steps_bar
        from pipeline.jobs import runs
        from pipeline.store.layout import new_id

        job = self._asked.job(new_id())
        engine = self._asked.engine_config(self._options)
        with _ended_after(job.timeout), steps_bar("ingest", quiet=self._json) as listener:
            return runs.run(job, engine, listener, is_stopped=is_stopped)

    def _measure(self, code: int, began: float, report: IngestReport | None) -> None:
        from pipeline.jobs.metrics_file import write_metrics

        if self._asked.metrics_file is not None:
            name = self._asked.name or self._asked.into
            write_metrics(Path(self._asked.metrics_file), name, code, time.time() - began, report)

    def _tell(self, report: IngestReport) -> None:
        from pipeline.jobs.events import tell

        if self._json:
            emit({name: value for name, value in vars(report).items() if name != "guesses"})
        else:
            _say(report)
        for event, texts in (("guessed", report.guesses), ("warned", report.warnings)):
            for text in texts:
                if self._is_logged:
                    tell(event, message=text)
                else:
                    note(f"{event}: {text}")


@contextlib.contextmanager
def _ended_after(timeout: float | None) -> Iterator[None]:
    """Ends this process where a job past its timeout hangs: commits are whole or not at all."""

    def end() -> None:
        note("penstock: The job's time is up and it does not end by itself; run it again.")
        os._exit(5)

    if timeout is None:
        yield
        return
    timer = threading.Timer(timeout + HARD_SECONDS, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


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
        flag = options[0].partition("=")[0]
        known = [f"--{name.replace('_', '-')}" for name in inspect.signature(ingest).parameters]
        near = difflib.get_close_matches(flag, known, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else "see `penstock ingest --help`."
        raise UsageError(f"No such option: {flag}; {hint}")
    return tuple(argument for argument in given if argument not in options), options


def _say(report: IngestReport) -> None:
    steps = f"{report.steps_added:,} steps"
    if report.dry_run:
        came = f"dry run, nothing written: {report.episodes_added:,} episodes are new ({steps})"
    else:
        came = f"{report.branch}:{report.number}: {report.episodes_added:,} episodes added"
        came += f" ({steps}, {size(report.bytes_written)})"
    changed = f"{report.episodes_changed:,} changed, " * bool(report.episodes_changed)
    say(
        f"{came}, {report.episodes_known:,} known, {changed}"
        f"{report.episodes_quarantined:,} quarantined, {report.seconds:.1f} s"
    )
    for code, count in sorted(report.reasons.items()):
        say(f"  {code}: {count}")
    if report.episodes_quarantined:
        print("  penstock quarantine STORE lists them.", file=sys.stderr)
