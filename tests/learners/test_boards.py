"""Event files, read by TensorBoard itself."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from learners.boards import FOLDER
from learners.runlog import EVALUATIONS, METRICS, Table, read_table
from pipeline.cli.main import main
from pipeline.store.store import open_store
from tests.learners.homing import ENVIRONMENT, demonstrations


def _scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a folder: (step, value) by tag."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found: Any = reader.EventAccumulator(str(folder))
    found.Reload()
    tags = found.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in tags}


def test_tensorboard_reads_the_rows_of_a_table(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    table = Table(tmp_path / METRICS, 0)
    table.add(10, {"loss": 0.5, "critic/gap": -2, "note": "half", "score": None})
    table.add(70_000, {"loss": math.nan, "critic/gap": 1e9, "later": True})
    shown = _scalars(tmp_path / FOLDER / "metrics")
    assert shown.keys() == {"loss", "critic/gap", "later"}
    assert shown["critic/gap"] == [(10, -2.0), (70_000, 1e9)]
    assert shown["later"] == [(70_000, 1.0)]
    assert shown["loss"][0] == (10, 0.5)
    assert math.isnan(shown["loss"][1][1])


def test_a_run_that_goes_back_shows_its_rows_once(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    first = Table(tmp_path / METRICS, 0)
    for step in (1, 2, 3):
        first.add(step, {"loss": float(step)})
    again = Table(tmp_path / METRICS, 2)
    again.add(3, {"loss": 30.0})
    assert _scalars(tmp_path / FOLDER / "metrics") == {"loss": [(1, 1.0), (2, 2.0), (3, 30.0)]}
    assert len(list((tmp_path / FOLDER / "metrics").iterdir())) == 1
    assert [row["loss"] for row in read_table(tmp_path / METRICS)] == ["1.0", "2.0", "30.0"]


def test_runs_from_the_command_line_are_shown(tmp_path: Path, homing: None) -> None:
    store = open_store(tmp_path / "store", create=True)
    store.append(demonstrations(10))
    asked = ["train", "bc", "--data", store.url, "--out", str(tmp_path / "run"), "--steps", "4"]
    judged = ["--env", ENVIRONMENT, "--episodes", "2", "--set", "hidden=[8,8]"]
    assert main([*asked, *judged, "--seeds", "2", "--tensorboard", "--json"]) == 0
    for seed in (0, 1):
        run = tmp_path / "run" / f"seed-{seed}"
        for table, column in ((METRICS, "policy_loss"), (EVALUATIONS, "mean_return")):
            (row,) = read_table(run / table)
            ((step, value),) = _scalars(run / FOLDER / Path(table).stem)[column]
            assert step == int(row["step"]) == 4
            assert value == pytest.approx(float(row[column]))


def test_without_its_folder_nothing_is_written(tmp_path: Path) -> None:
    Table(tmp_path / METRICS, 0).add(1, {"loss": 1.0})
    assert [path.name for path in tmp_path.iterdir()] == [METRICS]


def test_a_table_takes_columns_that_come_later(tmp_path: Path) -> None:
    Table(tmp_path / METRICS, 0).add(1, {"loss": 1.0})
    again = Table(tmp_path / METRICS, 1)
    again.add(2, {"regret": 0.5, "loss": 2.0})
    again.add(3, {"loss": 3.0})
    assert read_table(tmp_path / METRICS) == [
        {"step": "1", "loss": "1.0", "regret": ""},
        {"step": "2", "loss": "2.0", "regret": "0.5"},
        {"step": "3", "loss": "3.0", "regret": ""},
    ]
