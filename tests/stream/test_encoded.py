"""Streams of encoded fields: pictures and videos are decoded once, as the cache is filled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.store.store import Store, open_store
from pipeline.stream import record
from pipeline.stream.loader import Stream
from schemas.errors import UsageError
from schemas.packed import Packed, plain
from tests.encoded import camera_episode, film, pictures


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))
    return open_store(tmp_path / "s", create=True)


def test_pictures_and_videos_arrive_as_numbers(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "PIECE_BYTES", 20_000)  # a few rows at a time
    offered = [camera_episode(f"e{k}", 9 + k, seed=k) for k in range(3)]
    version = store.append(offered)
    stream = Stream(version, framework="numpy", batch_size=16, episode_ids=True)
    fields = {n: version.field(n, rows=True).compute() for n in ("observations/front",)}
    fields["observations/wrist"] = version.field("observations/wrist", rows=True).compute()
    for _ in range(3):
        batch = next(stream)
        assert set(batch["observations"]) == {"state", "front", "wrist"}
        for name in ("front", "wrist"):
            rows = fields[f"observations/{name}"]
            came, following = batch["observations"][name], batch["next_observations"][name]
            assert came.dtype == np.uint8
            np.testing.assert_array_equal(came, rows[batch["indices"]])
            np.testing.assert_array_equal(following, rows[batch["indices"] + 1])
    assert "rows differ in size: observations/scan" in stream.describe()


def test_a_missing_final_frame_repeats_across_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = record.plan_record({"observations/x": pictures(1).spec}, "keep")
    frames = pictures(8)
    missing = Packed.of(frames.spec, [*frames[:4], b"", *frames[4:]])
    seen = np.arange(9) != 4
    rows = {"observations/x": missing, "terminated": ~seen, "truncated": ~seen}
    rows["observation_valid"] = seen
    for size in (layout.size, 2 * layout.size, 4 * layout.size, 99 * layout.size):
        monkeypatch.setattr(record, "PIECE_BYTES", size)
        records = np.concatenate(list(record.pack_pieces(layout, rows)))
        shown = layout.view(records[:, None], "observations/x")
        np.testing.assert_array_equal(shown[4], shown[3])
        np.testing.assert_array_equal(shown[seen], plain(frames))


def test_a_video_file_is_read_once_for_all_its_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    video = film(12, 0, 1)
    read: list[str] = []
    media = tuple(
        one.__class__(
            one.sha256, one.size, lambda one=one: (read.append(one.sha256), one.load())[1]
        )
        for one in video.media
    )
    layout = record.plan_record({"observations/x": video.spec}, "keep")
    monkeypatch.setattr(record, "PIECE_BYTES", 2 * layout.size)
    rows = {name: np.zeros(12, bool) for name in ("terminated", "truncated")}
    rows["observation_valid"] = np.ones(12, bool)
    told = {
        **rows,
        "observations/x": video.__class__(video.spec, media, video.index, video.timestamps),
    }
    records = np.concatenate(list(record.pack_pieces(layout, told)))
    np.testing.assert_array_equal(layout.view(records[:, None], "observations/x"), plain(video))
    assert len(read) == 2


@pytest.mark.parametrize("name", ["observations/scan", "extras/instruction"])
def test_texts_and_ragged_rows_are_refused_by_name(store: Store, name: str) -> None:
    version = store.append([camera_episode("e")])
    with pytest.raises(UsageError, match=name):
        Stream(version, framework="numpy", fields=["observations/state", name])
