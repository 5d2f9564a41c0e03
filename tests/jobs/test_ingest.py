"""The ingest job: exactly once, all or nothing, and every refusal with its reason."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pipeline.jobs import engines, runs
from pipeline.jobs.report import IngestReport
from pipeline.store.layout import new_id
from pipeline.store.leases import leases
from pipeline.store.store import open_store
from schemas.errors import (
    NameTakenError,
    NotFoundError,
    SourceError,
    SpecMismatchError,
    UnknownNameError,
    UsageError,
)
from schemas.jobs import EngineConfig, IngestJob
from tests.episodes import write_d4rl


def ingest(store: Path, *sources: Path | str, runner: str | None = None, **options):
    job = IngestJob(sources=tuple(map(str, sources)), into=str(store), run_id=new_id(), **options)
    engine = EngineConfig(engine="beam", runner=runner) if runner else None
    return engines.run(job, engine)


def float32_hash(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array, "<f4").tobytes()).hexdigest()[:24]


def test_a_second_run_adds_nothing(tmp_path):
    source = write_d4rl(tmp_path / "a.hdf5", [5, 7, 3])
    first = ingest(tmp_path / "s", source)
    second = ingest(tmp_path / "s", source)
    assert (first.episodes_added, first.steps_added) == (3, 15)
    assert (second.episodes_added, second.episodes_known) == (0, 3)
    assert second.version == first.version
    assert len(open_store(tmp_path / "s").log()) == 1


def test_a_copied_file_adds_nothing_but_equal_episodes_within_one_file_all_count(tmp_path):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(5, 4)).astype(np.float32)
    same = {
        "observations": np.concatenate([rows, rows]),
        "actions": np.zeros((10, 2), np.float32),
        "rewards": np.zeros(10, np.float32),
    }
    source = write_d4rl(tmp_path / "twice.hdf5", [5, 5], **same)
    copy = tmp_path / "elsewhere.hdf5"
    copy.write_bytes(source.read_bytes())
    assert ingest(tmp_path / "s", source).episodes_added == 2
    assert ingest(tmp_path / "s", copy).episodes_added == 0
    ids = open_store(tmp_path / "s").version().episodes()["episode_id"].to_pylist()
    assert [name.rsplit("-", 1)[1] for name in ids] == ["0", "1"]
    assert len({name.rsplit("-", 1)[0] for name in ids}) == 1


def test_a_further_copy_of_known_content_is_still_written(tmp_path):
    """The store knows the content once; a file that holds it twice brings the second copy."""
    rows = {
        "observations": np.tile(np.arange(20, dtype=np.float32).reshape(5, 4), (2, 1)),
        "actions": np.zeros((10, 2), np.float32),
        "rewards": np.zeros(10, np.float32),
    }
    once = {name: array[:5] for name, array in rows.items()}
    ingest(tmp_path / "s", write_d4rl(tmp_path / "once.hdf5", [5], **once))
    report = ingest(tmp_path / "s", write_d4rl(tmp_path / "twice.hdf5", [5, 5], **rows))
    assert (report.episodes_added, report.episodes_known) == (1, 1)
    version = open_store(tmp_path / "s").version()
    for found in version.iter_episodes():
        np.testing.assert_array_equal(found.observations["observations"], rows["observations"][:5])


def test_a_file_that_grew_adds_only_what_is_new(tmp_path):
    source = write_d4rl(tmp_path / "a.hdf5", [5, 7])
    ingest(tmp_path / "s", source)
    with h5py.File(source, "r") as file:
        old = {name: file[name][:] for name in file}
    longer = {
        name: np.concatenate([array, array[:4] + (0 if array.dtype == bool else 1)])
        for name, array in old.items()
    }
    longer["timeouts"][-1] = True
    report = ingest(tmp_path / "s", write_d4rl(tmp_path / "a.hdf5", [5, 7, 4], **longer))
    assert (report.episodes_added, report.episodes_known) == (1, 2)


def test_bad_episodes_are_quarantined_beside_healthy_ones(tmp_path):
    rewards = np.zeros(15, np.float32)
    rewards[6] = np.nan
    source = write_d4rl(tmp_path / "a.hdf5", [5, 7, 3], rewards=rewards)
    report = ingest(tmp_path / "s", source)
    assert (report.episodes_added, report.episodes_quarantined) == (2, 1)
    assert report.reasons == {"nan": 1}
    again = ingest(tmp_path / "s", source)
    assert (again.episodes_added, again.episodes_quarantined) == (0, 1)
    assert again.version == report.version  # the same refusal is listed once
    listed = open_store(tmp_path / "s").quarantine().to_pylist()
    assert [row["code"] for row in listed] == ["nan"]
    assert "step 1" in listed[0]["message"]


def test_only_bad_episodes_still_commit_their_quarantine(tmp_path):
    source = write_d4rl(tmp_path / "a.hdf5", [4], rewards=np.full(4, np.inf, np.float32))
    report = ingest(tmp_path / "s", source)
    assert (report.episodes_added, report.number) == (0, 1)
    assert len(open_store(tmp_path / "s").quarantine()) == 1


def test_dry_run_reads_everything_and_writes_nothing(tmp_path):
    rewards = np.zeros(12, np.float32)
    rewards[0] = np.nan
    source = write_d4rl(tmp_path / "a.hdf5", [5, 7], rewards=rewards)
    report = ingest(tmp_path / "s", source, dry_run=True)
    assert (report.dry_run, report.version, report.reasons) == (True, None, {"nan": 1})
    assert (report.episodes_added, report.steps_added, report.episodes_known) == (1, 7, 0)
    assert not (tmp_path / "s").exists()
    ingest(tmp_path / "s", source)
    again = ingest(tmp_path / "s", source, dry_run=True)
    assert (again.episodes_added, again.steps_added, again.episodes_known) == (0, 0, 1)


def test_max_episodes_takes_the_first_of_each_source(tmp_path):
    source = write_d4rl(tmp_path / "a.hdf5", [5, 7, 3])
    ingest(tmp_path / "s", source, max_episodes=2)
    assert open_store(tmp_path / "s").version().episodes()["length"].to_pylist() == [5, 7]


def test_a_tag_names_the_result(tmp_path):
    source = write_d4rl(tmp_path / "a.hdf5", [5])
    report = ingest(tmp_path / "s", source, tag="first")
    assert open_store(tmp_path / "s").version("first").id == report.version
    assert ingest(tmp_path / "s", source, tag="first").version == report.version
    ingest(tmp_path / "s", write_d4rl(tmp_path / "b.hdf5", [6], seed=1))
    with pytest.raises(NameTakenError, match="never move"):
        ingest(tmp_path / "s", write_d4rl(tmp_path / "c.hdf5", [7], seed=2), tag="first")
    assert len(open_store(tmp_path / "s").version()) == 2


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda path: None, NotFoundError),
        (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(40)), SourceError),
        (
            lambda path: write_d4rl(path, [5, 7], actions=np.zeros((11, 2), np.float32)),
            SourceError,
        ),
    ],
    ids=["missing", "truncated", "lengths differ"],
)
def test_a_source_that_cannot_be_trusted_leaves_no_store(tmp_path, make, error):
    path = tmp_path / "a.hdf5"
    make(path)
    with pytest.raises(error) as raised:
        ingest(tmp_path / "s", path, format="d4rl")
    assert str(raised.value).count("\n") == 0
    assert not (tmp_path / "s").exists()


def test_another_spec_is_refused_and_nothing_is_committed(tmp_path):
    ingest(tmp_path / "s", write_d4rl(tmp_path / "a.hdf5", [5]))
    other = write_d4rl(tmp_path / "b.hdf5", [5], actions=np.zeros((5, 3), np.float32))
    with pytest.raises(SpecMismatchError, match=r"actions: float32\[2\] against float32\[3\]"):
        ingest(tmp_path / "s", other)
    assert open_store(tmp_path / "s").version().number == 1


def test_an_unknown_format_names_the_nearest(tmp_path):
    with pytest.raises(UnknownNameError, match="minari"):
        ingest(tmp_path / "s", write_d4rl(tmp_path / "a.hdf5", [5]), format="minary")


def test_beams_dask_runner_is_refused_with_the_reason(tmp_path):
    with pytest.raises(UsageError, match="last leaf"):
        ingest(tmp_path / "s", "anything", runner="DaskRunner")


def test_a_run_leaves_its_record(tmp_path):
    source = write_d4rl(tmp_path / "a.hdf5", [5])
    job = IngestJob(sources=(str(source),), into=str(tmp_path / "s"), run_id="nightly-7")
    report = engines.run(job)
    record = json.loads((tmp_path / "s" / "runs" / "nightly-7.json").read_text())
    assert record["report"]["version"] == report.version


def test_a_step_that_runs_twice_commits_once(tmp_path):
    """An engine may retry the commit: the run id finds the first one."""
    from pipeline.jobs import ingest as steps

    source = write_d4rl(tmp_path / "a.hdf5", [5, 7])
    job = IngestJob(sources=(str(source),), into=str(tmp_path / "s"), run_id="r1")
    prepared = steps.prepare(job)
    outcomes = [steps.load_unit(work) for work in steps.plan(job, prepared)]
    first = steps.finish(job, prepared, outcomes)
    second = steps.finish(job, prepared, outcomes)
    assert replace(second, seconds=0) == replace(first, seconds=0)
    assert (second.episodes_added, second.steps_added) == (2, 12)
    assert len(open_store(tmp_path / "s").version()) == 2


# -- real datasets -------------------------------------------------------------------------------


def test_hopper_medium_replay_equals_its_truth(shared_data, tmp_path):
    source = shared_data / "hopper-medium-replay" / "d4rl.hdf5"
    report = ingest(tmp_path / "s", source)
    assert (report.episodes_added, report.steps_added) == (798, 89_895)
    truth = json.loads((source.parent / "TRUTH.json").read_text())
    version = open_store(tmp_path / "s").version()
    for found, true in zip(version.iter_episodes(), truth, strict=True):
        assert found.length == true["length"]
        assert found.episode_return == pytest.approx(true["ret"], abs=1e-9)
        assert float32_hash(found.observations["observations"][: found.length]) == true["obs"]
        assert float32_hash(found.actions) == true["act"]
        assert float32_hash(found.rewards) == true["rew"]
    assert ingest(tmp_path / "s", source).episodes_added == 0


def test_minari_keeps_float64_and_final_observations(shared_data, tmp_path):
    report = ingest(tmp_path / "s", shared_data / "minari" / "hopper" / "medium-v0")
    version = open_store(tmp_path / "s").version()
    assert (report.episodes_added, report.steps_added) == (33, 15_389)
    assert set(version.episodes()["final_observation"].to_pylist()) == {"present"}
    assert version.specs["default"].fields["observations"].dtype == "<f8"
    assert version.episodes()["episode_id"][0].as_py() == "hopper/medium-v0/episode_0"


def test_equal_native_ids_of_different_datasets_do_not_meet(shared_data, tmp_path):
    hopper = shared_data / "minari" / "hopper" / "medium-v0"
    ingest(tmp_path / "h", hopper)
    assert ingest(tmp_path / "h", hopper, namespace="again").episodes_added == 33
    assert len(open_store(tmp_path / "h").version()) == 66
    pendulum = shared_data / "minari" / "pendulum"
    report = ingest(tmp_path / "p", pendulum / "expert-v0", pendulum / "random-v0")
    assert report.episodes_added == 40


def test_a_corrected_copy_under_the_same_id_is_a_conflict(shared_data, tmp_path):
    source = shared_data / "minari" / "pendulum" / "expert-v0"
    ingest(tmp_path / "s", source)
    copy = tmp_path / "expert-v0" / "data"
    copy.mkdir(parents=True)
    for file in (source / "data").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    with h5py.File(copy / "main_data.hdf5", "r+") as file:
        file["episode_3/rewards"][0] += 1
    report = ingest(tmp_path / "s", copy.parent)
    assert (report.episodes_added, report.episodes_known, report.episodes_changed) == (0, 19, 1)
    assert report.reasons == {"id_conflict": 1}


def test_a_running_job_holds_a_lease_that_it_gives_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def watched(*arguments: Any) -> IngestReport:
        seen.append(len(leases(open_store(tmp_path / "store").catalog.objects)))
        return run_engine(*arguments)

    run_engine = engines.run
    monkeypatch.setattr(engines, "run", watched)
    write_d4rl(tmp_path / "a.hdf5", [3, 4])
    job = IngestJob(
        sources=(str(tmp_path / "a.hdf5"),), into=str(tmp_path / "store"), run_id="leased"
    )
    runs.run(job)
    assert seen == [1]
    assert leases(open_store(tmp_path / "store").catalog.objects) == []
