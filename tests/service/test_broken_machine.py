"""A real server on a machine that fails: a full disk, a disk that lies, no memory for a bomb."""

from __future__ import annotations

import contextlib
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.flight as fl
import pytest

from pipeline.service.client.faults import fault_in
from schemas.errors import OutOfTimeError
from tests.service.ports import episode
from tests.service.servers import serving

QUICK = {"retry_seconds": 3.0, "backoff_seconds": 0.05, "max_backoff_seconds": 0.1}
BOMB_BYTES = 1 << 30
SPARE_BYTES = 256 << 20


@contextlib.contextmanager
def small_disk(at: Path) -> Iterator[Path]:
    """A disk of 2 MiB in memory while the context lasts; only root may make one."""
    at.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(at)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no disk of our own can be mounted here")
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)


def test_a_full_disk_refuses_and_the_service_goes_on(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        wal = ("--wal", str(disk / "wal"), "--no-token", "--seal-every", "60s")
        with serving(tmp_path / "store", *wal) as server:
            with server.client() as client, server.client(**QUICK) as hasty:
                client.push(episode("before"))
                ballast = disk / "ballast"
                free = shutil.disk_usage(disk).free
                ballast.write_bytes(bytes(free - free % 4096))
                with pytest.raises(OutOfTimeError, match="no space left"):
                    hasty.push(episode("refused", length=2000))
                ballast.unlink()
                client.push(episode("after", length=2000))
                found = {one.episode.episode_id for one in client.tail()}
            assert found == {"before", "after"}
            assert server.end() == 0


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace makes the disk fail")
def test_a_sync_that_fails_ends_the_service_and_loses_nothing(tmp_path: Path) -> None:
    store, arguments = tmp_path / "store", ("--no-token", "--seal-every", "60s")
    with serving(store, *arguments) as server:
        with server.client() as client, server.client(**QUICK) as hasty:
            client.push(episode("before"))
            trace = ["strace", "-f", "-p", str(server.process.pid), "-e", "trace=fdatasync"]
            trace += ["-e", "inject=fdatasync:error=EIO", "-o", str(tmp_path / "trace")]
            tracer = subprocess.Popen(trace, stderr=subprocess.PIPE, text=True)
            assert tracer.stderr is not None
            if "attached" not in tracer.stderr.readline():
                tracer.kill()
                tracer.wait()
                tracer.stderr.close()
                pytest.skip("processes cannot be traced here")
            with pytest.raises(OutOfTimeError):
                hasty.push(episode("never told"))
        assert server.process.wait(60) != 0
        tracer.wait(60)
        tracer.stderr.close()
        assert "INJECTED" in (tmp_path / "trace").read_text()
    with serving(store, *arguments) as server:
        with server.client() as client:
            client.push(episode("after"))
            found = {one.episode.episode_id for one in client.tail()}
        assert {"before", "after"} <= found <= {"before", "never told", "after"}
        assert server.end() == 0


def test_a_bomb_fails_alone(tmp_path: Path) -> None:
    """A batch that inflates to more than there is room for; it is made of pages never touched."""
    with serving(tmp_path / "store", "--no-token") as server:
        pid = server.process.pid
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
        room = pages * resource.getpagesize() + SPARE_BYTES
        resource.prlimit(pid, resource.RLIMIT_AS, (room, resource.RLIM_INFINITY))
        column = pa.Array.from_buffers(
            pa.uint8(), BOMB_BYTES, [None, pa.py_buffer(np.zeros(BOMB_BYTES, np.uint8))]
        )
        rows = pa.record_batch({"observations": column})
        write = pa.ipc.IpcWriteOptions(compression="zstd")
        with fl.FlightClient(server.data) as sender:
            descriptor = fl.FlightDescriptor.for_command(b"{}")
            options = fl.FlightCallOptions(write_options=write)
            writer, reader = sender.do_put(descriptor, rows.schema, options)
            with pytest.raises(fl.FlightError) as told:  # noqa: PT012
                writer.write_with_metadata(rows, b"{}")
                writer.done_writing()
                while reader.read() is not None:
                    pass
                writer.close()
        fault = fault_in(told.value)
        assert fault is not None
        assert fault.kind == "busy"
        with server.client() as client:
            client.push(episode("after"))
        assert server.end() == 0
