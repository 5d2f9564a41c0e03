from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pytest

from connectors import guard, registry
from schemas.errors import SourceError
from tests.connectors.makers import d4rl_arrays, write_hdf5


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[guard._Watch]:
    """A watch of this test's own; its child ends with it."""
    made = guard._Watch()
    monkeypatch.setattr(guard, "_WATCH", made)
    yield made
    made.stop()


def child_of(watch: guard._Watch) -> int:
    assert watch._child is not None
    return watch._child.pid


def test_one_child_serves_all_files(watch: guard._Watch, tmp_path: Path) -> None:
    paths = [write_hdf5(tmp_path / f"{n}.hdf5", d4rl_arrays()) for n in range(3)]
    assert registry.expand([str(tmp_path)]) == [("d4rl", path) for path in paths]
    pid = child_of(watch)
    guard.check(paths[0])
    assert child_of(watch) == pid


def test_other_files_start_no_child(watch: guard._Watch, tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK")
    for where in (tmp_path / "a.npz", tmp_path, tmp_path / "absent"):
        guard.check(str(where))
    assert watch._child is None


def test_a_hang_is_an_error_and_the_next_file_gets_a_new_child(
    watch: guard._Watch, tmp_path: Path
) -> None:
    path = write_hdf5(tmp_path / "a.hdf5", d4rl_arrays())
    guard.check(path)
    os.kill(child_of(watch), signal.SIGSTOP)  # as silent as a loop in C
    with pytest.raises(SourceError, match="makes its library hang"):
        guard.check(path, silence=0.2)
    assert watch._child is None
    guard.check(path)


def test_a_crash_is_an_error(watch: guard._Watch, tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "a.hdf5", d4rl_arrays())
    guard.check(path)
    pid = child_of(watch)
    os.kill(pid, signal.SIGSTOP)

    def crash() -> None:
        time.sleep(0.2)
        os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=crash)
    thread.start()
    with pytest.raises(SourceError, match="makes its library crash"):
        guard.check(path)
    thread.join()


def test_what_is_merely_wrong_is_left_to_the_reader(watch: guard._Watch, tmp_path: Path) -> None:
    path = Path(write_hdf5(tmp_path / "a.hdf5", d4rl_arrays()))
    path.write_bytes(path.read_bytes()[:-5])
    guard.check(str(path))
    with pytest.raises(SourceError, match="truncated file"):
        registry.expand([str(path)])


def test_flipped_bytes_never_reach_further_than_a_source_error(
    watch: guard._Watch, tmp_path: Path
) -> None:
    whole = Path(write_hdf5(tmp_path / "a.hdf5", d4rl_arrays())).read_bytes()
    random = np.random.default_rng(5)
    path = tmp_path / "b.hdf5"
    outcomes = set()
    for _ in range(150):
        data = bytearray(whole)
        for at in random.integers(8, len(data), 8):
            data[at] = random.integers(0, 256)
        path.write_bytes(data)
        try:
            guard.check(str(path), silence=5)
            outcomes.add("passed")
        except SourceError:
            outcomes.add("refused")
    assert "passed" in outcomes


def test_circles_of_links_come_to_an_end(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["a/again"] = file["/"]
        file["a/more"] = file["/"]
        file["out"] = h5py.ExternalLink("/etc/hostname", "x")
        file["a"].attrs["text"] = "x" * 100
    seen: list[int] = []
    count = guard.walk(str(tmp_path / "a.hdf5"), lambda: seen.append(1))
    assert 16 < count <= len(seen)
    assert count < 10_000


def test_arrow_files_are_looked_at_too(watch: guard._Watch, tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    table = pa.table({"x": list(range(10))})
    with pa.ipc.new_file(path, table.schema) as file:
        for start in range(0, 10, 5):
            file.write_table(table.slice(start, 5))
    guard.check(str(path))
    assert watch._child is not None
    seen: list[int] = []
    assert guard.walk(str(path), lambda: seen.append(1)) == 2
    path.write_bytes(path.read_bytes()[:-40])
    guard.check(str(path))  # its reader says what is wrong
