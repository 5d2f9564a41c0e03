"""A file that is missing, short or changed is named; it never passes for data."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.store import layout
from pipeline.store.store import Store, open_store
from schemas.errors import (
    DamagedStoreError,
    NotFoundError,
    TransientError,
    UntrustedError,
    UsageError,
)
from tests.store.makers import episode, files_named_by, names, read_everything, score


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a shard, a tail, a selection, an overlay and a quarantine."""
    root = tmp_path_factory.mktemp("damage") / "s"
    store = open_store(root, create=True)
    frames = np.random.default_rng(0).integers(0, 255, (4200, 4, 4, 3), np.uint8)
    store.append([episode("long", 4199, observations={"camera": frames, "x": np.ones(4200)})])
    other = store.append([episode(n) for n in names(4)], branch="small")
    store.append([episode("e0", seed=9)], branch="small")
    other.where("length > 0 and episode_id != 'e1'").commit(branch="chosen")
    score(store, {"e0": 0.5}, branch="chosen")
    return root


REFS = ("main", "small", "chosen")


def damageable(root: Path) -> list[str]:
    store = open_store(root)
    return sorted({file.key for ref in REFS for file in files_named_by(store.version(ref))})


def test_a_whole_store_reads(whole: Path) -> None:
    read_everything(open_store(whole), REFS)
    kinds = {key.split("/")[0] for key in damageable(whole)}
    assert kinds == {"shards", "tails", "episodes", "overlays", "selections", "quarantine"}


def test_every_file_is_missed_and_every_flipped_bit_is_seen(whole: Path) -> None:
    keys = damageable(whole)
    assert len(keys) > 15
    rng = random.Random(0)
    for key in keys:
        path = whole / key
        data = path.read_bytes()
        flipped = bytearray(data)
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        for damaged in (bytes(flipped), data[:-1], data + b"\0", b"", None):
            try:
                path.unlink() if damaged is None else path.write_bytes(damaged)
                with pytest.raises(DamagedStoreError) as caught:
                    read_everything(open_store(whole), REFS)
                assert key in str(caught.value.where), (key, caught.value.where)
            finally:
                path.write_bytes(data)
    read_everything(open_store(whole), REFS)


def test_a_shard_whose_files_are_exchanged_is_seen(whole: Path) -> None:
    shard = next(key for key in damageable(whole) if key.endswith("observations/camera/c.0.0.0.0"))
    folder = (whole / shard).parent
    first, second = folder / "c.0.0.0.0", folder / "c.1.0.0.0"
    one, two = first.read_bytes(), second.read_bytes()
    try:
        first.write_bytes(two)
        second.write_bytes(one)
        with pytest.raises(DamagedStoreError):
            open_store(whole).version().episode("long")
    finally:
        first.write_bytes(one)
        second.write_bytes(two)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b'{"format": "penstock-commit"}'])
def test_a_commit_that_is_none(whole: Path, tmp_path: Path, data: bytes) -> None:
    root = Path(shutil.copytree(whole, tmp_path / "s"))
    (root / layout.commit("small", 2)).write_bytes(data)
    store = open_store(root)
    with pytest.raises(DamagedStoreError, match="commit") as caught:
        store.version("small")
    assert "small/000000000002" in str(caught.value.where)
    assert store.version("small:1").number == 1
    assert store.version("main").number == 1


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"version": 3}', b"\xff"])
def test_a_tag_that_is_none(whole: Path, tmp_path: Path, data: bytes) -> None:
    root = Path(shutil.copytree(whole, tmp_path / "s"))
    (root / "refs/tags").mkdir(exist_ok=True)
    (root / layout.tag("t")).write_bytes(data)
    with pytest.raises(DamagedStoreError, match="tag"):
        open_store(root).version("t")


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[1]", b'{"store_version": "x"}', b'{"store_version": 1}', b"\xff\xfe"]
)
def test_a_store_document_that_is_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "penstock.json").write_bytes(data)
    for create in (False, True):
        with pytest.raises(UntrustedError, match="something else"):
            open_store(tmp_path, create=create)


def test_a_newer_format_says_upgrade(tmp_path: Path) -> None:
    document = {"format": "penstock", "store_version": 99, "store_id": "x", "novelty": True}
    (tmp_path / "penstock.json").write_text(json.dumps(document))
    with pytest.raises(UntrustedError, match="upgrade Penstock"):
        open_store(tmp_path)


def test_no_store_and_no_folder(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="penstock ingest"):
        open_store(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="came a file"):
        open_store(tmp_path / "file", create=True)


def test_a_file_that_cannot_be_read_is_not_a_missing_one(tmp_path: Path) -> None:
    store = Store(open_store(tmp_path / "s", create=True).catalog)
    version = store.append([episode("e")])
    tail = tmp_path / "s" / version.state.parts[0].blocks[0].file.key
    tail.unlink()
    tail.mkdir()
    with pytest.raises(TransientError, match="Could not read"):
        open_store(tmp_path / "s").version().episode("e")
