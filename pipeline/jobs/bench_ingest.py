"""What `penstock bench ingest` times of ours: one whole job, imports before it."""

from __future__ import annotations

from connectors import registry
from pipeline.jobs import engines
from schemas.errors import EpisodeError
from schemas.jobs import IngestJob

for _name in ("d4rl", "robomimic", "replay_zarr", "lerobot", "rlds", "parquet"):
    registry.source(_name)


def convert(source: str, target: str) -> None:
    """Ingests a dataset into a new store; every episode must arrive."""
    report = engines.run(IngestJob(sources=(source,), into=target, run_id="bench"))
    if report.episodes_quarantined or not report.episodes_added:
        raise EpisodeError(f"Expected all episodes, came {report}.", code="unreadable")
