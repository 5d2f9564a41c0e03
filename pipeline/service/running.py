"""A service's parts put together from its settings: what both ports work on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from pipeline.service.audit import AuditLog
from pipeline.service.config import ServiceConfig
from pipeline.service.group_commit import Written
from pipeline.service.intake import Hooks
from pipeline.service.learners import Learners
from pipeline.service.metrics import ServiceMetrics
from pipeline.service.process_limits import return_memory
from pipeline.service.quotas import Quotas
from pipeline.service.rollout_log import RolloutLog, RolloutLogConfig
from pipeline.service.seal import Sealed
from pipeline.service.sessions import Sessions
from pipeline.service.state import ControlState
from pipeline.service.token_book import first_token
from pipeline.store.store import Store, Version
from schemas.errors import LogFailedError


@contextlib.contextmanager
def running(
    store: Store,
    config: ServiceConfig,
    describe: Callable[[Store, Version], dict[str, Any]],
    failed: Callable[[LogFailedError], None],
) -> Iterator[ControlState]:
    """Opens a service's log and tokens; closes the log at the end of the context.

    Args:
        store: what is served.
        config: settings.
        describe: returns the facts of a version that `penstock show --json` prints.
        failed: called when the log can write no more: the process should end.

    Raises:
        LockHeldError: if another service has the log's folder.
        DamagedLogError: if the log cannot be trusted.
        ConfigError: if the tokens cannot be used.
    """
    metrics = ServiceMetrics()
    learners = Learners(metrics)
    with _log(store, config, metrics, learners, failed) as log:
        book = first_token(config.token_path) if config.token_path is not None else None
        metrics.wal_unsealed_bytes.set_function(lambda: log.status()["unsealed_bytes"])
        metrics.seal_lag.set_function(lambda: log.status()["unsealed_seconds"])
        yield ControlState(
            config=config,
            store=store,
            describe=describe,
            log=log,
            book=book,
            sessions=Sessions(book, config.session_seconds) if book is not None else None,
            quotas=Quotas(config.max_streams, config.max_buffered_bytes),
            metrics=metrics,
            audit=AuditLog(config.wal / "audit.jsonl"),
            learners=learners,
        )


def _log(
    store: Store,
    config: ServiceConfig,
    metrics: ServiceMetrics,
    learners: Learners,
    failed: Callable[[LogFailedError], None],
) -> RolloutLog:
    def written(group: Written) -> None:
        metrics.wal_fsync.observe(group.sync_seconds)
        metrics.wal_group_size.observe(group.records)

    def sealed(done: Sealed, seconds: float) -> None:
        metrics.commit.observe(seconds)
        metrics.commit_conflicts.inc(done.conflicts)
        learners.sealed(done)
        return_memory()

    def divergence() -> float:
        head = store.catalog.refs.head(config.branch)
        shown = store.catalog.refs.state(head).metrics if head is not None else {}
        found = shown["action_divergence"].value.value if "action_divergence" in shown else None
        return float("nan") if found is None else found

    metrics.follow(metrics.action_divergence.labels(config.branch), divergence)
    wanted = RolloutLogConfig(
        folder=config.wal,
        branch=config.branch,
        new_spec=config.new_spec,
        seal_every=config.seal_every,
        seal_bytes=config.seal_bytes,
        max_unsealed_bytes=config.max_unsealed_bytes,
        disk_reserve_bytes=config.disk_reserve_bytes,
    )
    return RolloutLog(store, wanted, Hooks(written, failed, learners.check), sealed)
