"""The benchmark of ingestion runs and says what it measured; how fast is for people to read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli.main import app
from pipeline.jobs.bench import OURS, READING, bench_ingest
from pipeline.jobs.bench_measure import ALL, MORE
from pipeline.quality.registry import METRICS
from schemas.errors import UsageError


def test_the_benchmark_reports_us_beside_reading_alone_and_tells_what_failed(
    tmp_path: Path,
) -> None:
    broken = tmp_path / "torchrl" / "bin" / "python"
    broken.parent.mkdir(parents=True)
    broken.write_text("#!/bin/sh\necho no torch here >&2\nexit 3\n")
    broken.chmod(0o755)
    report = bench_ingest(rows=2_000, rounds=1, datasets=("d4rl",), peers=tmp_path)
    assert report["failed"] == {"torchrl: numbers, D4RL HDF5 (gzip)": "no torch here"}
    rows = {row["name"]: row for row in report["results"]}
    assert {READING, OURS} <= rows.keys()
    for row in rows.values():
        assert row["steps"] == 2_000
        assert len(row["rounds"]) == 1
        assert row["cpu_s"] > 0
        assert row["peak_mb"] > 0
    assert rows[READING]["over_reading"] == 1


def test_the_command_prints_json() -> None:
    pytest.importorskip("PIL")
    told = CliRunner().invoke(
        app, ["bench", "ingest", "--rows", "1000", "--rounds", "1", "--format", "parquet", "--json"]
    )
    assert told.exit_code == 0, told.output
    assert {row["name"] for row in json.loads(told.stdout)["results"]} == {READING, OURS}


def test_a_format_that_is_not_measured_is_refused() -> None:
    with pytest.raises(UsageError, match="came 'csv'"):
        bench_ingest(datasets=("csv",))


def test_what_measuring_costs_is_told_of_every_metric_beside_a_known_truth() -> None:
    told = CliRunner().invoke(app, ["bench", "measure", "--rows", "10000", "--json"])
    assert told.exit_code == 0, told.output
    report = json.loads(told.stdout)
    assert report["rows"] == 10_000
    assert [case["name"] for case in report["cases"]] == [ALL, MORE, *METRICS]
    assert all(case["per_second"] > 0 for case in report["cases"])
    divergence = report["divergence"]
    assert divergence["found"] == pytest.approx(divergence["true"], rel=0.1)
