"""Pictures that stay encoded until they are gathered: the same batches as from a decoded cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.store.store import Store, open_store
from pipeline.stream import pictures
from pipeline.stream.loader import Stream
from pipeline.stream.pictures import Pictures, decode_into, kept_encoded
from pipeline.stream.record import plan_record, with_more
from schemas.errors import ConfigError, EpisodeError, UsageError
from schemas.packed import Packed, plain
from schemas.spec import FieldSpec
from tests.encoded import PICTURE, camera_episode, film, points
from tests.encoded import pictures as made_pictures

FORM: dict[str, Any] = {"sampler": "shuffle", "shuffle_window": 2, "batch_size": 8, "seed": 3}
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
    found = {}
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


def test_other_residencies_decode_into_their_cache(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="residency='windowed'"):
        stream(store, tmp_path, pictures="decode", residency="mmap")
    with pytest.raises(ConfigError, match="pictures"):
        stream(store, tmp_path, pictures="sometimes")
    with pytest.raises(UsageError, match="set memory= larger"):
        stream(store, tmp_path, residency="windowed", pictures="decode", memory="1kB")
