"""Jobs on Dask: the same plain functions, mapped over a cluster's workers.

What travels are references and small outcomes. The commit is a task like the others: where a worker
dies, Dask runs what it had on another one, and a run commits once. Beam's own DaskRunner is another
matter (see `on_beam.refuse_dask`).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import dask
from distributed import Client, KilledWorker, LocalCluster
from distributed.comm import CommClosedError

from pipeline.jobs import ingest, workers
from pipeline.jobs.progress import Listener
from pipeline.jobs.report import IngestReport
from pipeline.jobs.scoring import Mapper, Work
from pipeline.jobs.spread import spread
from schemas.errors import TransientError, UsageError
from schemas.jobs import IngestJob

S = TypeVar("S")
R = TypeVar("R")

CONNECT_SECONDS = 30
WORKER_SECONDS = 120
"""How long a cluster may take until it has a worker."""
IN_FLIGHT = 4
"""Elements on the way per thread of the cluster: enough that no worker waits for its next."""
MIN_IN_FLIGHT = 32
"""For clusters that grow when they have work."""
_ADDRESS = re.compile(r"(?:(?:tcp|tls|ucx|ws|wss)://)?[^\s/]+:\d+")
# Outcomes go to the commit as one argument; they are small, and there is one such task.
_SETTINGS = {"distributed.admin.large-graph-warning-threshold": "1GB"}


def run_ingest(
    job: IngestJob,
    *,
    address: str | None = None,
    processes: int | None = None,
    listener: Listener | None = None,
    prepared: ingest.Prepared | None = None,
) -> IngestReport:
    """Runs an ingest job on a Dask cluster and returns its report.

    Args:
        job: what to ingest.
        address: a scheduler's, such as `tcp://host:8786`; None starts a cluster of worker
            processes on this machine, and ends it with the job.
        processes: how many of those; by default one per core.
        listener: hears of progress as outcomes come home.
        prepared: what `ingest.prepare` returned, where that is done already.

    Raises:
        TransientError: if the cluster is not reached, or its workers keep dying.
        PenstockError: whatever else stopped the job; nothing is committed then.
    """
    prepared = prepared or ingest.prepare(job)
    elements = ingest.plan(job, prepared)
    with cluster(address, processes) as client, client.get_executor(pure=False) as pool:
        in_flight = max(MIN_IN_FLIGHT, IN_FLIGHT * sum(client.nthreads().values()))
        home = spread(pool, workers.load, elements, in_flight=in_flight)
        outcomes = list(workers.until_failure(workers.telling(home, listener)))
        last = pool.submit(workers.commit, job, prepared, outcomes, address is not None)
        report: IngestReport = last.result()
        return report


def mapper(client: Client) -> Mapper:
    """Returns what maps the works of a metric run over a cluster's workers."""

    def spread_over(
        function: Callable[[S, Work], R], frozen: S, works: Sequence[Work]
    ) -> Iterator[R]:
        in_flight = max(MIN_IN_FLIGHT, IN_FLIGHT * sum(client.nthreads().values()))
        # A task, and no scattered datum: if the worker that holds it dies, it is made again.
        side = client.submit(_as_it_is, frozen, pure=False)
        with client.get_executor(pure=False) as pool:
            pairs = [(side, work) for work in works]
            yield from spread(pool, partial(_called, function), pairs, in_flight=in_flight)

    return spread_over


def _as_it_is(frozen: S) -> S:
    return frozen


def _called(function: Callable[[S, Work], R], pair: tuple[S, Work]) -> R:
    frozen, work = pair
    return function(frozen, work)


@contextmanager
def cluster(address: str | None, processes: int | None) -> Iterator[Client]:
    """Connects to a cluster, or starts one; what goes wrong with it is of our error tree.

    Raises:
        UsageError: if the address is none, or workers cannot load this package.
        TransientError: if nobody answers, no worker comes, or workers keep dying.
    """
    with dask.config.set(_SETTINGS), _typed_errors(address or "this machine"):
        if address is not None:
            with _connect(address) as client:
                yield client
            return
        with start(processes) as local, Client(local, set_as_default=False) as client:
            yield client


def start(processes: int | None) -> LocalCluster:
    """Starts a scheduler and single-threaded worker processes on this machine, for us alone.

    Raises:
        UsageError: if they cannot load the script that starts them.
    """
    try:
        return LocalCluster(
            n_workers=processes,
            threads_per_worker=1,
            # None would still open the default port, and warn where somebody else has it.
            scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
            silence_logs=logging.ERROR,
        )
    except RuntimeError as error:
        raise UsageError(
            f"Dask could not start worker processes ({error}). They load the script that starts "
            f"them: what it does belongs below `if __name__ == '__main__':`."
        ) from error


def _connect(address: str) -> Client:
    if not _ADDRESS.fullmatch(address):
        raise UsageError(
            f"Expected the address of a Dask scheduler such as tcp://host:8786, came {address!r}."
        )
    try:
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except OSError as error:
        raise TransientError(
            f"Expected a Dask scheduler at {address}, none answered within {CONNECT_SECONDS} s; "
            f"start it, then run it again.",
            where=address,
        ) from error
    try:
        client.wait_for_workers(1, timeout=WORKER_SECONDS)
    except TimeoutError as error:
        client.close()
        raise TransientError(
            f"Expected workers at the Dask scheduler {address}, none came within "
            f"{WORKER_SECONDS} s; start some, then run it again.",
            where=address,
        ) from error
    return client


@contextmanager
def _typed_errors(where: str) -> Iterator[None]:
    try:
        yield
    except KilledWorker as error:
        raise TransientError(
            "Dask workers kept dying with the same piece of work; if memory is short, use fewer "
            "workers. Nothing is committed; run it again.",
            where=where,
        ) from error
    except (CancelledError, CommClosedError) as error:
        raise TransientError(
            "The Dask scheduler went away; run it again (what was committed is not added twice).",
            where=where,
        ) from error
    except ModuleNotFoundError as error:
        raise UsageError(
            f"Dask workers could not load {error.name!r}; install the same release of Penstock, "
            f"and the extra that the format needs, on every worker.",
            where=where,
        ) from error
