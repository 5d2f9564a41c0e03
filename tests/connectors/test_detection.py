from __future__ import annotations

import pickle
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connectors.detection import RULES, Look, detect, hdf5_files
from connectors.registry import FORMATS
from connectors.robomimic import RobomimicSource
from schemas.errors import NotFoundError, SourceError
from tests.connectors.contracts import healthy
from tests.connectors.makers import (
    action_box,
    buffer,
    d4rl_arrays,
    demo,
    minari_dataset,
    write_hdf5,
    write_robomimic,
)

SAMPLES = Path(__file__).parents[1] / "data" / "formats"


def table(path: Path, **columns: list[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize(
    ("sample", "format"),
    [
        ("d3rlpy.h5", "d3rlpy"),
        ("d3rlpy_tuples.h5", "d3rlpy"),
        ("rllib_items.parquet", "rllib"),
        ("torchrl_partial", "torchrl"),
        ("torchrl_partial/storage", "torchrl"),
        ("torchrl_flat", "torchrl"),
        ("torchrl_bare", "torchrl"),
    ],
)
def test_samples_are_told_apart(sample: str, format: str) -> None:
    assert detect(str(SAMPLES / sample)) == format


def test_hdf5_files_are_told_apart(tmp_path: Path) -> None:
    flat = d4rl_arrays()
    assert detect(write_hdf5(tmp_path / "a", flat)) == "d4rl"
    ends = {"episode_terminals": flat["terminals"]}
    assert detect(write_hdf5(tmp_path / "b", flat | ends)) == "d3rlpy"
    assert detect(write_robomimic(tmp_path / "c", {"demo_0": demo()})) == "robomimic"
    buffers = [buffer(np.zeros((4, 2), np.float32), 3)]
    where = Path(minari_dataset(tmp_path / "d", buffers, (action_box(), action_box())))
    for inside in ("", "data", "data/main_data.hdf5"):
        assert detect(str(where / inside)) == "minari"


def test_npz_and_parquet_are_told_apart(tmp_path: Path) -> None:
    rows = {"image": np.zeros(1), "action": np.zeros(1), "is_first": np.zeros(1)}
    (tmp_path / "v").mkdir()
    np.savez(tmp_path / "v" / "e.npz", **rows)
    assert detect(str(tmp_path / "v")) == detect(str(tmp_path / "v" / "e.npz")) == "vd4rl"
    steps = {"eps_id": ["a"], "obs": [1.0], "actions": [1.0]}
    path = table(tmp_path / "r" / "env" / "run-1" / "a.parquet", **steps)
    assert detect(str(tmp_path / "r")) == detect(str(path)) == "rllib"


def test_what_two_formats_claim_is_named_with_both(tmp_path: Path) -> None:
    parts = {**d4rl_arrays(), "num_episodes": 1, "columns": [b"x"], "data/demo_0/actions": [1.0]}
    where = write_hdf5(tmp_path / "a.hdf5", parts)
    with pytest.raises(SourceError, match=r"looks like d3rlpy and robomimic.*d3rlpy:"):
        detect(where)


@pytest.mark.parametrize("name", ["transitions.pkl", "buffer.pickle", "rb.pt", "unnamed"])
def test_pickles_are_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04]\x94.")
    with pytest.raises(SourceError, match=r"runs whatever code.*docs/formats\.md"):
        detect(str(tmp_path / name))


def test_a_folder_of_pickles_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "20_demos.pkl").write_bytes(b"\x80\x04]\x94.")
    with pytest.raises(SourceError, match="never opened here"):
        detect(str(tmp_path))


def test_the_nearest_formats_are_named(tmp_path: Path) -> None:
    where = write_hdf5(tmp_path / "a", {"num_episodes": 3, "x": [1.0]})
    with pytest.raises(SourceError, match=r"HDF5 file with num_episodes, x; nearest is d3rlpy"):
        detect(where)
    np.savez(tmp_path / "b.npz", image=np.zeros(1), action=np.zeros(1))
    with pytest.raises(SourceError, match=r"arrays action, image; nearest is vd4rl \(needs image"):
        detect(str(tmp_path / "b.npz"))
    with pytest.raises(SourceError, match=r"columns x; name the format"):
        detect(str(table(tmp_path / "c.parquet", x=[1])))


@pytest.mark.parametrize("head", [b"", b"PK\x03\x04junk", b"PAR1junk", b"\x89HDF\r\n\x1a\njunk"])
def test_junk_is_a_source_error(tmp_path: Path, head: bytes) -> None:
    (tmp_path / "a").write_bytes(head)
    with pytest.raises(SourceError):
        detect(str(tmp_path / "a"))


def test_links_below_a_folder_are_not_looked_at(tmp_path: Path) -> None:
    elsewhere = table(tmp_path / "x" / "a.parquet", item=[b"x"])
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.parquet").symlink_to(elsewhere)
    (tmp_path / "set" / "up").symlink_to(tmp_path)
    assert Look(tmp_path / "set").first(".parquet") is None


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nothing at"):
        detect(str(tmp_path / "absent"))


def test_folders_of_hdf5_files(tmp_path: Path) -> None:
    assert hdf5_files(str(tmp_path)) == []
    paths = [write_hdf5(tmp_path / name, d4rl_arrays()) for name in ("a.h5", "b.hdf5")]
    assert hdf5_files(str(tmp_path)) == paths
    (tmp_path / ".hidden").touch()
    assert hdf5_files(str(tmp_path)) == paths
    (tmp_path / "notes.txt").touch()
    assert hdf5_files(str(tmp_path)) == []
    assert hdf5_files(paths[0]) == []


def test_every_format_of_files_can_be_told() -> None:
    files = {name for name, row in FORMATS.items() if row.is_read and not row.is_live}
    assert files <= {rule.format for rule in RULES}


def test_the_documented_lines_convert_pickled_demonstrations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    transitions = []
    for steps in (3, 4):
        state = random.normal(size=(steps + 1, 2))
        for t in range(steps):
            is_done = t == steps - 1
            transitions.append(
                {
                    "observations": {"state": state[t], "image": np.full((4, 4, 3), t, np.uint8)},
                    "next_observations": {
                        "state": state[t + 1],
                        "image": np.full((4, 4, 3), t + 1, np.uint8),
                    },
                    "actions": random.normal(size=2).astype(np.float32),
                    "rewards": float(is_done),
                    "masks": 1.0 - is_done,
                    "dones": is_done,
                }
            )
    monkeypatch.chdir(tmp_path)
    Path("demos.pkl").write_bytes(pickle.dumps(transitions))
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
    (lines,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(lines, "formats.md", "exec"), {})
    assert detect("demos.hdf5") == "robomimic"
    found = healthy(RobomimicSource(), "demos.hdf5")
    assert [(e.length, e.is_terminated, e.final_observation) for e in found] == [
        (3, True, "present"),
        (4, True, "present"),
    ]
    assert sorted(found[0].observations) == ["observations/image", "observations/state"]
