from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from connectors import registry
from schemas.errors import NotFoundError, SourceError, UnknownNameError, UsageError
from tests.connectors.makers import (
    action_box,
    buffer,
    d4rl_arrays,
    demo,
    minari_dataset,
    write_hdf5,
    write_robomimic,
)

PLUGIN = """
class Toy:
    def discover(self, where): return "discovered " + where
    def read(self, unit): return iter(())

class Writer:
    def losses(self): return ()
    def write(self, episodes, where, metadata): return 0
"""
ENTRIES = """[penstock.connectors]
toy = toy_plugin:Toy
toy_out = toy_plugin:Writer
broken = toy_absent:Nothing
d4rl = toy_plugin:Toy
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A made-up package with connectors of its own, installed beside ours."""
    site = tmp_path / "site"
    info = site / "toy_plugin-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "toy_plugin.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRIES)
    monkeypatch.syspath_prepend(site)
    monkeypatch.delitem(sys.modules, "toy_plugin", raising=False)


def test_every_built_in_format_loads() -> None:
    assert {"d4rl", "minari", "robomimic", "gymnasium"} < set(registry.FORMATS)
    for name, row in registry.FORMATS.items():
        assert row.name == name
        assert row.about
        assert row.is_read == hasattr(registry.source(name), "discover")
        if row.is_written:
            assert registry.sink(name).losses()


def test_formats_are_told_without_loading_connectors() -> None:
    heavy = ("h5py", "gymnasium", "pyarrow", "connectors.d4rl", "connectors.minari")
    code = (
        "import sys; from connectors import registry; registry.formats(); "
        "registry.parse('d4rl:x'); "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "connectors.d4rl" not in ran.stdout
    assert "gymnasium" not in ran.stdout
    assert "h5py" not in ran.stdout


def test_unknown_formats_name_the_nearest() -> None:
    for attempt in (registry.source, registry.sink):
        with pytest.raises(UnknownNameError, match="did you mean 'minari'"):
            attempt("minary")
    with pytest.raises(UnknownNameError, match="did you mean 'robomimic'"):
        registry.parse("robomimik:demos.hdf5")


def test_a_format_that_is_not_written_says_which_are() -> None:
    with pytest.raises(UsageError, match=r"can be written.*d4rl, minari"):
        registry.sink("d3rlpy")


def test_plugins_are_found(plugin: None) -> None:
    assert registry.source("toy").discover("x") == "discovered x"
    assert registry.sink("toy_out").write([], "x", {}) == 0
    with pytest.raises(UsageError, match="can be written"):
        registry.sink("toy")
    with pytest.raises(UsageError, match=r"can be read.*toy"):
        registry.source("toy_out")
    assert registry.parse("toy:some where") == ("toy", "some where")
    listed = registry.formats()
    assert (listed["toy"].is_read, listed["toy"].is_written) == (True, False)
    assert (listed["toy_out"].is_read, listed["toy_out"].is_written) == (False, True)
    assert "does not load" in listed["broken"].about
    assert listed["d4rl"] is registry.FORMATS["d4rl"], "a plug-in took a built-in name"
    assert type(registry.source("d4rl").inner).__module__ == "connectors.d4rl"


def test_without_the_plugin_its_format_is_unknown() -> None:
    with pytest.raises(UnknownNameError):
        registry.source("toy")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("d4rl:/data/x.hdf5", ("d4rl", "/data/x.hdf5")),
        ("d4rl:a:b", ("d4rl", "a:b")),
        ("gymnasium:Hopper-v5?episodes=3", ("gymnasium", "Hopper-v5?episodes=3")),
        ("/data/x.hdf5", (None, "/data/x.hdf5")),
        ("x.hdf5", (None, "x.hdf5")),
        ("s3://bucket/x", (None, "s3://bucket/x")),
        ("gs://d4rl:x", (None, "gs://d4rl:x")),
        ("C:\\data\\x.hdf5", (None, "C:\\data\\x.hdf5")),
        ("C:/data/x.hdf5", (None, "C:/data/x.hdf5")),
        ("d4rl:", (None, "d4rl:")),
        ("/data/d4rl:x", (None, "/data/d4rl:x")),
    ],
)
def test_parse(text: str, expected: tuple[str | None, str]) -> None:
    assert registry.parse(text) == expected


def test_parse_finds_minari_ids_and_paths_with_colons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    assert registry.parse("minari:toy/set-v0") == ("minari", str(tmp_path / "toy" / "set-v0"))
    monkeypatch.chdir(tmp_path)
    Path("odd:name").touch()
    assert registry.parse("odd:name") == (None, "odd:name")


def test_detect_looks_inside(tmp_path: Path) -> None:
    assert registry.detect(write_hdf5(tmp_path / "a", d4rl_arrays())) == "d4rl"
    assert registry.detect(write_robomimic(tmp_path / "b", {"demo_0": demo()})) == "robomimic"
    buffers = [buffer(np.zeros((4, 2), np.float32), 3)]
    where = minari_dataset(tmp_path / "c", buffers, (action_box(), action_box()))
    for inside in ("", "data", "data/main_data.hdf5"):
        assert registry.detect(str(Path(where) / inside)) == "minari"


def test_detect_says_what_it_saw(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "steps.parquet").touch()
    write_hdf5(tmp_path / "other", {"weights": np.zeros(3)})
    for name, seen in (
        ("text", "begins with b'hello'"),
        ("folder", r"a folder with steps\.parquet"),
        ("other", "an HDF5 file with weights"),
    ):
        with pytest.raises(SourceError, match=seen):
            registry.detect(str(tmp_path / name))
    with pytest.raises(NotFoundError, match="nothing at"):
        registry.detect(str(tmp_path / "absent"))
    whole = Path(write_hdf5(tmp_path / "cut", {"observations": np.zeros(999)}))
    whole.write_bytes(whole.read_bytes()[:-8])
    with pytest.raises(SourceError, match="truncated file"):
        registry.detect(str(whole))
