"""Other people's readers open a store's files without our code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import zarr

from pipeline.store.store import Store, open_store
from tests.store.makers import episode, names, score


def make(tmp_path: Path, steps: int = 4) -> Store:
    store = open_store(tmp_path / "s", create=True)
    store.append([episode(name, steps, columns={"sigma": 0.5}) for name in names(3)])
    return store


def test_zarr_opens_a_shard(tmp_path: Path) -> None:
    make(tmp_path, steps=2000)
    (folder,) = (tmp_path / "s" / "shards").iterdir()
    group = zarr.open_group(folder, mode="r")
    state = group["observations/state"]
    episodes = [episode(name, 2000) for name in names(3)]
    rows = np.concatenate([one.observations["observations/state"] for one in episodes])
    np.testing.assert_array_equal(state[...], rows)
    assert state.metadata.dimension_names == ("row", "observations/state_0")
    assert group["actions"].attrs["padding"].startswith("NaN where valid is false")
    np.testing.assert_array_equal(np.flatnonzero(~group["valid"][...]), [2000, 4001, 6002])
    assert np.isnan(group["actions"][2000]).all()
    assert set(group.attrs["penstock"]["fields"]) == {"observations/state", "actions", "rewards"}
    codecs = json.loads((folder / "actions" / "zarr.json").read_text())["codecs"]
    assert codecs[0]["name"] == "sharding_indexed"
    inner = [codec["name"] for codec in codecs[0]["configuration"]["codecs"]]
    assert inner[-1] == "crc32c"


def test_images_are_packed_with_plain_zstd(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", create=True)
    frames = np.zeros((300, 8, 8, 3), np.uint8)
    store.append([episode("e", 299, observations={"camera": frames})])
    (folder,) = (tmp_path / "s" / "shards").iterdir()
    codecs = json.loads((folder / "observations" / "camera" / "zarr.json").read_text())["codecs"]
    inner = codecs[0]["configuration"]["codecs"]
    assert [codec["name"] for codec in inner] == ["bytes", "zstd", "crc32c"]
    assert inner[1]["configuration"]["level"] == 1


def test_arrow_opens_a_tail(tmp_path: Path) -> None:
    make(tmp_path)
    (file,) = (tmp_path / "s" / "tails").iterdir()
    table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
    assert table.num_rows == 15
    assert table["rewards"].to_pylist()[:4] == episode("e0").rewards.tolist()  # type: ignore[union-attr]
    assert pl.read_ipc(file).height == 15


def test_polars_and_pyarrow_open_the_episode_rows_and_overlays(tmp_path: Path) -> None:
    store = make(tmp_path)
    score(store, {"e0": 0.25, "e2": 0.5})
    (file,) = (tmp_path / "s" / "episodes").glob("*.parquet")
    frame = pl.read_parquet(file)
    assert frame["episode_id"].to_list() == names(3)
    assert frame["sigma"].to_list() == [0.5] * 3
    assert pq.read_metadata(file).row_group(0).column(0).compression == "ZSTD"
    (overlay,) = (tmp_path / "s" / "overlays").glob("*.parquet")
    joined = frame.join(pl.read_parquet(overlay), on="episode_id", how="left")
    assert joined["action_divergence"].to_list() == [0.25, None, 0.5]


def test_an_id_index_is_a_plain_table_of_hashes(tmp_path: Path) -> None:
    make(tmp_path)
    (file,) = (tmp_path / "s" / "episodes").glob("*.ids")
    table = np.fromfile(file, "<u8").reshape(-1, 2)
    assert table.shape == (3, 2)
    assert (np.diff(table[:, 0]) > 0).all()


def test_commits_are_plain_json(tmp_path: Path) -> None:
    store = make(tmp_path)
    commit = json.loads((tmp_path / "s/refs/branches/main/000000000001.json").read_text())
    assert commit["id"] == store.version().id
    assert commit["number"] == 1
    assert commit["parent"] is None
    document = json.loads((tmp_path / "s/penstock.json").read_text())
    assert document["store_version"] == 1
    assert document["store_id"] == store.id
