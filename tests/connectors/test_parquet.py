from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from PIL import Image

from connectors.detection import detect
from connectors.facts import FACTS
from connectors.parquet import ParquetSource
from connectors.parquet_sink import ParquetSink
from schemas.errors import SourceError, UsageError
from schemas.identity import digest
from schemas.packed import Packed
from schemas.spec import FieldSpec
from tests.connectors.contracts import (
    assert_same,
    check_missing,
    check_sink,
    check_source,
    healthy,
    read_all,
)
from tests.connectors.makers import toy_episode
from tests.connectors.strategies import datasets
from tests.connectors.truth import check_truth

SOURCE = ParquetSource()
SINK = ParquetSink()
LENGTHS = (4, 1, 6)


def columns(lengths: tuple[int, ...] = LENGTHS) -> dict[str, Any]:
    """Columns of a table of steps, rows in order; the first episode terminates."""
    random, rows = np.random.default_rng(3), sum(lengths)
    names = np.repeat(np.arange(len(lengths)), lengths)
    last = np.cumsum(lengths) - 1
    terminated, truncated = np.zeros((2, rows), bool)
    terminated[last[0]] = True
    truncated[last[1:]] = True
    return {
        "episode_id": names,
        "step": np.concatenate([np.arange(n) for n in lengths]).astype(np.int32),
        "observation": list(random.normal(size=(rows, 3)).astype(np.float32)),
        "action": list(random.normal(size=(rows, 2)).astype(np.float32)),
        "reward": random.normal(size=rows).astype(np.float32),
        "terminated": terminated,
        "truncated": truncated,
    }


def write(path: Path, table: Any, **options: Any) -> str:
    table = table if isinstance(table, pa.Table) else pa.table(table)
    path.parent.mkdir(exist_ok=True, parents=True)
    if path.suffix == ".parquet":
        pq.write_table(table, path, **options)
    else:
        feather.write_feather(table, path, **options)
    return str(path)


def codes(where: str) -> dict[str, str | None]:
    """Fault codes of a dataset's episodes by key."""
    return {f.key: f.fault.code if f.fault else None for f in read_all(SOURCE, where)}


def digests(where: str) -> list[str]:
    return [digest(episode) for episode in healthy(SOURCE, where)]


@pytest.mark.parametrize(
    ("name", "episodes", "steps"),
    [
        ("hopper-medium", 33, 15_389),
        ("hopper-medium-replay", 798, 89_895),
        ("metaworld", 270, 25_489),
    ],
)
def test_real_tables_match_their_truth(
    shared_data: Path, tmp_path: Path, name: str, episodes: int, steps: int
) -> None:
    where = str(shared_data / name / "parquet")
    assert detect(where) == "parquet"
    listing, found = check_source(SOURCE, where)
    assert (listing.episodes, listing.steps, listing.identity) == (episodes, steps, None)
    check_truth(found, shared_data / name / "TRUTH.json", "observations")
    came = [f.episode for f in found if f.episode]
    assert SINK.write(came, str(tmp_path / "x"), {}) == episodes
    for one, two in zip(came, healthy(SOURCE, str(tmp_path / "x")), strict=True):
        assert_same(one, two, (*FACTS, "columns", "final_observation"))
        assert digest(one) == digest(two)


@settings(max_examples=80)
@given(episodes=datasets(is_nested=True))
def test_a_round_trip_loses_nothing(
    tmp_path_factory: pytest.TempPathFactory, episodes: list[Any]
) -> None:
    labelled = [e.replace(labels={"split": "train", "n": i}) for i, e in enumerate(episodes)]
    came = check_sink(SINK, SOURCE, labelled, tmp_path_factory.mktemp("parquet"), {})
    for one, two in zip(labelled, came, strict=True):
        assert_same(one, two, (*FACTS, "columns", "labels", "final_observation"))
        assert digest(one) == digest(two)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".feather"])
def test_files_of_every_kind(tmp_path: Path, suffix: str) -> None:
    where = write(tmp_path / f"table{suffix}", columns())
    assert detect(where) == "parquet"
    listing, found = check_source(SOURCE, where)
    assert (listing.episodes, listing.steps) == (3, sum(LENGTHS))
    assert [f.key for f in found] == ["episode 0", "episode 1", "episode 2"]
    first, _, last = (f.episode for f in found if f.episode)
    assert (first.is_terminated, first.is_truncated) == (True, False)
    assert last.is_truncated
    assert first.final_observation == "missing"
    assert first.observations["observations"].shape == (4, 3)
    assert first.observations["observations"].dtype == np.float32


def test_rows_in_any_order_and_any_part(tmp_path: Path) -> None:
    ordered = pa.table(columns())
    shuffled = ordered.take(pa.array(np.random.default_rng(0).permutation(ordered.num_rows)))
    expected = digests(write(tmp_path / "a" / "steps.parquet", ordered))
    write(tmp_path / "b" / "part-0.parquet", shuffled[:4], row_group_size=2)
    write(tmp_path / "b" / "part-1.parquet", shuffled[4:], row_group_size=3)
    write(tmp_path / "b" / "episodes.parquet", {"episode_id": [0, 1, 2], "length": LENGTHS})
    check_source(SOURCE, str(tmp_path / "b"))
    assert digests(str(tmp_path / "b")) == expected
    write(tmp_path / "c" / "steps" / "part-0.parquet", shuffled)
    assert sorted(digests(str(tmp_path / "c"))) == sorted(expected)


def test_units_read_only_their_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("connectors.units.UNIT_STEPS", 50)
    monkeypatch.setattr("connectors.units.NARROW_TIMES", 1)
    where = write(tmp_path / "t.parquet", columns((20,) * 10), row_group_size=20)
    listing, found = check_source(SOURCE, where)
    assert [unit.options["groups"] for unit in listing.units] == [
        [[0, 2 * at], [0, 2 * at + 1]] for at in range(5)
    ]
    assert len(found) == 10


def test_names_and_shapes(tmp_path: Path) -> None:
    table = columns()
    rows = len(table["step"])
    grid = np.arange(rows * 6, dtype=np.int16).reshape(rows, 2, 3)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(grid.reshape(-1)), 6)
    nested = pa.FixedSizeListArray.from_arrays(flat.flatten(), 3)
    table |= {
        "observation/grid": pa.FixedSizeListArray.from_arrays(nested, 2),
        "observation.vector": table.pop("observation"),
        "action/arm": table.pop("action"),
        "said": [f"row {row} ü" for row in range(rows)],
        "task": ["lift"] * rows,
        "when": pa.array([0] * rows, pa.timestamp("s")),
    }
    listing, found = check_source(SOURCE, write(tmp_path / "t.parquet", table))
    assert any("left out: when" in guess for guess in listing.guesses)
    episode = found[2].episode
    assert episode is not None
    assert set(episode.observations) == {"observations/grid", "observations/vector"}
    np.testing.assert_array_equal(episode.observations["observations/grid"], grid[5:])
    assert set(episode.flat_actions) == {"actions/arm"}
    assert episode.extras["said"][0].decode() == "row 5 ü"
    assert episode.task == "lift"
    assert set(episode.extras) == {"said"}


def test_pictures_stay_encoded(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (sum(LENGTHS), 6, 5, 3), np.uint8)
    encoded = []
    for frame in pixels:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "PNG")
        encoded.append(file.getvalue())
    table = {**columns(), "observation": encoded}
    [first, *_] = healthy(SOURCE, write(tmp_path / "t.parquet", table))
    frames = first.observations["observations"]
    assert isinstance(frames, Packed)
    assert frames.spec == FieldSpec("|u1", (6, 5, 3), "frames")
    np.testing.assert_array_equal(np.asarray(frames), pixels[:4])
    SINK.write([first], str(tmp_path / "copy"), {})
    [again] = healthy(SOURCE, str(tmp_path / "copy"))
    assert digest(again) == digest(first)
    broken = {**table, "observation": [*encoded[:4], b"GIF89a", *encoded[5:]]}
    where = write(tmp_path / "b.parquet", broken)
    assert codes(where) == {"episode 0": None, "episode 1": "unreadable", "episode 2": None}


def test_encoded_rows_come_back(tmp_path: Path) -> None:
    ragged = [np.zeros((n, 2), np.float32) + n for n in (0, 2, 1, 3)]
    episode = toy_episode(
        observations={
            "state": np.zeros((5, 3), np.float16),
            "said": Packed.texts(["a", "", "ü", "d", "last"]),
            "points": Packed.ragged([*ragged, ragged[1]]),
            "none": np.zeros((5, 0), np.float32),
        },
        extras={"task": Packed.texts(["x"] * 4), "step": np.arange(5), "next_x": np.arange(4)},
        labels={"mask_train": True, "split": "train"},
        columns={"length": 3, "column/x": "y", "task": "z", "big": 2**70},
    )
    [came] = check_sink(SINK, SOURCE, [episode], tmp_path, {})
    assert digest(came) == digest(episode)
    assert (came.labels, came.columns) == (episode.labels, episode.columns)
    for name in ("observations/said", "observations/points"):
        assert list(came.observations[name]) == list(episode.observations[name])  # type: ignore[arg-type]
    assert came.extras["step"].shape == (5,)


def test_what_an_episode_lacks_is_null(tmp_path: Path) -> None:
    episodes = [
        toy_episode(extras={"q": np.arange(4)}),
        toy_episode(rewards=None, actions=None),
        toy_episode(final_observation="missing", observations=np.zeros((4, 3))),
    ]
    came = check_sink(SINK, SOURCE, episodes, tmp_path, {})
    for one, two in zip(episodes, came, strict=True):
        assert_same(one, two, ("final_observation",))
    table = pq.read_table(tmp_path / "out-v0" / "steps.parquet")
    assert table.column("reward").null_count == 4
    assert table.column("next_observation").null_count == 10


def test_next_observations(tmp_path: Path) -> None:
    table = columns()
    following = np.roll(np.array(table["observation"]), -1, axis=0)
    following[np.cumsum(LENGTHS) - 1] = [[7, 7, 7], table["observation"][4], [9, 9, 9]]
    where = write(tmp_path / "t.parquet", {**table, "next_observation": list(following)})
    came = healthy(SOURCE, where)
    assert [e.final_observation for e in came] == ["present", "copied", "present"]
    np.testing.assert_array_equal(came[0].observations["observations"][-1], [7, 7, 7])
    following[7] += 1
    where = write(tmp_path / "gap.parquet", {**table, "next_observation": list(following)})
    assert codes(where) == {"episode 0": None, "episode 1": None, "episode 2": "gap"}


@pytest.mark.parametrize(
    ("row", "column", "value", "code"),
    [
        (6, "step", 9, "gap"),
        (6, "step", 0, "gap"),
        (5, "step", None, "gap"),
        (6, "observation", None, "unreadable"),
        (6, "observation", [1.0, None, 2.0], "unreadable"),
        (6, "observation", [1.0], "length_mismatch"),
        (6, "action", None, "unreadable"),
        (6, "reward", None, "unreadable"),
        (6, "terminated", None, "unreadable"),
    ],
)
def test_a_fault_stays_with_its_episode(
    tmp_path: Path, row: int, column: str, value: object, code: str
) -> None:
    table = {
        n: [v.tolist() if hasattr(v, "tolist") else v for v in c] for n, c in columns().items()
    }
    table[column][row] = value
    where = write(tmp_path / "t.parquet", table)
    assert codes(where) == {"episode 0": None, "episode 1": None, "episode 2": code}


def test_the_table_of_episodes_is_held_against_the_steps(tmp_path: Path) -> None:
    write(tmp_path / "d" / "steps.parquet", columns())
    episodes = {"episode_id": [2, 0, 1, 5], "length": [6, 3, 1, 2], "seed": [3, 4, None, 5]}
    write(tmp_path / "d" / "episodes.parquet", episodes)
    _, found = check_source(SOURCE, str(tmp_path / "d"))
    assert [(f.key, f.fault.code if f.fault else None) for f in found] == [
        ("episode 2", None),
        ("episode 0", "length_mismatch"),
        ("episode 1", None),
        ("episode 5", "length_mismatch"),
    ]
    assert found[0].episode is not None
    assert found[0].episode.seed == 3
    for wrong in ([0, 0], [0, None], ["0", "1"]):
        write(tmp_path / "d" / "episodes.parquet", {"episode_id": wrong})
        with pytest.raises(SourceError, match=r"Expected (one row per|ids of one)"):
            SOURCE.discover(str(tmp_path / "d"))


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in columns().items() if key != name}


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (without("episode_id"), "'episode_id'"),
        (without("step"), "'step'"),
        (without("observation"), "an observation"),
        ({**columns(), "episode_id": [None] * 11}, "a whole number or a text"),
        ({**columns(), "episode_id": [0.5] * 11}, "a whole number or a text"),
        ({**columns(), "step": [0.5] * 11}, "whole numbers in the column 'step'"),
        ({**columns(), "observation.x": [0] * 11, "observation/x": [0] * 11}, "x doubled"),
        ({**columns(), "action": pa.array([0] * 11, pa.timestamp("s"))}, "column 'action'"),
    ],
)
def test_a_table_that_cannot_be_trusted_is_refused(
    tmp_path: Path, table: dict[str, Any], said: str
) -> None:
    where = write(tmp_path / "t.parquet", table)
    with pytest.raises(SourceError, match=said):
        SOURCE.discover(where)


def test_parts_with_another_schema_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "d" / "0.parquet", columns())
    renamed = columns((3,))
    renamed["rewards"] = renamed.pop("reward")
    write(tmp_path / "d" / "1.parquet", renamed)
    with pytest.raises(SourceError, match="reward float against absent, rewards absent"):
        SOURCE.discover(str(tmp_path / "d"))


def test_hostile_files(tmp_path: Path) -> None:
    check_missing(SOURCE, tmp_path)
    where = write(tmp_path / "a" / "steps.parquet", columns())
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "steps.parquet").symlink_to(where)
    with pytest.raises(SourceError, match="links are not followed"):
        SOURCE.discover(str(tmp_path / "links"))
    whole = Path(where).read_bytes()
    for name, data in (("cut", whole[:-30]), ("empty", b""), ("text", b"hello" * 9)):
        (tmp_path / f"{name}.parquet").write_bytes(data)
        with pytest.raises(SourceError, match="cannot be read"):
            SOURCE.discover(str(tmp_path / f"{name}.parquet"))
    zeros = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(2**24)), 8)
    bomb = {"episode_id": np.zeros(2**21, int), "step": np.zeros(2**21, int), "observation": zeros}
    for suffix in (".parquet", ".feather"):
        where = write(tmp_path / f"bomb{suffix}", bomb, compression="zstd")
        with pytest.raises(SourceError, match="decompression bomb"):
            SOURCE.discover(where)
    odd = pa.table(columns()).replace_schema_metadata(None)
    field = odd.schema.field("observation").with_metadata({"penstock.field": "[1"})
    odd = odd.set_column(2, field, odd.column("observation"))
    with pytest.raises(SourceError, match="dtype, shape and encoding"):
        SOURCE.discover(write(tmp_path / "odd.parquet", odd))


@pytest.mark.parametrize("seed", range(60))
def test_flipped_bytes_end_in_a_typed_error_or_data(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    where = Path(write(tmp_path / f"t{('.parquet', '.feather')[seed % 2]}", columns()))
    data = bytearray(where.read_bytes())
    for at in random.integers(0, len(data), 3):
        data[at] ^= int(random.integers(1, 256))
    where.write_bytes(data)
    try:
        found = read_all(SOURCE, str(where))
    except SourceError:
        return
    assert all((f.episode is None) == (f.fault is not None) for f in found)


def test_one_long_episode(tmp_path: Path) -> None:
    steps = 400_000
    rows = np.arange(2 * steps, dtype=np.float32).reshape(steps, 2)
    long = toy_episode(
        steps,
        observations=np.concatenate([rows, rows[:1]]),
        actions=rows,
        rewards=rows[:, 0],
        truncated=True,
    )
    SINK.write(
        [toy_episode(4, observations=rows[:5], actions=rows[:4], rewards=rows[:4, 0]), long],
        str(tmp_path / "x"),
        {},
    )
    file = pq.ParquetFile(tmp_path / "x" / "steps.parquet")
    groups = [file.metadata.row_group(at).num_rows for at in range(file.num_row_groups)]
    assert max(groups) <= 2 * 65_536
    came = healthy(SOURCE, str(tmp_path / "x"))
    assert digest(came[1]) == digest(long)


def test_what_does_not_fit_is_refused_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connectors.parquet_sink.GROUP_STEPS", 4)
    for episodes in (
        [toy_episode(0)],
        [],
        [toy_episode(), toy_episode(observations=np.zeros((5, 4)))],
        [toy_episode(), toy_episode(observations={"x": np.zeros((5, 4))})],
        [toy_episode(), toy_episode(rewards=np.zeros(4, np.float32))],
        [toy_episode(), toy_episode(extras={"late": np.zeros(4)})],
        [toy_episode(extras={"a\nb": np.zeros(4)})],
        [toy_episode(columns={"a\nb": 1})],
    ):
        with pytest.raises(UsageError, match="Expected"):
            SINK.write(episodes, str(tmp_path / "x"), {})
        assert list(tmp_path.iterdir()) == []
