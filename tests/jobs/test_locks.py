"""One run of a job at a time, told by real processes; a dead holder's lock is free."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest

from pipeline.cli.main import main
from pipeline.jobs.runs import lock_name
from pipeline.store.fsspec_objects import FsspecObjects
from pipeline.store.locks import lock
from pipeline.store.objects import LocalObjects
from pipeline.store.store import open_store
from schemas.errors import LockHeldError
from schemas.jobs import IngestJob
from tests.episodes import write_d4rl

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys
from pathlib import Path
from pipeline.store.locks import lock
from pipeline.store.objects import LocalObjects
with lock(LocalObjects(Path(sys.argv[1])), sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holding():
    """Starts processes that hold a lock until their input ends."""
    started = []

    def hold(store: Path, name: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(store), name],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        return process

    yield hold
    for process in started:
        process.kill()
        process.communicate()


def test_a_second_run_exits_4_until_the_holder_is_dead(tmp_path, holding, capfd):
    source = write_d4rl(tmp_path / "a.hdf5", [4])
    given = ["ingest", str(source), "--into", str(tmp_path / "s")]
    assert main(given) == 0
    job = IngestJob(sources=(str(source),), into="s", run_id="r")
    process = holding(tmp_path / "s", lock_name(job))
    assert main(given) == 4
    assert f"process {process.pid}" in capfd.readouterr().err
    assert main([*given, "--dry-run"]) == 0
    assert main([*given, "--name", "another"]) == 0
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert main(given) == 0


def test_two_runs_at_once_commit_once(tmp_path):
    source = write_d4rl(tmp_path / "a.hdf5", [4] * 50)
    given = [sys.executable, "-m", "penstock", "ingest", str(source), "--into", str(tmp_path / "s")]
    running = [subprocess.Popen(given, cwd=ROOT, stderr=subprocess.PIPE) for _ in range(2)]
    for process in running:
        process.communicate()
    assert {process.returncode for process in running} <= {0, 4}
    assert 0 in {process.returncode for process in running}
    assert len(open_store(tmp_path / "s").version()) == 50


def test_the_job_decides_the_lock(tmp_path, monkeypatch):
    source = write_d4rl(tmp_path / "a.hdf5", [4])
    monkeypatch.chdir(tmp_path)
    jobs = [
        IngestJob(sources=("a.hdf5",), into="s", run_id="1"),
        IngestJob(sources=(str(source),), into="s", run_id="2"),
        IngestJob(sources=("a.hdf5",), into="s", run_id="3", branch="b"),
        IngestJob(sources=("a.hdf5",), into="s", run_id="4", name="n"),
    ]
    names = [lock_name(job).rpartition("(")[2] for job in jobs]
    assert names[0] == names[1]
    assert len(set(names)) == 3


def test_a_forked_child_does_not_keep_it(tmp_path):
    objects = LocalObjects(tmp_path)
    there, here = os.pipe()
    with lock(objects, "x"):
        child = os.fork()
        if child == 0:
            os.write(here, b"!")
            signal.pause()
        os.read(there, 1)
    try:
        with lock(objects, "x"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_elsewhere_a_turn_is_held_given_back_and_taken_from_the_dead(tmp_path):
    fsspec.filesystem("memory").store.clear()
    objects = FsspecObjects("memory://locks", None, single_writer=True)
    with lock(objects, "x"):
        with pytest.raises(LockHeldError, match="held by process"), lock(objects, "x"):
            pass
        with lock(objects, "y"):
            pass
    with lock(objects, "x"):
        pass
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    with lock(objects, "x"):
        (key,) = [e.key for e in objects.entries("leases/jobs") if e.key.endswith("5.json")]
        text = objects.read(key).decode().replace(f'"pid":{os.getpid()},', f'"pid":{child},')
        objects.delete(key)
        assert objects.put_if_absent(key, text.encode())
        with lock(objects, "x"):  # its holder is no more
            pass
