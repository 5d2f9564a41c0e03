"""Engines: the same ids and digests in the same order, whatever dies, and typed errors."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.jobs import engines, ingest, on_beam, on_dask, workers
from pipeline.jobs.spread import spread
from pipeline.store.layout import new_id
from pipeline.store.store import open_store
from schemas.errors import (
    EpisodeError,
    SourceError,
    TransientError,
    UnknownNameError,
    UsageError,
)
from schemas.jobs import EngineConfig, IngestJob

SOURCE = '''
"""A format whose units fail, or kill who reads them, as marker files beside the source say."""
import os, signal
from pathlib import Path
import numpy as np
from connectors.base import Found, Listing, Unit
from schemas.episode import Episode
from schemas.errors import EpisodeError, SourceError, TransientError

EPISODES, UNITS, LENGTH = 24, 12, 30


class Moody:
    def discover(self, where):
        each = EPISODES // UNITS
        units = tuple(
            Unit("moody", where, at, at + each, each * LENGTH) for at in range(0, EPISODES, each)
        )
        return Listing("moody", where, "moody/v0", units, EPISODES, EPISODES * LENGTH, "same")

    def read(self, unit):
        for position in range(unit.start, unit.stop):
            rng = np.random.default_rng(position)
            yield Found(f"e{position}", position, f"e{position}", Episode(
                "", {"observations": rng.normal(size=(LENGTH + 1, 3))},
                rng.normal(size=(LENGTH, 2)), rng.normal(size=LENGTH), truncated=True,
            ))
        mood = Path(unit.where, str(unit.start))
        if not mood.exists():
            return
        verb = mood.read_text()
        if verb.startswith("once "):
            mood.unlink()
        if verb.endswith("die"):
            os.kill(os.getpid(), signal.SIGKILL)
        if verb.endswith("wait"):
            raise TransientError("The disk is asleep.", where=unit.where)
        if verb.endswith("contradict"):
            raise SourceError("The source contradicts itself.", where=unit.where)
        raise EpisodeError("Not to be read.", code="unreadable", where=unit.where)
'''


@pytest.fixture(scope="module")
def moody(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The format above, installed beside ours, for workers in other processes too."""
    site = tmp_path_factory.mktemp("site")
    info = site / "moody_plugin-1.0.dist-info"
    info.mkdir()
    (site / "moody_plugin.py").write_text(SOURCE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: moody-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[penstock.connectors]\nmoody = moody_plugin:Moody\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        yield


@pytest.fixture
def source(tmp_path: Path, moody: None) -> str:
    (tmp_path / "source").mkdir()
    return f"moody:{tmp_path / 'source'}"


def write_moods(tmp_path: Path, **moods: str) -> None:
    for unit, mood in filter(all, moods.items()):
        (tmp_path / "source" / unit.removeprefix("unit")).write_text(mood)


@pytest.fixture(scope="module")
def cluster(moody: None) -> Iterator[str]:
    """A Dask scheduler with two worker processes, by its address."""
    with on_dask.start(2) as local:
        yield local.scheduler_address


def job_of(store: Path | str, *sources: str, **options) -> IngestJob:
    return IngestJob(sources=sources, into=str(store), run_id=new_id(), **options)


def content(store: Path) -> list[tuple[str, str]]:
    table = open_store(store).version().episodes()
    return list(zip(table["episode_id"].to_pylist(), table["digest"].to_pylist(), strict=True))


@dataclass(frozen=True)
class Truth:
    """A file of several units, and what a plain loop makes of it."""

    source: str
    content: list[tuple[str, str]]


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Truth:
    """Three units of episodes, some of which are equal to one another."""
    folder = tmp_path_factory.mktemp("truth")
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(600_000, 3)).astype(np.float32)
    rows[560_000:564_000] = rows[:4_000]
    ends = np.zeros(len(rows), bool)
    ends[3_999::4_000] = True
    path = folder / "three-units.hdf5"
    with h5py.File(path, "w") as file:
        file["observations"], file["actions"] = rows, rows[:, :1]
        file["rewards"], file["terminals"] = rows[:, 0], np.zeros(len(rows), bool)
        file["timeouts"] = ends
    job = job_of(folder / "store", str(path))
    assert len(ingest.plan(job, ingest.prepare(job))) > 2
    engines.run(job)
    found = content(folder / "store")
    assert len(found) == 150
    assert len({digest for _, digest in found}) == 149
    return Truth(str(path), found)


# -- all agree -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "engine",
    [
        EngineConfig(workers=2),
        EngineConfig(engine="beam"),
        pytest.param(EngineConfig(engine="beam", workers=2), marks=pytest.mark.slow),
        pytest.param(EngineConfig(engine="dask", workers=2), marks=pytest.mark.slow),
    ],
    ids=["2 processes", "beam", "beam, 2 processes", "dask"],
)
def test_engines_agree_on_ids_and_digests_in_order(tmp_path, truth, engine):
    told: list[tuple[int, int]] = []
    job = job_of(tmp_path / "s", truth.source)
    report = engines.run(job, engine, lambda episodes, steps: told.append((episodes, steps)))
    assert content(tmp_path / "s") == truth.content
    assert (report.episodes_added, report.steps_added, report.number) == (150, 600_000, 1)
    if (engine.engine, engine.workers) != ("beam", 2):  # whose workers have nobody to tell
        assert [sum(part) for part in zip(*told, strict=True)] == [150, 600_000]
    again = engines.run(job_of(tmp_path / "s", truth.source))
    assert (again.episodes_added, again.episodes_known) == (0, 150)


@pytest.mark.slow
def test_a_job_service_with_external_workers_agrees_too(tmp_path, truth, job_service):
    job = job_of(tmp_path / "s", truth.source, shared_filesystem=True)
    engines.run(job, EngineConfig(engine="beam", runner="PortableRunner", options=job_service))
    assert content(tmp_path / "s") == truth.content
    broken = tmp_path / "broken.hdf5"
    broken.write_bytes(Path(truth.source).read_bytes())
    other = job_of(tmp_path / "s", str(broken), branch="main", shared_filesystem=True)
    prepared = ingest.prepare(other)
    with h5py.File(broken, "r+") as file:  # after discovery: only workers see it
        del file["actions"]
    options = on_beam.PipelineOptions([*job_service, "--runner=PortableRunner"])
    on_beam.build(other, prepared, True, options).run().wait_until_finish()
    with pytest.raises(SourceError, match="actions missing"):
        on_beam.records.take(other)
    assert len(open_store(tmp_path / "s").log()) == 1


@pytest.fixture
def job_service() -> Iterator[tuple[str, ...]]:
    """Beam's own job service and a pool of external workers, both processes of their own."""
    # The pool starts its workers as `python`: it must be the one that has this package.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ports = free_port(), free_port()
    modules = (
        ("apache_beam.runners.portability.local_job_service_main", f"--port={ports[0]}"),
        ("apache_beam.runners.worker.worker_pool_main", f"--service_port={ports[1]}"),
    )
    with contextlib.ExitStack() as stack:
        for module in modules:
            started = subprocess.Popen(
                [sys.executable, "-m", *module],
                env={**os.environ, "PATH": path},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            stack.callback(end, started)
        for port in ports:
            await_port(port)
        yield (
            f"--job_endpoint=127.0.0.1:{ports[0]}",
            "--environment_type=EXTERNAL",
            f"--environment_config=127.0.0.1:{ports[1]}",
        )


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def await_port(port: int) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise TimeoutError(f"nobody listens on {port}")


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and those it started, which are in its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


# -- workers that die, and trouble that passes -----------------------------------------------------


@pytest.fixture
def clean(tmp_path: Path, source: str) -> list[tuple[str, str]]:
    engines.run(job_of(tmp_path / "clean", source))
    return content(tmp_path / "clean")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["dask", "in-process"])
def test_a_killed_worker_loses_and_doubles_nothing(tmp_path, source, clean, cluster, engine):
    write_moods(tmp_path, unit6="once die", unit20="once die" if engine == "dask" else "")
    job = job_of(tmp_path / "s", source, shared_filesystem=True)
    address = cluster if engine == "dask" else None
    report = engines.run(job, EngineConfig(engine=engine, address=address, workers=2))
    assert not list((tmp_path / "source").iterdir())  # they died
    assert report.episodes_added == 24
    assert content(tmp_path / "s") == clean
    assert len(open_store(tmp_path / "s").log()) == 1
    assert not any(found.is_damage for found in open_store(tmp_path / "s").doctor().problems)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["dask", "in-process"])
def test_work_that_kills_every_worker_ends_the_job(tmp_path, source, cluster, engine):
    write_moods(tmp_path, unit6="die")
    job = job_of(tmp_path / "s", source, shared_filesystem=True)
    address = cluster if engine == "dask" else None
    with pytest.raises(TransientError, match="kept dying"):
        engines.run(job, EngineConfig(engine=engine, address=address, workers=2))
    assert open_store(tmp_path / "s").branches() == {}


def test_a_store_made_anew_at_its_place_is_another(tmp_path, source, clean):
    for _ in range(2):
        assert engines.run(job_of(tmp_path / "s", source)).episodes_added == 24
        assert content(tmp_path / "s") == clean
        shutil.rmtree(tmp_path / "s")


def test_trouble_that_passes_is_tried_again(tmp_path, source, clean):
    write_moods(tmp_path, unit4="once wait")
    engines.run(job_of(tmp_path / "s", source))
    assert content(tmp_path / "s") == clean


@pytest.mark.parametrize(
    ("mood", "error", "says"),
    [
        ("wait", TransientError, "asleep"),
        ("contradict", SourceError, "contradicts"),
        ("be unreadable", EpisodeError, "Not to be read"),
    ],
)
@pytest.mark.parametrize("engine", ["in-process", "dask", "beam"])
def test_errors_of_workers_come_home_typed(tmp_path, source, cluster, engine, mood, error, says):
    write_moods(tmp_path, unit4=mood)
    job = job_of(tmp_path / "s", source, shared_filesystem=True)
    address = cluster if engine == "dask" else None
    with pytest.raises(error, match=says) as raised:
        engines.run(job, EngineConfig(engine=engine, address=address))
    assert raised.value.where == str(tmp_path / "source")
    assert open_store(tmp_path / "s").branches() == {}


def test_a_dry_run_tells_the_same_everywhere(tmp_path, source, cluster):
    job = job_of(tmp_path / "s", source, dry_run=True, shared_filesystem=True)
    for engine in (
        EngineConfig(),
        EngineConfig(engine="dask", address=cluster),
        EngineConfig(engine="beam", workers=2),
    ):
        report = engines.run(job, engine)
        assert (report.dry_run, report.version, report.episodes_quarantined) == (True, None, 0)
    assert not (tmp_path / "s").exists()


# -- files that did not arrive ---------------------------------------------------------------------


@pytest.mark.parametrize("harm", ["remove", "cut", "flip"])
def test_files_that_did_not_arrive_are_not_committed(tmp_path, truth, harm):
    job = job_of(tmp_path / "s", truth.source)
    prepared = ingest.prepare(job)
    outcomes = [ingest.load_unit(work) for work in ingest.plan(job, prepared)]
    path = next((tmp_path / "s").glob("shards/*/actions/c/*"), None) or next(
        (tmp_path / "s").glob("shards/*/actions/c*")
    )
    data = path.read_bytes()
    path.unlink()
    if harm != "remove":
        path.write_bytes(data[:-1] if harm == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    # What a disk turned over after it was written is not looked for on this machine.
    with pytest.raises(TransientError, match="same store"):
        workers.commit(job, prepared, outcomes, reread=harm == "flip")
    assert open_store(tmp_path / "s").branches() == {}


@pytest.mark.parametrize(
    "engine",
    [
        EngineConfig(engine="dask", address="tcp://127.0.0.1:9"),
        EngineConfig(engine="beam", runner="FlinkRunner"),
        EngineConfig(
            engine="beam", runner="PortableRunner", options=("--job_endpoint=127.0.0.1:9",)
        ),
    ],
    ids=["dask", "flink", "portable"],
)
def test_workers_elsewhere_need_what_they_can_reach(tmp_path, truth, engine):
    with pytest.raises(UsageError, match="--shared-filesystem") as raised:
        engines.run(job_of(tmp_path / "s", truth.source), engine)
    assert str(tmp_path / "s") in str(raised.value)
    assert truth.source in str(raised.value)
    with pytest.raises(UsageError, match="came the source"):
        engines.run(job_of("s3://bucket/s", truth.source), engine)
    assert not (tmp_path / "s").exists()


def test_workers_of_this_process_are_not_elsewhere():
    assert not on_beam.is_elsewhere("PortableRunner", ["--environment_type=LOOPBACK"])
    assert not on_beam.is_elsewhere("FnApiRunner", [])
    assert on_beam.is_elsewhere("apache_beam.runners.DataflowRunner", [])


# -- what is asked wrongly -------------------------------------------------------------------------


def test_beams_dask_runner_is_refused_with_the_reason(tmp_path, truth):
    for runner in ("DaskRunner", "apache_beam.runners.dask.dask_runner.DaskRunner"):
        with pytest.raises(UsageError, match="last leaf"):
            engines.run(
                job_of(tmp_path / "s", truth.source), EngineConfig(engine="beam", runner=runner)
            )


@pytest.mark.parametrize("address", ["nonsense", "tpc://127.0.0.1:8786", "tcp://127.0.0.1"])
def test_an_address_must_be_one(tmp_path, truth, address):
    job = job_of(tmp_path / "s", truth.source, shared_filesystem=True)
    with pytest.raises(UsageError, match="tcp://host:8786"):
        engines.run(job, EngineConfig(engine="dask", address=address))


def test_nobody_at_an_address_is_transient(tmp_path, truth, monkeypatch):
    monkeypatch.setattr(on_dask, "CONNECT_SECONDS", 1)
    job = job_of(tmp_path / "s", truth.source, shared_filesystem=True)
    address = f"tcp://127.0.0.1:{free_port()}"
    with pytest.raises(TransientError, match="none answered"):
        engines.run(job, EngineConfig(engine="dask", address=address))


def test_nobody_at_a_job_service_is_transient(tmp_path, truth):
    options = (
        *(f"--job_endpoint=127.0.0.1:{free_port()}", "--job_server_timeout=1"),
        "--environment_type=LOOPBACK",
    )
    engine = EngineConfig(engine="beam", runner="PortableRunner", options=options)
    with pytest.raises(TransientError, match="did not answer"):
        engines.run(job_of(tmp_path / "s", truth.source), engine)


def test_an_unknown_runner_leaves_no_store(tmp_path, truth):
    job = job_of(tmp_path / "s", truth.source, shared_filesystem=True)
    with pytest.raises(UnknownNameError, match="FnApiRunner"):
        engines.run(job, EngineConfig(engine="beam", runner="FnApiRuner"))
    assert not (tmp_path / "s").exists()


def test_workers_are_the_runners_own_matter(tmp_path, truth):
    with pytest.raises(UsageError, match="--parallelism"):
        engines.run(
            job_of(tmp_path / "s", truth.source),
            EngineConfig(engine="beam", runner="FlinkRunner", workers=2),
        )


# -- spreading -------------------------------------------------------------------------------------


def test_only_so_many_are_on_the_way():
    asked: list[int] = []
    home: list[int] = []

    def elements() -> Iterator[int]:
        for index in range(50):
            asked.append(index)
            assert len(asked) - len(home) <= 4 + 1  # one is being given to the pool
            yield index

    with ThreadPoolExecutor(2) as pool:
        for result in spread(pool, abs, elements(), in_flight=4):
            home.append(result)
    assert sorted(home) == list(range(50))
