from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import fsspec
import numpy as np
import pytest

from connectors import registry, urls
from connectors import spool as copies
from schemas.errors import (
    AccessDeniedError,
    DiskFullError,
    EpisodeError,
    MissingExtraError,
    NotFoundError,
    SourceError,
    TransientError,
    UsageError,
)
from tests.connectors.contracts import check_source, read_all
from tests.connectors.makers import (
    action_box,
    buffer,
    d4rl_arrays,
    demo,
    minari_dataset,
    write_hdf5,
    write_robomimic,
)
from tests.store.remote_fixtures import Bucket, bucket, moto

__all__ = ["bucket", "moto"]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A spool of this test's own."""
    monkeypatch.setenv("PENSTOCK_SPOOL", str(tmp_path / "spool"))
    monkeypatch.setattr(copies, "SPOOL", copies.Spool())
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # each test has a server of its own
    return tmp_path / "spool"


@pytest.fixture
def memory() -> Iterator[Any]:
    """The file system in memory, empty."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the URL of a server of it."""
    folder = tmp_path / "www"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def d4rl_file(tmp_path: Path) -> Path:
    return Path(write_hdf5(tmp_path / "made.hdf5", d4rl_arrays()))


def check_url(url: str, format: str, local: str) -> None:
    """Reading a URL gives what reading the same files here gives, said of the URL."""
    assert registry.detect(url) == format
    assert registry.expand([url]) == [(format, url)]
    listing, found = check_source(registry.source(format), url)
    here = registry.source(format).discover(local)
    assert (listing.episodes, listing.steps) == (here.episodes, here.steps)
    assert listing.identity == here.identity
    for f, g in zip(found, read_all(registry.source(format), local), strict=True):
        assert f.episode is not None
        assert g.episode is not None
        assert f.key == g.key
        np.testing.assert_array_equal(f.episode.rewards, g.episode.rewards)
        if here.identity is None:
            assert f.episode.source == url


def test_memory_urls(memory: Any, tmp_path: Path) -> None:
    made = d4rl_file(tmp_path)
    memory.pipe("/sets/hopper.hdf5", made.read_bytes())
    check_url("memory://sets/hopper.hdf5", "d4rl", str(made))


def test_file_urls_are_read_where_they_lie(tmp_path: Path, spool: Path) -> None:
    made = d4rl_file(tmp_path)
    check_url(f"file://{made}", "d4rl", str(made))
    assert not spool.exists()


def test_http_urls(web: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = web
    made = d4rl_file(tmp_path)
    (folder / "hopper.hdf5").write_bytes(made.read_bytes())
    check_url(f"{url}/hopper.hdf5", "d4rl", str(made))
    with pytest.raises(NotFoundError, match="nothing at"):
        registry.detect(f"{url}/absent.hdf5")


def test_s3_urls_of_files_folders_and_patterns(bucket: Bucket, moto: str, tmp_path: Path) -> None:
    client = boto3.client("s3", endpoint_url=moto)
    demos = Path(write_robomimic(tmp_path / "demos.hdf5", {"demo_0": demo()}))
    for name in ("b", "a"):
        client.upload_file(str(demos), bucket.name, f"demos/{name}.hdf5")
    buffers = [buffer(np.zeros((4, 2), np.float32), 3)]
    local = minari_dataset(tmp_path / "c", buffers, (action_box(), action_box()))
    for path in Path(local).rglob("*.*"):
        name = path.relative_to(local).as_posix()
        client.upload_file(str(path), bucket.name, f"toy/set-v0/{name}")
    root = f"s3://{bucket.name}"
    check_url(f"{root}/demos/a.hdf5", "robomimic", str(demos))
    check_url(f"{root}/toy/set-v0", "minari", local)
    both = [("robomimic", f"{root}/demos/{name}.hdf5") for name in ("a", "b")]
    assert registry.expand([f"{root}/demos"]) == both
    assert registry.expand([f"{root}/**/*.hdf5"], "robomimic")[:2] == both
    assert registry.expand([f"{root}/demos/?.hdf5", f"{root}/demos/[b].hdf5"])[-1] == both[1]
    with pytest.raises(NotFoundError, match="nothing matches"):
        registry.expand([f"{root}/*.parquet"])
    with pytest.raises(NotFoundError, match="nothing at"):
        registry.expand([f"{root}/absent"])


def test_units_carry_urls_to_other_processes(memory: Any, tmp_path: Path, spool: Path) -> None:
    made = d4rl_file(tmp_path)
    memory.pipe("/sets/hopper.hdf5", made.read_bytes())
    url = "memory://sets/hopper.hdf5"
    (unit,) = registry.source("d4rl").discover(url).units
    assert str(spool) not in repr(unit)
    copies = len(list(spool.rglob("hopper.hdf5")))
    assert copies == 1
    assert len(list(registry.source("d4rl").read(unit))) == 3
    assert len(list(spool.rglob("hopper.hdf5"))) == copies, "it was copied again"


def test_files_that_change_are_told_by_their_state_and_refused_mid_way(
    memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "memory://sets/hopper.hdf5"
    memory.pipe("/sets/hopper.hdf5", d4rl_file(tmp_path).read_bytes())
    first = registry.source("d4rl").discover(url)
    assert registry.source("d4rl").discover(url).fingerprint == first.fingerprint
    other = write_hdf5(tmp_path / "other.hdf5", d4rl_arrays((3, 4)))
    memory.pipe("/sets/hopper.hdf5", Path(other).read_bytes())
    assert registry.source("d4rl").discover(url).fingerprint != first.fingerprint
    monkeypatch.setattr(copies, "SPOOL", copies.Spool())  # another worker
    with pytest.raises(SourceError, match="changed while it was read"):
        list(registry.source("d4rl").read(first.units[0]))


def test_errors_and_faults_speak_of_the_url(memory: Any, tmp_path: Path) -> None:
    made = write_robomimic(tmp_path / "a", {"demo_0": demo(actions=None), "demo_1": demo()})
    memory.pipe("/a.hdf5", Path(made).read_bytes())
    memory.pipe("/cut.hdf5", Path(made).read_bytes()[:-5])
    faults = [f.fault for f in read_all(registry.source("robomimic"), "memory://a.hdf5") if f.fault]
    assert [type(f) for f in faults] == [EpisodeError]
    with pytest.raises(SourceError, match=r"memory://cut\.hdf5 cannot be read") as caught:
        registry.detect("memory://cut.hdf5")
    assert caught.value.where == "memory://cut.hdf5"


# -- the spool -------------------------------------------------------------------------------------


def test_size_is_checked_before_the_first_byte(
    memory: Any, tmp_path: Path, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.pipe("/a.hdf5", d4rl_file(tmp_path).read_bytes())
    size = memory.info("/a.hdf5")["size"]
    monkeypatch.setenv("PENSTOCK_SPOOL_BYTES", str(size - 1))
    with pytest.raises(DiskFullError, match=f"room for the {size:,} bytes"):
        registry.detect("memory://a.hdf5")
    assert list(spool.rglob("*.hdf5")) == []


def test_copies_that_nobody_reads_make_room(
    memory: Any, tmp_path: Path, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = d4rl_file(tmp_path).read_bytes()
    for name in "abc":
        memory.pipe(f"/{name}.hdf5", data)
    monkeypatch.setenv("PENSTOCK_SPOOL_BYTES", str(2 * len(data)))
    with copies.SPOOL.borrow("memory://a.hdf5") as (first, _):
        registry.detect("memory://b.hdf5")
        registry.detect("memory://c.hdf5")
        assert Path(first).exists(), "a copy in use was dropped"
        assert sorted(p.name for p in spool.rglob("*.hdf5")) == ["a.hdf5", "c.hdf5"]


def test_a_process_takes_its_copies_with_it(tmp_path: Path) -> None:
    d4rl_file(tmp_path)
    code = (
        "import fsspec; from pathlib import Path\n"
        "from connectors import registry, spool as copies\n"
        f"fsspec.filesystem('memory').pipe('/a.hdf5', Path({str(tmp_path / 'made.hdf5')!r})"
        ".read_bytes())\n"
        "print(registry.detect('memory://a.hdf5'))\n"
        "print(len(list(Path(copies.SPOOL._folder()).rglob('*.hdf5'))))"
    )
    spool = tmp_path / "other"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PENSTOCK_SPOOL": str(spool), "PYTHONPATH": str(Path.cwd())},
    )
    assert ran.stdout.split() == ["d4rl", "1"]
    assert list(spool.iterdir()) == []


def test_a_copy_that_breaks_off_leaves_nothing(
    memory: Any, tmp_path: Path, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        memory.pipe(f"/set/{name}.hdf5", d4rl_file(tmp_path).read_bytes())

    def cut(system: Any, remote: str, local: str, **_: Any) -> None:
        Path(local).write_bytes(b"half")
        if remote.endswith("b.hdf5"):
            raise ConnectionResetError("hung up")

    monkeypatch.setattr(type(memory), "get_file", cut)
    with pytest.raises(SourceError, match="changed or was cut off"):
        registry.detect("memory://set/a.hdf5")
    with pytest.raises(TransientError, match="hung up"):
        registry.detect("memory://set/b.hdf5")
    assert list(spool.rglob("*.hdf5")) == []


# -- what a far side could try ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["..", ".", "a\\b", "a\nb", "\x1b[2J"])
def test_names_that_could_leave_their_folder_are_refused(name: str) -> None:
    info = {"size": 3}
    with pytest.raises(SourceError, match="could leave its folder"):
        urls._remote_file("memory://x", f"/x/{name}/b", f"{name}/b", info)


@pytest.mark.parametrize("size", [None, -1, "3", 2.5])
def test_sizes_must_be_stated(size: object) -> None:
    with pytest.raises(SourceError, match="to be stated"):
        urls._remote_file("memory://x", "/x/a", "a", {"size": size})


@pytest.mark.parametrize(
    ("url", "error", "match"),
    [
        ("simplecache::s3://b/x", UsageError, "chained"),
        ("s3://key:secret@b/x", UsageError, "without credentials"),
        ("https://me:secret@host/x", UsageError, "without credentials"),
        ("nonsense://b/x", UsageError, "kind that fsspec knows"),
        ("memory://a/x**", UsageError, "Expected a pattern"),
        ("memory://absent", NotFoundError, "nothing at"),
    ],
)
def test_urls_that_are_not_read(url: str, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        registry.expand([f"d4rl:{url}"]) if "*" in url else registry.source("d4rl").discover(url)
    assert "secret" not in str(caught.value)


def test_a_missing_extra_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["fsspec.registry"], "registry", {})
    for module in [name for name in sys.modules if name.split(".")[0] == "s3fs"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MissingExtraError, match=r"penstock\[s3\]"):
        registry.source("d4rl").discover("s3://bucket/x.hdf5")
    with pytest.raises(UsageError, match="pip install"):
        registry.source("d4rl").discover("gs://bucket/x.hdf5")


def test_no_credentials_and_no_permission(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.store.servers import Trouble

    bucket.proxy.trouble = lambda _request: Trouble(answer=(403, "AccessDenied"))
    with pytest.raises(AccessDeniedError, match="check the credentials"):
        registry.detect(f"s3://{bucket.name}/denied.hdf5")


# -- datasets by name ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "variable", "expected"),
    [
        ("minari:toy/set-v0", "MINARI_DATASETS_PATH", "toy/set-v0"),
        ("rlds:bridge/1.0.0", "TFDS_DATA_DIR", "bridge/1.0.0"),
        ("rlds:robo/config/1.0.0", "TFDS_DATA_DIR", "robo/config/1.0.0"),
        ("lerobot:user/name", "HF_LEROBOT_HOME", "user/name"),
        ("lerobot:user/name", "HF_HOME", "lerobot/user/name"),
        ("lerobot:../name", "HF_LEROBOT_HOME", None),
        ("rlds:../../etc", "TFDS_DATA_DIR", None),
        ("lerobot:s3://user/name", "HF_LEROBOT_HOME", None),
    ],
)
def test_datasets_by_name(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    variable: str,
    expected: str | None,
) -> None:
    for name in ("HF_HOME", "HF_LEROBOT_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    format, where = text.split(":", 1)
    monkeypatch.setitem(registry.FORMATS, format, registry.Format(format, "", "x:X", None))  # type: ignore[arg-type]
    place = str(tmp_path / expected) if expected else where
    assert registry.parse(text) == (format, place)


def test_a_name_that_is_not_here_says_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    _, where = registry.parse("minari:toy/absent-v0")
    with pytest.raises(NotFoundError, match=str(tmp_path / "toy" / "absent-v0")):
        registry.source("minari").discover(where)
