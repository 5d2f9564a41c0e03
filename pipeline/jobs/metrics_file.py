"""What became of a job's last run, as a file in Prometheus' text format.

For node_exporter's textfile collector, which reads `*.prom` files of one folder: the file appears
whole or not at all. A run that failed keeps the time of the last success.
"""

from __future__ import annotations

import os
import re
import time
import uuid
from pathlib import Path

from pipeline.jobs.report import IngestReport
from schemas.errors import UsageError

_LAST = "penstock_ingest_last_success_timestamp_seconds"
_HELP = {
    _LAST: "When the last run ended that exited with 0 or 3, in seconds since 1970.",
    "penstock_ingest_last_run_timestamp_seconds": "When the last run ended.",
    "penstock_ingest_duration_seconds": "How long the last run took.",
    "penstock_ingest_exit_code": "What the last run exited with.",
    "penstock_ingest_episodes_added": "Episodes that the last run added.",
    "penstock_ingest_episodes_known": "Episodes of its sources that were known.",
    "penstock_ingest_episodes_quarantined": "Episodes of its sources that are quarantined.",
}


def write_metrics(
    path: Path, job: str, code: int, seconds: float, report: IngestReport | None
) -> None:
    """Writes the file, in the place of the one that is there.

    Args:
        path: usually `FOLDER/penstock-<job>.prom`.
        job: the label.
        code: what the run exits with.
        seconds: how long it took.
        report: None if it failed.

    Raises:
        UsageError: if it cannot be written.
    """
    now = time.time()
    values: dict[str, float] = {
        "penstock_ingest_last_run_timestamp_seconds": now,
        "penstock_ingest_duration_seconds": seconds,
        "penstock_ingest_exit_code": code,
    }
    last = now if code in (0, 3) else _last_success(path)
    if last is not None:
        values[_LAST] = last
    if report is not None:
        values["penstock_ingest_episodes_added"] = report.episodes_added
        values["penstock_ingest_episodes_known"] = report.episodes_known
        values["penstock_ingest_episodes_quarantined"] = report.episodes_quarantined
    label = job.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    lines = []
    for name, help_text in _HELP.items():
        if name in values:
            lines += [f"# HELP {name} {help_text}", f"# TYPE {name} gauge"]
            lines.append(f'{name}{{job="{label}"}} {values[name]:.17g}')
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        draft.write_text("\n".join(lines) + "\n")
        os.replace(draft, path)  # noqa: PTH105 - says that it replaces
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise UsageError(
            f"Could not write the metrics file: {error.strerror or error}; name another place.",
            where=str(path),
        ) from error


def _last_success(path: Path) -> float | None:
    try:
        found = re.search(rf"^{_LAST}\{{.*\}} ([0-9.e+]+)$", path.read_text(), re.MULTILINE)
    except (OSError, UnicodeDecodeError):
        return None
    return float(found[1]) if found else None
