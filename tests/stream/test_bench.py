"""The benchmark runs and says what it measured; how fast is for people to read."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline.cli.bench import show_stream
from pipeline.cli.main import app
from pipeline.stream.bench import BenchConfig, bench_stream
from pipeline.stream.bench_cases import CONTENDERS, Contender
from pipeline.stream.bench_checks import Rows, check_pictures, check_transitions, check_windows
from pipeline.stream.bench_data import NUMBERS, PICTURES, bounds, make_source, read_source
from pipeline.stream.bench_plot import plot_stream
from schemas.errors import UnknownNameError

pytest.importorskip("torch")

TINY = BenchConfig(
    rows=3_000,
    pictures=200,
    rounds=2,
    seconds=0.01,
    epochs=1,
)
SHORT = ("l1", "l2", "l3", "l4")
IS_LONG = os.environ.get("PENSTOCK_LONG") == "1"
BROKEN = Path(__file__).with_name("broken_contender.py")
CEILING, OURS = (
    next(one for one in CONTENDERS if one.kind == kind) for kind in ("ceiling", "ours")
)


def test_all_workloads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One run, because every contender is a process that loads torch."""
    functions = ("l1_many", "l1_memory", "l1_numpy", "l2_many")
    contenders = (
        CEILING if IS_LONG else dataclasses.replace(CEILING, functions=("l1_select",)),
        OURS if IS_LONG else dataclasses.replace(OURS, functions=SHORT, writes=()),
        Contender("broken", "peer", BROKEN, functions, writes=()),
        Contender("absent", "peer", BROKEN, ("l1",), environment="no-such-peer"),
    )
    said: list[str] = []
    report = bench_stream(TINY, contenders, said.append)
    assert json.loads(json.dumps(report)) == report
    assert any("round 2 of 2" in text for text in said)
    assert report["failed"] == {"broken, NumPy arrays at L1": "ValueError: nothing to draw"}
    assert list(report["skipped"]) == ["absent"]
    found = {name: by_name(rows) for name, rows in report["workloads"].items()}
    transitions(found["L1"], report["ratios"]["L1"])
    windows(found["L2"])
    epochs(found["L3"], report["ratios"]["L3"])
    right = {"windows": 384, "valid": 1, "dtype": "uint8", "failing": []}
    assert all(row["checks"] == right for row in found["L4"].values())
    assert IS_LONG or found["L4"]["Penstock"]["best_of_ceiling"] is None  # none took part
    show_stream(report)
    told = capsys.readouterr()
    assert "truncated ends of" in told.out
    assert "absent: not installed" in told.err
    shares(report, tmp_path)


def by_name(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    for row in rows:
        assert 0 < row["median"] <= row["best"]
        assert row["peak_mb"] > 0
    assert [row["best"] for row in rows] == sorted((row["best"] for row in rows), reverse=True)
    return {row["name"]: row for row in rows}


def transitions(rows: dict[str, dict[str, Any]], ratios: dict[str, Any]) -> None:
    for name in ("ceiling, torch.index_select", "Penstock"):
        assert rows[name]["checks"]["failing"] == []
        assert rows[name]["checks"]["rows"] == 400 * 256
        assert len(rows[name]["rates"]) == TINY.rounds
    assert "truncated ends" in " ".join(rows["broken, 64 batches at once"]["checks"]["failing"])
    wrong = " ".join(rows["broken, in memory"]["checks"]["failing"])
    assert "next observations within episodes wrong" in wrong
    assert max(r["best_of_ceiling"] for r in rows.values() if r["kind"] == "ceiling") == 1
    assert ratios["ceiling"] == rows["Penstock"]["best_of_ceiling"]
    assert ratios["fastest peer's name"].startswith("broken")
    assert ratios["TorchRL"] is None


def windows(rows: dict[str, dict[str, Any]]) -> None:
    ours = rows["Penstock"]["checks"]
    assert ours["failing"] == []
    assert ours["valid"] < 1  # padded at ends, where the ceiling's windows fit
    if IS_LONG:
        ceiling = rows["ceiling, torch.index_select"]["checks"]
        assert (ceiling["valid"], ceiling["failing"]) == (1, [])
    broken = rows["broken, 64 batches at once"]["checks"]
    assert "windows over episodes' ends" in broken["failing"]


def epochs(rows: dict[str, dict[str, Any]], ratios: dict[str, Any]) -> None:
    for row in rows.values():
        assert row["is_whole"]
        assert row["rows"] >= TINY.rows
        assert row["first_batch_s"] > 0
    assert "Penstock" in rows
    assert not IS_LONG or ratios["windowed over shards alone"] > 0


def shares(report: dict[str, Any], folder: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("shares.svg", "shares.png"):
        plot_stream(report, folder / name)
    assert (folder / "shares.svg").read_text().startswith("<?xml")
    assert (folder / "shares.png").read_bytes().startswith(b"\x89PNG")


def test_checks_name_what_is_wrong(tmp_path: Path) -> None:
    source = read_source(make_source(tmp_path, NUMBERS, 3_000))
    rows = Rows(source)
    steps = np.arange(3_000)
    names = ("observations", "actions", "rewards", "next_observations", "terminated")
    right = [np.array(source[name][steps]) for name in names]
    assert check_transitions(rows, right)["failing"] == []
    for number, name in enumerate(names[1:], 1):
        wrong = [one.copy() for one in right]
        wrong[number] = ~wrong[number] if number == 4 else wrong[number] + 1
        told = " ".join(check_transitions(rows, wrong)["failing"])
        assert name.replace("_", " ") in told
    unknown = [right[0] + 1, *right[1:]]
    assert check_transitions(rows, unknown)["failing"] == ["rows that the source does not hold"]
    assert "no rewards" in check_transitions(rows, [*right[:2], None, *right[3:]])["failing"]

    window = np.arange(64)[None] + 10
    cut = [np.array(source[name])[window] for name in names[:3]]
    assert check_windows(rows, cut)["failing"] == []
    assert check_windows(rows, [one[:, ::-1] for one in cut])["failing"]
    holes = np.ones((1, 64), bool)
    holes[0, 30] = False
    assert "masks with holes" in check_windows(rows, [*cut, holes])["failing"]


def test_pictures_that_are_not_the_sources_are_told(tmp_path: Path) -> None:
    source = read_source(make_source(tmp_path, PICTURES, 200))
    _, stop = bounds(source)
    right = np.array(source["observations"])[[[0, 1, 2], [stop[0], stop[0] + 1, stop[0] + 2]]]
    assert check_pictures(source, [right])["failing"] == []
    channels_first = np.moveaxis(right, -1, 2).astype(np.float32) / 255
    assert check_pictures(source, [channels_first])["failing"] == []
    over = np.array(source["observations"])[[[stop[0] - 1, stop[0], stop[0] + 1]]]
    assert "windows over episodes' ends" in check_pictures(source, [over])["failing"]
    right[0, 1, 40, 40] += 1
    assert check_pictures(source, [right])["failing"] == ["pixels"]


def test_the_command_refuses_a_workload_that_is_none() -> None:
    told = CliRunner().invoke(app, ["bench", "stream", "--workload", "L9", "--quick"])
    assert told.exit_code != 0
    assert isinstance(told.exception, UnknownNameError)


def test_a_workload_that_is_none_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="came 'L9'"):
        bench_stream(BenchConfig(workloads=("L9",)))
