from __future__ import annotations

from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connectors.rllib import RllibSource
from connectors.rllib_msgpack import PICKLED, unpack
from schemas.errors import EpisodeError, SourceError
from tests.connectors.contracts import check_missing, check_source, healthy, read_all
from tests.data.make_formats import LENGTHS, TERMINATED, episodes

SOURCE = RllibSource()
SAMPLES = Path(__file__).parents[1] / "data" / "formats"


# -- steps ---------------------------------------------------------------------------------------


def steps(**changes: Any) -> dict[str, Any]:
    """Columns as RLlib's recorder writes them."""
    rows: dict[str, list[Any]] = {
        name: []
        for name in ("eps_id", "agent_id", "module_id", "obs", "actions", "rewards", "new_obs")
    }
    ends = {"terminateds": [], "truncateds": []}
    for number, (one, terminated) in enumerate(zip(episodes(), TERMINATED, strict=True)):
        count = len(one["rewards"])
        rows["eps_id"] += [f"e{number}"] * count
        rows["agent_id"] += [None] * count
        rows["module_id"] += [None] * count
        rows["obs"] += one["observations"][:-1].tolist()
        rows["new_obs"] += one["observations"][1:].tolist()
        rows["actions"] += one["actions"].tolist()
        rows["rewards"] += one["rewards"].tolist()
        ends["terminateds"] += [False] * (count - 1) + [terminated]
        ends["truncateds"] += [False] * (count - 1) + [not terminated]
    logp = [0.5] * len(rows["obs"])
    found: dict[str, Any] = {**rows, **ends, "action_logp": logp, **changes}
    return {name: column for name, column in found.items() if column is not None}


def times() -> list[int]:
    return [t for count in LENGTHS for t in range(count)]


def write(path: Path, columns: dict[str, Any], **options: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return str(path)


def check_episodes(where: str) -> None:
    _, found = check_source(SOURCE, where)
    for f, true, terminated in zip(found, episodes(), TERMINATED, strict=True):
        episode = f.episode
        assert episode is not None, f.fault
        for name in ("observations", "actions", "rewards"):
            np.testing.assert_array_equal(episode.arrays[name], true[name], name)
        assert (episode.is_terminated, episode.is_truncated) == (terminated, not terminated)
        assert episode.final_observation == "present"
        assert list(episode.extras) == ["action_logp"]


def test_steps_become_episodes_by_their_id(tmp_path: Path) -> None:
    check_episodes(write(tmp_path / "a.parquet", steps()))


def test_steps_over_files_and_row_groups(tmp_path: Path) -> None:
    table = pa.table(steps(t=times()))
    for n, rows in enumerate((slice(0, 3), slice(3, 7), slice(7, 10))):
        path = tmp_path / "hopper" / f"run-00000{n}" / "part.parquet"
        write(path, table.slice(rows.start, rows.stop - rows.start).to_pydict(), row_group_size=2)
    check_episodes(str(tmp_path))


def test_t_orders_rows_and_tells_doubles_apart(tmp_path: Path) -> None:
    table = pa.table(steps(t=times()))
    order = [*np.random.default_rng(0).permutation(10).tolist(), 3, 3]
    first = {e: min(order.index(r) for r in rows) for e, rows in _rows().items()}
    assert sorted(first.values()) != list(first.values()), "nothing is shuffled"
    _, found = check_source(SOURCE, write(tmp_path / "a", table.take(order).to_pydict()))
    by_length = {f.episode.length: f.episode for f in found if f.episode}
    for true in episodes():
        episode = by_length[len(true["rewards"])]
        np.testing.assert_array_equal(episode.observations["observations"], true["observations"])


def _rows() -> dict[int, list[int]]:
    ends = np.cumsum(LENGTHS)
    return {n: list(range(end - LENGTHS[n], end)) for n, end in enumerate(ends.tolist())}


def test_without_ids_every_row_is_an_episode(tmp_path: Path) -> None:
    where = write(tmp_path / "a", steps(eps_id=None))
    listing, found = check_source(SOURCE, where)
    assert listing.episodes == 10
    assert all(f.episode and f.episode.length == 1 for f in found)
    assert any("no eps_id" in guess for guess in listing.guesses)


def test_without_new_obs_the_final_observation_is_missing(tmp_path: Path) -> None:
    found = healthy(SOURCE, write(tmp_path / "a", steps(new_obs=None)))
    assert {e.final_observation for e in found} == {"missing"}


def test_structs_are_nested_spaces(tmp_path: Path) -> None:
    named = [{"pos": row, "on": bool(n % 2)} for n, row in enumerate(steps()["obs"])]
    where = write(tmp_path / "a", steps(obs=named, new_obs=None))
    for episode in healthy(SOURCE, where):
        assert list(episode.observations) == ["observations/pos", "observations/on"]
        assert episode.observations["observations/on"].dtype == bool


@pytest.mark.parametrize("metadata", [b"[3, 1]", b"\x80\x05pickled"])
def test_tensor_columns_have_the_shape_that_json_states(tmp_path: Path, metadata: bytes) -> None:
    def tensors(rows: list[Any]) -> Any:
        return pa.array(rows, pa.list_(pa.float32()))

    ray = {b"ARROW:extension:name": b"ray.data.arrow_tensor", b"ARROW:extension:metadata": metadata}
    columns = steps()
    columns.update({name: tensors(columns[name]) for name in ("obs", "new_obs")})
    table = pa.table(columns)
    fields = [f.with_metadata(ray) if f.name in ("obs", "new_obs") else f for f in table.schema]
    where = str(tmp_path / "a.parquet")
    pq.write_table(table.cast(pa.schema(fields)), where)
    found = healthy(SOURCE, where)
    shape = (3, 1) if metadata.startswith(b"[") else (3,)
    assert found[0].observations["observations"].shape == (6, *shape)
    said = any("shape of obs is in a pickle" in g for g in SOURCE.discover(where).guesses)
    assert said == (shape == (3,))


def dropped(row: int) -> dict[str, Any]:
    table = pa.table(steps(t=times()))
    kept = [n for n in range(10) if n != row]
    return dict(table.take(kept).to_pydict())


def doubled() -> dict[str, Any]:
    table = pa.table(steps(t=times()))
    rows = table.take([*range(10), 2]).to_pydict()
    rows["rewards"][-1] = 9.0
    return dict(rows)


def set_row(name: str, row: int, value: Any) -> dict[str, Any]:
    columns = steps()
    columns[name][row] = value
    return columns


@pytest.mark.parametrize(
    ("columns", "code"),
    [
        (dropped(2), "gap"),
        (dropped(0), "gap"),
        (doubled(), "id_conflict"),
        (set_row("new_obs", 1, [9.0, 9.0, 9.0]), "gap"),
        (set_row("obs", 1, [1.0]), "length_mismatch"),
        (set_row("obs", 1, None), "unreadable"),
        (set_row("rewards", 1, None), "unreadable"),
        (set_row("terminateds", 1, True), "flags_inconsistent"),
        (steps(terminateds=[0.5] * 5 + [0.0] * 5), "bad_dtype"),
    ],
)
def test_one_bad_episode_beside_healthy_ones(
    tmp_path: Path, columns: dict[str, Any], code: str
) -> None:
    _, found = check_source(SOURCE, write(tmp_path / "a", columns))
    assert [f.fault.code if f.fault else None for f in found] == [code, None, None]


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        (steps(obs=["x"] * 10), "compressed columns are pickles"),
        (steps(new_obs=[b"x"] * 10), "compressed columns are pickles"),
        (steps(t=[0.5] * 10), "whole numbers"),
        (steps(eps_id=[None] * 10), "eps_id"),
        (steps(actions=None), "columns obs, actions"),
    ],
)
def test_steps_that_cannot_be_trusted(tmp_path: Path, columns: dict[str, Any], match: str) -> None:
    with pytest.raises(SourceError, match=match):
        read_all(SOURCE, write(tmp_path / "a", columns))


def test_files_of_different_columns_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", steps())
    write(tmp_path / "b.parquet", steps(action_logp=None))
    with pytest.raises(SourceError, match="same columns"):
        SOURCE.discover(str(tmp_path))


def test_links_are_not_followed(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "a.parquet", steps())
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.parquet").symlink_to(tmp_path / "elsewhere" / "a.parquet")
    with pytest.raises(SourceError, match="there are none"):
        SOURCE.discover(str(tmp_path / "set"))


# -- episodes ------------------------------------------------------------------------------------


def state(number: int = 0, **changes: Any) -> dict[str, Any]:
    one = episodes()[number]
    count = len(one["rewards"])

    def buffer(data: Any) -> dict[str, Any]:
        return {"data": data, "lookback": 0}

    parts = {
        "id_": f"e{number}",
        "observations": buffer(packed(one["observations"])),
        "actions": buffer(packed(one["actions"])),
        "rewards": buffer(one["rewards"].tolist()),
        "extra_model_outputs": None,
        "is_terminated": TERMINATED[number],
        "is_truncated": not TERMINATED[number],
        "t_started": 0,
        "t": count,
    }
    return {**parts, **changes}


def packed(array: np.ndarray, **changes: Any) -> dict[Any, Any]:
    """An array as msgpack-numpy writes it."""
    said = {"nd": True, "type": array.dtype.str, "kind": b"", "shape": array.shape}
    found = {**said, "data": array.tobytes(), **changes}
    return {key.encode(): value for key, value in found.items()}


def write_items(path: Path, states: list[Any]) -> str:
    items = [one if isinstance(one, bytes) else msgpack.packb(one) for one in states]
    return write(path, {"item": pa.array(items, pa.binary())})


def test_what_msgpack_numpy_wrote() -> None:
    where = str(SAMPLES / "rllib_items.parquet")
    check_episodes(where)
    assert any("1 episodes that were recorded twice" in g for g in SOURCE.discover(where).guesses)


def test_nested_spaces_in_recorded_episodes(tmp_path: Path) -> None:
    rows = [{"pos": packed(row), "pair": [packed(row[:1]), 3]} for row in np.eye(6)]
    where = write_items(tmp_path / "a", [state(observations={"data": rows})])
    (episode,) = healthy(SOURCE, where)
    assert {n: a.shape for n, a in episode.observations.items()} == {
        "observations/pos": (6, 6),
        "observations/pair/0": (6, 1),
        "observations/pair/1": (6,),
    }


BAD = packed(np.zeros((6, 3)))


@pytest.mark.parametrize(
    ("one", "code"),
    [
        (b"\xc1", "unreadable"),
        (b"", "unreadable"),
        (b"\xdd\xff\xff\xff\xff", "unreadable"),  # claims four thousand million members
        (b"\xc6\xff\xff\xff\xff", "unreadable"),
        (b"\x91" * 5000, "unreadable"),
        (msgpack.packb(msgpack.ExtType(5, b"x")), "unreadable"),
        (msgpack.packb([1, 2]), "unreadable"),
        (state(t="5"), "bad_dtype"),
        (state(t=-1), "bad_dtype"),
        (state(t=7), "length_mismatch"),
        (state(t=10**12), "length_mismatch"),
        (state(t_started=2), "gap"),
        (state(is_terminated=False, is_truncated=False), "flags_inconsistent"),
        (state(observations={"data": {**BAD, b"shape": (2**40, 3)}}), "unreadable"),
        (state(observations={"data": {**BAD, b"shape": (-6, -3)}}), "unreadable"),
        (state(observations={"data": {**BAD, b"type": "O"}}), "unreadable"),
        (state(observations={"data": {**BAD, b"kind": b"O", b"data": b"\x80\x04."}}), "bad_dtype"),
        (
            state(observations={"data": [packed(np.zeros(3)), packed(np.zeros(2))]}),
            "length_mismatch",
        ),
        (state(observations={"data": ["a"] * 6}), "bad_dtype"),
        (state(observations={"data": BAD, "lookback": -1}), "unreadable"),
        (state(observations={"data": BAD, "lookback": 3}), "length_mismatch"),
        (state(observations=None), "unreadable"),
        (state(rewards={"data": [[1.0]] * 5}), "length_mismatch"),
    ],
)
def test_one_bad_recording_beside_a_healthy_one(tmp_path: Path, one: Any, code: str) -> None:
    _, found = check_source(SOURCE, write_items(tmp_path / "a", [one, state(1)]))
    assert [f.fault.code if f.fault else None for f in found] == [code, None]


def test_two_recordings_of_one_id_that_differ(tmp_path: Path) -> None:
    where = write_items(tmp_path / "a", [state(0), state(2, id_="e0"), state(0)])
    _, found = check_source(SOURCE, where)
    assert [f.fault.code if f.fault else None for f in found] == [None, "id_conflict"]


def test_objects_stay_closed() -> None:
    infos = packed(np.zeros(1), kind=b"O", data=b"cposix\nsystem\n")
    found = unpack(
        msgpack.packb(
            {"infos": infos, "scalar": {b"nd": False, b"type": "<f8", b"data": b"\0" * 8}}
        ),
        "x",
    )
    assert found["infos"] is PICKLED
    assert found["scalar"] == 0.0
    with pytest.raises(EpisodeError, match="does not unpack"):
        unpack(msgpack.packb({b"complex": True, b"data": "1j"}), "x")


def test_forms_are_not_mixed(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", steps())
    write_items(tmp_path / "b.parquet", [state()])
    with pytest.raises(SourceError, match="came both"):
        SOURCE.discover(str(tmp_path))


def test_nothing_there(tmp_path: Path) -> None:
    check_missing(SOURCE, tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="there are none"):
        SOURCE.discover(str(tmp_path / "empty"))
