"""What the service counts and times, by the names that dashboards hold on to.

One registry serves both ports. Labels are few and bounded: no id of an episode, a token or a client
is one, and of streams only the first `MAX_STREAMS` have a label of their own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MAX_STREAMS = 64
OTHER = "other"
_FAST = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_SLOW = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class ServiceMetrics:
    """The service's metrics; each attribute is one of them."""

    def __init__(self) -> None:
        self.registry = here = CollectorRegistry()
        self.put_steps = Counter(
            "penstock_put_steps", "Steps received and durable.", ["stream"], registry=here
        )
        self.put_bytes = Counter(
            "penstock_put_bytes", "Bytes received and durable.", ["stream"], registry=here
        )
        self.put_rejected = Counter(
            "penstock_put_rejected",
            "Puts refused, by kind of error.",
            ["reason"],
            registry=here,
        )
        self.put_ack = Histogram(
            "penstock_put_ack_seconds",
            "From a put's arrival to its durable acknowledgement.",
            buckets=_FAST,
            registry=here,
        )
        self.wal_fsync = Histogram(
            "penstock_wal_fsync_seconds", "One fdatasync of the log.", buckets=_FAST, registry=here
        )
        self.wal_group_size = Histogram(
            "penstock_wal_group_size",
            "Puts of one fdatasync.",
            buckets=_COUNTS,
            registry=here,
        )
        self.wal_unsealed_bytes = Gauge(
            "penstock_wal_unsealed_bytes",
            "Bytes in the log alone.",
            registry=here,
        )
        self.seal_lag = Gauge(
            "penstock_seal_lag_seconds",
            "Age of the oldest unsealed episode.",
            registry=here,
        )
        self.commit = Histogram(
            "penstock_commit_seconds",
            "One commit of episodes.",
            buckets=_SLOW,
            registry=here,
        )
        self.commit_conflicts = Counter(
            "penstock_commit_conflicts",
            "Commits made again on a new head.",
            registry=here,
        )
        self.pull_bytes = Counter("penstock_pull_bytes", "Bytes sent to learners.", registry=here)
        self.pull_wait = Histogram(
            "penstock_pull_wait_seconds",
            "How long pulls waited for data or their turn.",
            buckets=_SLOW,
            registry=here,
        )
        self.learner_staleness = Gauge(
            "penstock_learner_staleness_versions",
            "Versions that the learner furthest behind lags.",
            registry=here,
        )
        self.sample_insert_ratio = Gauge(
            "penstock_sample_insert_ratio", "Steps sampled for each step pushed.", registry=here
        )
        self.action_divergence = Gauge(
            "penstock_quality_action_divergence",
            "Action divergence of the branch's newest version; NaN until it is measured.",
            ["stream"],
            registry=here,
        )
        self.http_requests = Counter(
            "penstock_http_requests",
            "Requests of the control port, by route and status.",
            ["method", "route", "status"],
            registry=here,
        )
        self.http_seconds = Histogram(
            "penstock_http_request_seconds",
            "Their duration.",
            ["route"],
            buckets=_SLOW,
            registry=here,
        )
        build = Gauge("penstock_build_info", "The release that runs.", ["version"], registry=here)
        build.labels(version=_release()).set(1)
        self._streams: set[str] = set()
        self._lock = threading.Lock()

    def stream(self, name: str) -> str:
        """Returns the label of a stream: its name, or `other` once there are too many."""
        with self._lock:
            if name not in self._streams:
                if len(self._streams) >= MAX_STREAMS:
                    return OTHER
                self._streams.add(name)
            return name

    def follow(self, gauge: Gauge, value: Callable[[], float]) -> None:
        """Makes a gauge ask for its value whenever it is read."""
        gauge.set_function(value)

    def text(self) -> bytes:
        """Returns all of them in Prometheus' text format."""
        return generate_latest(self.registry)


def _release() -> str:
    try:
        return version("penstock")
    except PackageNotFoundError:
        return "unknown"
