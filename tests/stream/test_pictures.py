"""Pictures that stay encoded until they are gathered: the same batches as from a decoded cache."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.store.store import Store, open_store
from pipeline.stream import pictures
from pipeline.stream.eviction import caches, evict
from pipeline.stream.loader import Stream
from pipeline.stream.pictures import Pictures, decode_into, kept_encoded
from pipeline.stream.record import plan_record, with_more
from schemas.errors import ConfigError, DamagedCacheError, EpisodeError, UsageError
from schemas.packed import Packed, plain
from schemas.spec import FieldSpec
from tests.encoded import PICTURE, camera_episode, film, points
from tests.encoded import pictures as made_pictures

FORM: dict[str, Any] = {"sampler": "shuffle", "shuffle_window": 2, "batch_size": 8, "seed": 3}
UNIFORM: dict[str, Any] = {"sampler": "transition", "shuffle_window": 16}
WINDOWS: dict[str, dict[str, Any]] = {
    "transitions": {},
    "stacked frames": {"frame_stack": 3},
    "windows": {"window": 3, "history": 1},
    "goals": {"goals": "future", "goal_field": "observations/front"},
    "pictures alone": {"fields": ["observations/front", "observations/wrist"]},
    "extras": {"fields": ["observations/wrist", "extras/view", "actions"]},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Four blocks with a camera, a film and a picture per step; some final ones are missing."""
    made = open_store(tmp_path_factory.mktemp("pictures") / "s", create=True)
    for block in range(4):
        made.append(
            camera_episode(
                f"e{block}-{k}",
                7 + k,
                seed=4 * block + k,
                terminated=k % 2 == 0,
                truncated=k % 2 == 1,
                extras={"view": made_pictures(7 + k, seed=90 + k, kind="PNG")},
                **_lost(7 + k, 4 * block + k) if k == 2 else {},
            )
            for k in range(3)
        )
    return made


def _lost(steps: int, seed: int) -> dict[str, Any]:
    """An episode that ends without its final observation."""
    seen = {
        "state": np.zeros((steps, 3)),
        "front": made_pictures(steps, seed),
        "wrist": film(steps, seed),
        "scan": points(steps, seed),
    }
    return {"observations": seen, "final_observation": "missing"}


def stream(store: Store, tmp_path: Path, **settings: Any) -> Stream:
    told = {**FORM, "framework": "numpy", "cache_dir": tmp_path / "cache", **settings}
    return Stream(store.version(), **told)


def flat(batch: dict[str, Any], at: str = "") -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for name, value in batch.items():
        found.update(flat(value, f"{at}{name}/") if isinstance(value, dict) else {at + name: value})
    return found


@pytest.mark.parametrize("name", WINDOWS)
def test_batches_are_those_of_the_decoded_cache(store: Store, tmp_path: Path, name: str) -> None:
    cached = stream(store, tmp_path, residency="mmap", **WINDOWS[name])
    decoded = stream(store, tmp_path, residency="windowed", pictures="decode", **WINDOWS[name])
    for _ in range(2 * cached.transitions // 8):
        mine, theirs = flat(next(decoded)), flat(next(cached))
        assert mine.keys() == theirs.keys()
        for key in mine:
            np.testing.assert_array_equal(mine[key], theirs[key], strict=True)


@pytest.mark.parametrize("name", WINDOWS)
def test_a_cache_of_encoded_pictures_yields_the_same(
    store: Store, tmp_path: Path, name: str
) -> None:
    fields = ["observations/front", "observations/state", "actions", "extras/view"]
    form = {**UNIFORM, **WINDOWS[name], "fields": fields}
    if form.keys() & {"frame_stack", "window"}:
        form["sampler"] = "episode"
    cached = stream(store, tmp_path, residency="mmap", **form)
    decoded = stream(store, tmp_path, pictures="decode", **form)
    assert "with pictures encoded beside it" in decoded.describe()
    for _ in range(2 * cached.transitions // 8):
        mine, theirs = flat(next(decoded)), flat(next(cached))
        assert mine.keys() == theirs.keys()
        for key in mine:
            np.testing.assert_array_equal(mine[key], theirs[key], strict=True)


def test_encoded_pictures_are_kept_once_and_trusted_once_compared(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = {**UNIFORM, "pictures": "decode", "fields": ["observations/front", "actions"]}
    first = stream(store, tmp_path, **form)
    expected = next(first)["observations"]["front"]
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.stream.source.pack_pieces", lambda *_: pytest.fail("packed again"))
        again = next(stream(store, tmp_path, **form))["observations"]["front"]
    np.testing.assert_array_equal(again, expected)
    (folder,) = (tmp_path / "cache").glob("*/*")
    (held,) = caches(tmp_path / "cache")
    files = sorted((folder / "pictures").iterdir())
    assert len(files) == 4
    assert held.size == sum(one.stat().st_size for one in [folder / "rows.bin", *files])
    data = bytearray(files[1].read_bytes())
    data[len(data) // 2] ^= 1
    files[1].unlink()  # those who map it keep the old one
    files[1].write_bytes(data)
    with pytest.raises(DamagedCacheError, match="delete the folder"):
        stream(store, tmp_path, **form)
    files[1].unlink()
    with pytest.raises(DamagedCacheError, match="delete the folder"):
        stream(store, tmp_path, **form)
    next(first)
    del first
    gc.collect()
    assert len(evict(tmp_path / "cache")[0]) == 1
    assert [one.name for one in folder.iterdir()] == ["lock"]
    np.testing.assert_array_equal(
        next(stream(store, tmp_path, **form))["observations"]["front"], expected
    )


def test_erased_pictures_leave_the_cache(tmp_path: Path) -> None:
    made = open_store(tmp_path / "s", create=True)
    made.append([camera_episode(f"a{k}", 5, seed=k) for k in range(2)])
    made.append([camera_episode(f"b{k}", 5, seed=7 + k) for k in range(2)])
    form = {**UNIFORM, "pictures": "decode", "fields": ["observations/front"]}
    stream(made, tmp_path, **form)
    gone, left = made_pictures(6, 7)[0], made_pictures(6, 8)[0]

    def is_held(picture: bytes) -> bool:
        return any(picture in file.read_bytes() for file in tmp_path.glob("cache/*/*/pictures/*"))

    assert is_held(gone)
    made.erase(["b0"])
    made.gc(erase=True)
    stream(open_store(tmp_path / "s"), tmp_path, **form)
    assert not is_held(gone)
    assert is_held(left)


def test_far_more_chunks_fit_the_same_memory(store: Store, tmp_path: Path) -> None:
    decoded, cached = (
        stream(store, tmp_path, residency="windowed", pictures=kind, memory="64MB")
        .feed.at(0)
        .windowed
        for kind in ("decode", "cache")
    )
    assert decoded is not None
    assert cached is not None
    assert decoded.slots == cached.slots == 4
    assert decoded.nbytes * 20 < cached.nbytes


def test_a_picture_is_decoded_once_per_gather(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []

    def counted(rows: Any) -> np.ndarray:
        decoded.append(len(rows))
        return plain(rows)

    monkeypatch.setattr(pictures, "plain", counted)
    stored = plan_record({"actions": FieldSpec("<f4", (2,))}, "float32")
    layout = with_more(stored, {"observations/front": PICTURE})
    shown = made_pictures(40)
    held = {
        0: kept_encoded(
            {"observations/front": shown, "observation_valid": np.ones(40, bool)},
            ["observations/front"],
        ),
        1: Pictures(),
    }
    rows = np.random.default_rng(0).integers(0, 40, 300)
    owner = np.arange(300) % 2
    records = np.full((300, layout.words), -1, np.int32)
    decode_into(layout, records, owner, rows, held, ["observations/front"])
    found = layout.view(records[:, None], "observations/front")
    np.testing.assert_array_equal(found[::2], plain(shown)[rows[::2]])
    assert not found[1::2].any()  # of a block without the field
    assert sum(decoded) == len(set(rows[::2]))
    assert max(decoded) <= pictures.AT_ONCE


def test_a_picture_that_does_not_decode_is_named(tmp_path: Path) -> None:
    broken = made_pictures(6)
    rows = [*broken]
    rows[3] = rows[3][:200]
    made = open_store(tmp_path / "s", create=True)
    front = camera_episode("e", 5).replace(observations={"front": Packed.of(PICTURE, rows)})
    made.append([front])
    one = stream(made, tmp_path, residency="windowed", pictures="decode")
    with pytest.raises(EpisodeError, match=r"decode|PNG or JPEG"):
        next(one)


def test_what_cannot_stay_encoded_is_said(store: Store, tmp_path: Path) -> None:
    for residency in ("ram", "gpu"):
        with pytest.raises(ConfigError, match="residency"):
            stream(store, tmp_path, pictures="decode", residency=residency)
    with pytest.raises(ConfigError, match="pictures"):
        stream(store, tmp_path, pictures="sometimes")
    with pytest.raises(UsageError, match="video 'observations/wrist'"):
        stream(store, tmp_path, pictures="decode", residency="mmap")
    with pytest.raises(UsageError, match="set memory= larger"):
        stream(store, tmp_path, residency="windowed", pictures="decode", memory="1kB")
