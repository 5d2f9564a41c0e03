"""Encoded rows: checked at the door, without loss through tables, identified by what they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from schemas.arrow import episode_from_table, episode_to_table, rows_to_table, table_to_rows
from schemas.episode import Episode
from schemas.errors import EpisodeError
from schemas.identity import digest
from schemas.packed import Media, Packed, Rows, Video, join, own, stored_bytes
from schemas.rows import layout_of, to_rows
from schemas.spec import FieldSpec
from tests.encoded import (
    FILM,
    PICTURE,
    camera_episode,
    clip,
    encoded_episodes,
    film,
    picture,
    pictures,
    points,
    words,
)
from tests.strategies import assert_same_episode, same_array


@settings(max_examples=40)
@given(episode=encoded_episodes())
def test_a_table_holds_all_of_an_encoded_episode(episode: Episode) -> None:
    back = episode_from_table(episode_to_table(episode))
    assert_same_episode(back, episode)
    assert digest(back) == digest(episode)


def test_columns_of_encoded_rows_are_open_to_any_arrow_reader() -> None:
    table = episode_to_table(camera_episode("e", 2))
    assert table["extras/thought"].to_pylist() == ["", "grüße 🙂 1", "grüße 🙂 2" * 2]
    assert table["observations/front"].to_pylist() == [picture(row) for row in range(3)]
    frames = table["observations/wrist"].to_pylist()
    assert frames[1] == {"media": 0, "timestamp": 0.1}


def test_a_slice_of_an_encoded_table_is_not_shifted() -> None:
    episode = camera_episode("e", 9)
    rows, layout = to_rows(episode), layout_of(episode)
    table = rows_to_table(rows, layout).slice(3, 4)
    back = table_to_rows(table, layout.fields, lambda sha256: Media.of(clip(0)))
    for name, mine in rows.items():
        assert same_array(back[name], mine[3:7]), name


def test_a_changed_media_file_in_a_table_is_refused() -> None:
    table = episode_to_table(camera_episode("e", 2))
    metadata = dict(table.schema.metadata)
    (key,) = [key for key in metadata if key.startswith(b"penstock.media/")]
    metadata[key] = metadata[key][:-1] + b"?"
    with pytest.raises(EpisodeError, match="media file"):
        episode_from_table(table.replace_schema_metadata(metadata))


def test_offsets_that_lead_out_of_a_table_are_refused() -> None:
    table = episode_to_table(camera_episode("e", 2))
    at = table.column_names.index("observations/front")
    offsets = pa.py_buffer(np.array([0, 1 << 40, 2, 3], np.int64))
    broken = pa.Array.from_buffers(pa.large_binary(), 3, [None, offsets, pa.py_buffer(b"abc")])
    with pytest.raises(EpisodeError, match="sound table"):
        episode_from_table(table.set_column(at, table.schema.field(at), broken))


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (Packed(PICTURE, np.array([0, 4, 2]), np.zeros(2, np.uint8)), "ascending"),
        (Packed(PICTURE, np.array([0, 1, 2]), np.zeros(9, np.uint8)), "ascending"),
        (Packed(PICTURE, np.array([0.0, 1, 2]), np.zeros(2, np.uint8)), "int64 offsets"),
        (Packed.of(FieldSpec("<f4", (2, 2), "frames"), [b"", b""]), "frames"),
        (Packed.of(FieldSpec("<f4", (-1, 2), "ragged"), [b"", b"1234"]), "whole rows"),
        (Packed.of(FieldSpec("<f4", (-1, 0), "ragged"), [b"", b""]), "ragged rows"),
        (Packed.of(FieldSpec("str", (), "text"), [b"\xff", b""]), "UTF-8"),
        (Packed.of(FieldSpec("str", (), "text"), [b"\xc3", b"\xa9"]), "cut in two"),
        (Video(FILM, (), np.zeros(2, np.int32), np.zeros(2)), "media files"),
        (Video(FILM, (), np.zeros(2, np.int64), np.zeros(2)), "int32"),
        (Video(PICTURE, (), np.full(2, -1, np.int32), np.zeros(2)), "video of"),
        (Video(FILM, film(2, 0).media, np.zeros(2, np.int32), np.full(2, np.nan)), "finite"),
    ],
)
def test_broken_encoded_rows_are_refused(rows: Any, says: str) -> None:
    with pytest.raises(EpisodeError, match=says) as caught:
        Episode("e", {"x": rows}, final_observation="present")
    assert caught.value.code == "bad_dtype"


def test_a_digest_says_what_the_rows_are_not_where_they_lay() -> None:
    two = camera_episode("e", observations={"wrist": film(6, 1, 2)})
    three = camera_episode("e", observations={"wrist": film(6, 2, 1)})
    wrist = join([episode.observations["observations/wrist"] for episode in (two, three)])
    assert isinstance(wrist, Video)
    assert len(wrist.media) == 2
    cut = camera_episode("e", observations={"wrist": wrist[6:]})
    assert digest(cut) == digest(three) != digest(two)


@pytest.mark.parametrize(
    "change",
    [
        {"observations": {"x": pictures(6, 1)}},
        {"observations": {"x": pictures(6, kind="PNG")}},
        {"observations": {"x": film(6, 0)}},
        {"observations": {"x": film(6, 1)}},
        {"observations": {"x": film(6, 0, start=1)}},
        {"observations": {"x": points(6)}},
        {"extras": {"instruction": words(5, "hallo")}},
        {"extras": {"instruction": words(6)}},
    ],
)
def test_each_encoded_change_changes_the_digest(change: dict[str, Any]) -> None:
    one = camera_episode("e", **{"observations": {"x": pictures(6)}, "extras": {}})
    base = {"observations": {"x": pictures(6)}, "extras": {}}
    assert digest(camera_episode("e", **{**base, **change})) != digest(one)


@pytest.mark.parametrize("rows", [pictures(4), film(4, 1), words(4), points(4), np.ones((4, 2))])
def test_own_rows_hold_nothing_else(rows: Rows) -> None:
    copied = own(rows[1:3])
    assert same_array(copied, rows[1:3])
    assert 0 < stored_bytes(copied) < stored_bytes(rows)
