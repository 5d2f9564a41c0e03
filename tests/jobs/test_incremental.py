"""What a second run reads: new and changed files only, whenever they were written."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest

from connectors.d4rl import D4rlSource
from pipeline.store.store import open_store
from schemas.errors import OutOfTimeError, SourceError
from tests.episodes import write_d4rl
from tests.jobs.running import ingest


@pytest.fixture
def reads(monkeypatch):
    """Names of the files that were really read."""
    names: list[str] = []
    read = D4rlSource.read

    def noted(self, unit):
        names.append(unit.where.rpartition("/")[2])
        return read(self, unit)

    monkeypatch.setattr(D4rlSource, "read", noted)
    return names


def test_an_unchanged_source_is_not_read_again_and_still_counted(tmp_path, reads):
    source = write_d4rl(tmp_path / "a.hdf5", [5, 7, 3])
    first = ingest(tmp_path / "s", source)
    second = ingest(tmp_path / "s", source)
    assert reads == ["a.hdf5"]
    assert (second.episodes_added, second.episodes_known) == (0, 3)
    assert (second.version, second.sources_unchanged) == (first.version, 1)
    assert ingest(tmp_path / "s", source, backfill=True).episodes_known == 3
    assert reads == ["a.hdf5", "a.hdf5"]


def test_new_changed_and_late_files_are_read_and_no_others(tmp_path, reads):
    folder = tmp_path / "runs"
    folder.mkdir()
    for seed, name in enumerate(("b", "c")):
        write_d4rl(folder / f"{name}.hdf5", [4, 5], seed=seed)
    assert ingest(tmp_path / "s", folder / "*.hdf5").episodes_added == 4
    late = write_d4rl(folder / "a.hdf5", [6], seed=7)
    os.utime(late, (1, 1))  # older than all that is in already
    write_d4rl(folder / "c.hdf5", [4, 5, 6], seed=9)
    reads.clear()
    report = ingest(tmp_path / "s", folder / "*.hdf5")
    assert sorted(reads) == ["a.hdf5", "c.hdf5"]
    assert (report.episodes_added, report.sources_unchanged) == (4, 1)
    assert ingest(tmp_path / "s", folder / "*.hdf5").episodes_known == 6


def test_other_settings_read_it_again(tmp_path):
    source = write_d4rl(tmp_path / "a.hdf5", [5, 7, 3])
    assert ingest(tmp_path / "s", source, max_episodes=1).episodes_added == 1
    assert ingest(tmp_path / "s", source).episodes_added == 2


def test_young_files_wait(tmp_path):
    old, young = (write_d4rl(tmp_path / f"{n}.hdf5", [5], seed=i) for i, n in enumerate("ab"))
    os.utime(old, (time.time() - 3600,) * 2)
    report = ingest(tmp_path / "s", old, young, lag="10m")
    assert (report.episodes_added, report.sources_waiting) == (1, 1)
    os.utime(young, (time.time() - 3600,) * 2)
    assert ingest(tmp_path / "s", old, young, lag="10m").episodes_added == 1


def test_quarantined_episodes_stay_counted_and_are_tried_again_when_the_file_changes(tmp_path):
    bad = np.zeros(8, np.float32)
    bad[0] = np.nan
    source = write_d4rl(tmp_path / "a.hdf5", [3, 5], rewards=bad)
    for added in (1, 0):
        report = ingest(tmp_path / "s", source)
        assert (report.episodes_added, report.reasons) == (added, {"nan": 1})
    write_d4rl(source, [3, 5], rewards=np.zeros(8, np.float32))
    report = ingest(tmp_path / "s", source)
    assert (report.episodes_added, report.episodes_known, report.reasons) == (1, 1, {})


def test_one_broken_file_of_many_is_quarantined_and_a_lone_one_refused(tmp_path):
    for seed, name in enumerate("abc"):
        write_d4rl(tmp_path / f"{name}.hdf5", [4], seed=seed)
    whole = (tmp_path / "b.hdf5").read_bytes()
    (tmp_path / "b.hdf5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SourceError):
        ingest(tmp_path / "s", tmp_path / "b.hdf5")
    for added in (2, 0):
        report = ingest(tmp_path / "s", tmp_path / "*.hdf5")
        assert (report.episodes_added, report.reasons) == (added, {"unreadable": 1})
    (tmp_path / "b.hdf5").write_bytes(whole)
    assert ingest(tmp_path / "s", tmp_path / "*.hdf5").episodes_added == 1


def test_a_state_that_another_job_moved_meanwhile_is_left_to_it(tmp_path):
    from pipeline.store.append import Batch, commit_batch
    from schemas.version import SourceState

    ingest(tmp_path / "s", write_d4rl(tmp_path / "a.hdf5", [4]))
    catalog = open_store(tmp_path / "s").catalog

    def move(fingerprint: str, before: dict[str, SourceState]) -> None:
        state = SourceState(format="d4rl", where="w", identity=None, fingerprint=fingerprint)
        batch = Batch(sources={"w": state}, before=before)
        commit_batch(catalog, batch, branch="main", message="m", run_id=fingerprint)

    move("theirs", {})
    move("ours", {})  # planned before theirs was there
    states = open_store(tmp_path / "s").version().state.sources
    assert states["w"].fingerprint == "theirs"
    move("ours", {"w": states["w"]})
    assert open_store(tmp_path / "s").version().state.sources["w"].fingerprint == "ours"


def test_commits_in_parts_hold_what_one_commit_holds(tmp_path):
    sources = [write_d4rl(tmp_path / f"{n}.hdf5", [4, 5, 6, 7, 8], seed=n) for n in range(3)]
    whole = ingest(tmp_path / "whole", *sources)
    parts = ingest(tmp_path / "parts", *sources, commit_every=2, tag="t")
    log = open_store(tmp_path / "parts").log()
    assert [len(version) for version in reversed(log)] == [2, 4, 5, 7, 9, 10, 12, 14, 15]
    assert (parts.episodes_added, parts.steps_added) == (whole.episodes_added, whole.steps_added)
    tables = [
        open_store(tmp_path / name).version(ref).episodes(columns=["episode_id", "digest"])
        for name, ref in (("whole", "main"), ("parts", "t"))
    ]
    assert tables[0].equals(tables[1])
    assert ingest(tmp_path / "parts", *sources, commit_every=2).sources_unchanged == 3


def test_out_of_time_commits_nothing(tmp_path):
    source = write_d4rl(tmp_path / "a.hdf5", [4, 5])
    with pytest.raises(OutOfTimeError, match="--timeout"):
        ingest(tmp_path / "s", source, timeout=1e-6)
    assert open_store(tmp_path / "s").branches() == {}


def test_what_a_repair_left_out_is_read_again(tmp_path):
    source = write_d4rl(tmp_path / "a.hdf5", [4, 5])
    ingest(tmp_path / "s", source)
    ingest(tmp_path / "s", write_d4rl(tmp_path / "b.hdf5", [6], seed=2))
    part = open_store(tmp_path / "s").version("main:1").state.parts[0]
    (tmp_path / "s" / part.blocks[0].file.key).unlink()
    open_store(tmp_path / "s").repair()
    assert len(open_store(tmp_path / "s").version()) == 1
    assert ingest(tmp_path / "s", source).episodes_added == 2
