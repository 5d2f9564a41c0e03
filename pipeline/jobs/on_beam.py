"""Jobs on Apache Beam: the same plain functions, wired into a pipeline.

An element is a reference to some episodes; rows are read and written inside one DoFn, and only
small outcomes are gathered for the commit, which is the last step *inside* the pipeline. By default
it runs on Beam's in-process FnApiRunner, by name, because `DirectRunner` downloads another engine
where it can. Errors of ours come home as outcomes or in the run's record, so that they stay typed
whatever a runner makes of exceptions.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

# Beam's import warns about optional packages and thereby installs a root log handler.
logging.getLogger("apache_beam").setLevel(logging.ERROR)
logging.getLogger("root").addHandler(logging.NullHandler())

import apache_beam as beam  # noqa: E402
import grpc  # type: ignore[import-untyped]  # noqa: E402
from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions  # noqa: E402
from apache_beam.runners.runner import create_runner  # noqa: E402

from pipeline.jobs import (  # noqa: E402
    ingest,
    loading,
    progress,
    records,
    score_sets,
    scoring,
    tree,
    workers,
)
from pipeline.jobs.progress import Listener  # noqa: E402
from pipeline.jobs.report import IngestReport  # noqa: E402
from pipeline.quality.passes import Stage  # noqa: E402
from pipeline.quality.reference import ReferenceModel  # noqa: E402
from pipeline.quality.sketch import SketchStage  # noqa: E402
from pipeline.store.catalog import Catalog  # noqa: E402
from schemas.errors import (  # noqa: E402
    PenstockError,
    TransientError,
    UnknownNameError,
    UsageError,
)
from schemas.jobs import IngestJob  # noqa: E402

R = TypeVar("R")

IN_PROCESS = "FnApiRunner"
ON_THIS_MACHINE = (
    *("fnapirunner", "directrunner", "switchingdirectrunner", "bundlebaseddirectrunner"),
    "prismrunner",
)


def run_ingest(
    job: IngestJob,
    *,
    runner: str = IN_PROCESS,
    options: Sequence[str] = (),
    reread: bool = False,
    listener: Listener | None = None,
    prepared: ingest.Prepared | None = None,
) -> IngestReport:
    """Runs an ingest job as a Beam pipeline and returns its report.

    Args:
        job: what to ingest; no dry run, which leaves no record for its outcome to come home in.
        runner: a Beam runner by name.
        options: further Beam options as on a command line (`--direct_num_workers=2`).
        reread: see `check_arrived`.
        listener: hears of progress, where the runner works in this process.
        prepared: what `ingest.prepare` returned, where that is done already.

    Raises:
        UsageError: for Beam's DaskRunner, which returns wrong results, or no runner's name.
        TransientError: if nobody answers at the runner's address.
        PenstockError: whatever stopped the job; nothing is committed then.
    """
    _check_runner(runner)
    prepared = prepared or ingest.prepare(job)
    beam_options = PipelineOptions([*options, f"--runner={runner}"])
    with progress.watch(job.run_id, listener), _typed_errors(runner):
        build(job, prepared, reread, beam_options).run().wait_until_finish()
    return records.take(job)


def run_measure(
    prepared: score_sets.Prepared,
    *,
    runner: str = IN_PROCESS,
    options: Sequence[str] = (),
    listener: Listener | None = None,
) -> score_sets.Measured:
    """Carries out a metric run as a Beam pipeline, commit included.

    Args:
        prepared: what there is to do.
        runner: a Beam runner by name.
        options: further Beam options as on a command line.
        listener: hears of progress, where the runner works in this process.

    Raises:
        UsageError: for Beam's DaskRunner, which returns wrong results, or no runner's name.
        TransientError: if nobody answers at the runner's address.
        PenstockError: whatever stopped the run; nothing is committed then.
    """
    _check_runner(runner)
    beam_options = PipelineOptions([*options, f"--runner={runner}"])
    with progress.watch(prepared.run_id, listener), _typed_errors(runner):
        try:
            build_measure(prepared, beam_options).run().wait_until_finish()
        except Exception:
            # Runners wrap exceptions in their own; what a worker met is in the run's record.
            records.raise_failure(prepared.catalog.objects, prepared.run_id)
            raise
    outcome = score_sets.committed(prepared)
    if outcome is None:
        raise TransientError(
            f"Beam's {runner} ended without a commit; run it again.", where=prepared.catalog.url
        )
    return outcome


def _check_runner(runner: str) -> None:
    refuse_dask(runner)
    try:
        create_runner(runner)
    except (ValueError, ImportError, AttributeError) as error:
        raise UnknownNameError(f"Expected a Beam runner, came {runner!r}: {error}") from error


@contextlib.contextmanager
def _typed_errors(runner: str) -> Iterator[None]:
    try:
        yield
    except (grpc.FutureTimeoutError, grpc.RpcError) as error:
        raise TransientError(
            f"Beam's {runner} did not answer, or went away ({type(error).__name__}); see "
            f"that it runs at the address in its options, then run it again."
        ) from error


def refuse_dask(runner: str) -> None:
    """Raises for the one runner that reports success with results missing."""
    if _short(runner) == "daskrunner":
        raise UsageError(
            "Beam's DaskRunner computes only the last leaf of a pipeline and drops tagged and "
            "finish_bundle output, yet reports DONE; use --engine dask, or another --runner."
        )


def with_workers(runner: str, options: Sequence[str], processes: int | None) -> tuple[str, ...]:
    """Returns Beam's options for a number of worker processes.

    Raises:
        UsageError: for a runner that takes it as an option of its own.
    """
    if processes is None:
        return tuple(options)
    if _short(runner) != IN_PROCESS.lower():
        raise UsageError(
            f"Expected --workers with Beam's {IN_PROCESS} only, came {runner}; say it in the "
            f"runner's own options (--parallelism for Flink, --num_workers for Dataflow)."
        )
    if processes == 1:
        return tuple(options)
    mode = ("--direct_running_mode=multi_processing", f"--direct_num_workers={processes}")
    return (*mode, *options)


def is_elsewhere(runner: str, options: Sequence[str]) -> bool:
    """True if a runner's workers may be on other hosts."""
    if _short(runner) in ON_THIS_MACHINE:
        return False
    stated = PipelineOptions(list(options)).view_as(PortableOptions)
    return bool(stated.environment_type != "LOOPBACK")


def _short(runner: str) -> str:
    return runner.rsplit(".", 1)[-1].lower()


def build(
    job: IngestJob, prepared: ingest.Prepared, reread: bool, options: PipelineOptions
) -> beam.Pipeline:
    """Returns the pipeline of a prepared job, commit included."""
    pipeline = beam.Pipeline(options=options)
    _ = (
        pipeline
        | "Job" >> beam.Create([job])
        | "Units" >> beam.FlatMap(ingest.plan, prepared)
        | "Spread" >> beam.Reshuffle()
        | "Load" >> beam.Map(workers.load)
        | "Gather" >> beam.combiners.ToList()
        | "Commit" >> beam.Map(_finish, job, prepared, reread)
    )
    return pipeline


def _finish(
    outcomes: list[loading.UnitOutcome], job: IngestJob, prepared: ingest.Prepared, reread: bool
) -> None:
    """Commits; the report, or the reason why not, is in the run's record."""
    with contextlib.suppress(PenstockError):
        workers.commit(job, prepared, outcomes, reread)


# -- metric runs ---------------------------------------------------------------------------------

Home = tuple[Catalog, str]
"""The store and the run's id, by which a worker records what went wrong."""


class MergeParts(beam.CombineFn):  # type: ignore[misc]
    """Merges what a pass kept of all works, in the fixed tree of `tree.py`.

    Beam may merge in any order and as often as it likes: parts wait for their siblings.
    """

    def create_accumulator(self) -> tree.Nodes[Any]:
        """Returns the parts of no units."""
        return {}

    def add_input(self, accumulator: tree.Nodes[Any], element: scoring.Passed) -> tree.Nodes[Any]:
        """Adds what was kept of a work."""
        return tree.join([accumulator, element.nodes])

    def merge_accumulators(self, accumulators: Iterable[tree.Nodes[Any]]) -> tree.Nodes[Any]:
        """Joins what several workers have."""
        return tree.join(accumulators)

    def extract_output(self, accumulator: tree.Nodes[Any]) -> dict[Any, Any]:
        """Returns all units together."""
        return tree.total(accumulator)


def build_measure(prepared: score_sets.Prepared, options: PipelineOptions) -> beam.Pipeline:
    """Returns the pipeline of a metric run: two passes where a reference is fitted, then scores.

    What a pass froze reaches the next one's workers as a side input.
    """
    pipeline = beam.Pipeline(options=options)
    job = pipeline | "Run" >> beam.Create([prepared])
    home = (prepared.catalog, prepared.run_id)
    if prepared.to_fit:
        works = job | "Works to fit" >> beam.FlatMap(_to_fit) | "Spread" >> beam.Reshuffle()
        first = SketchStage(prepared.config)
        sketch = (
            works
            | "Sketch" >> beam.Map(_pass_over, first, home)
            | "Merge sketches" >> beam.CombineGlobally(MergeParts())
            | "Freeze scales" >> beam.Map(first.finalise)
        )
        frozen = beam.pvalue.AsSingleton(sketch)
        model = (
            works
            | "Gather evidence" >> beam.Map(_pass_over, frozen, home)
            | "Merge evidence" >> beam.CombineGlobally(MergeParts())
            | "Fit" >> beam.Map(_finalised, frozen)
        )
    else:
        model = job | "Known model" >> beam.Map(score_sets.known_model)
    _ = (
        job
        | "Works to score" >> beam.FlatMap(_to_score)
        | "Spread again" >> beam.Reshuffle()
        | "Score" >> beam.Map(_score, beam.pvalue.AsSingleton(model), home)
        | "Gather scores" >> beam.combiners.ToList()
        | "Commit scores" >> beam.Map(_commit, beam.pvalue.AsSingleton(model), prepared)
    )
    return pipeline


def _to_fit(prepared: score_sets.Prepared) -> tuple[scoring.Work, ...]:
    return prepared.to_fit


def _to_score(prepared: score_sets.Prepared) -> tuple[scoring.Work, ...]:
    return prepared.to_score


def _pass_over(work: scoring.Work, stage: Stage[Any], home: Home) -> scoring.Passed:
    return _recorded(home, lambda: scoring.pass_over(stage, work))


def _finalised(kept: dict[Any, Any], stage: Any) -> ReferenceModel:
    model: ReferenceModel = stage.finalise(kept)
    return model


def _score(work: scoring.Work, model: ReferenceModel, home: Home) -> scoring.Scored:
    outcome = _recorded(home, lambda: scoring.score(model, work))
    progress.advance(home[1], outcome.episodes, outcome.steps)
    return outcome


def _commit(
    scored: list[scoring.Scored], model: ReferenceModel, prepared: score_sets.Prepared
) -> None:
    home = (prepared.catalog, prepared.run_id)
    _recorded(home, lambda: score_sets.finish(prepared, model, scoring.by_metrics(scored)))


def _recorded(home: Home, function: Callable[[], R]) -> R:
    """Calls a function; an error of ours is recorded, for a runner may not bring it home."""
    try:
        return function()
    except PenstockError as error:
        catalog, run_id = home
        records.leave_failure(catalog.objects, run_id, error)
        raise
