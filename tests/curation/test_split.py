"""Splits by hash: exact shares, nobody changes sides, copies stay together; labels from CSV."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.curation.label_file import read_labels
from pipeline.curation.split import Split, knows_copies, parse_split, split_labels
from pipeline.store.store import Store
from schemas.errors import NotFoundError, UnknownNameError, UsageError
from tests.store.disks import quick_store
from tests.store.makers import episode, names, score

SHARES = st.lists(st.integers(1, 20), min_size=1, max_size=5).map(
    lambda parts: tuple((f"s{n}", Fraction(p, sum(parts))) for n, p in enumerate(parts))
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = quick_store(tmp_path / "s")
    made.append([episode(f"e{n}", 3, task=f"t{n % 3}") for n in range(40)])
    return made


def sides(store: Store, split: Split) -> dict[str, str]:
    table = split_labels(store.version(), split)
    return dict(zip(table["episode_id"].to_pylist(), table["split"].to_pylist(), strict=True))


@given(shares=SHARES, seed=st.integers(0, 2**40), key=st.text(max_size=20))
def test_every_key_has_one_side_that_exists(shares, seed: int, key: str) -> None:
    split = Split(shares, seed=seed)
    assert split.side(key) in dict(shares)
    assert split.side(key) == Split(shares, seed=seed).side(key)


@given(cut=st.integers(1, 19), less=st.integers(0, 18), key=st.text(max_size=20))
def test_a_larger_first_side_only_gains(cut: int, less: int, key: str) -> None:
    """The order of keys stays when shares change, so a split can be widened without a leak."""
    small, large = sorted((cut, min(less + 1, 19)))

    def side(first: int) -> str:
        share = Fraction(first, 20)
        return Split((("train", share), ("val", 1 - share))).side(key)

    if side(small) == "train":
        assert side(large) == "train"


def test_shares_are_what_was_asked_for() -> None:
    split = parse_split("train=0.9, val=0.07, test=0.03", seed=5)
    drawn = [split.side(f"episode_{n}") for n in range(20_000)]
    for name, share in split.shares:
        spread = 4 * (float(share) * (1 - float(share)) / 20_000) ** 0.5
        assert drawn.count(name) / 20_000 == pytest.approx(float(share), abs=spread)
    other = [parse_split("train=0.9,val=0.1", seed=6).side(f"episode_{n}") for n in range(100)]
    assert other != [parse_split("train=0.9,val=0.1").side(f"episode_{n}") for n in range(100)]


def test_a_split_is_the_same_for_ever() -> None:
    split = parse_split("train=0.5,val=0.5")
    found = "".join(split.side(f"e{n}")[0] for n in range(24))
    assert found == "vtvtvttvvttttvtvttvvvtvt"


@settings(max_examples=15)
@given(
    st.lists(st.integers(0, 200), min_size=1, max_size=12, unique=True),
    st.lists(st.integers(0, 200), max_size=12, unique=True),
)
def test_nobody_changes_sides_as_data_grow(tmp_path_factory, first, later) -> None:
    store = quick_store(tmp_path_factory.mktemp("s") / "s")
    store.append([episode(f"e{n}", 1) for n in first])
    split = parse_split("train=0.6,val=0.4")
    before = sides(store, split)
    store.version().annotate(split_labels(store.version(), split))
    store.append([episode(f"e{n}", 1) for n in later])
    after = sides(store, split)
    assert before.items() <= after.items()
    labelled = store.version().episodes()
    for name, side in zip(labelled["episode_id"].to_pylist(), labelled["split"], strict=True):
        assert side.as_py() == before.get(name)


def test_copies_are_on_the_side_of_their_original(store: Store) -> None:
    split = parse_split("train=0.5,val=0.5")
    alone = sides(store, split)
    assert not knows_copies(store.version())
    copies = {f"e{n}": f"e{n - 20}" for n in range(20, 40)}
    assert any(alone[copy] != alone[original] for copy, original in copies.items())
    score(store, dict.fromkeys(names(20)) | copies, metric="duplicate_of")  # type: ignore[arg-type]
    assert knows_copies(store.version())
    together = sides(store, split)
    assert all(together[copy] == together[original] for copy, original in copies.items())
    assert all(together[name] == alone[name] for name in names(20))
    by_task = sides(store, parse_split("a=0.5,b=0.5", by="task", seed=2))
    assert all(by_task[copy] == by_task[original] for copy, original in copies.items())


def test_a_split_by_a_column_keeps_its_values_together(store: Store) -> None:
    found = sides(store, parse_split("a=0.5,b=0.5", by="task", seed=2))
    for task in range(3):
        assert len({found[f"e{n}"] for n in range(task, 40, 3)}) == 1
    with pytest.raises(UnknownNameError, match="task"):
        sides(store, parse_split("a=0.5,b=0.5", by="tusk"))
    with pytest.raises(UsageError, match="came 40 without"):
        sides(store, parse_split("a=0.5,b=0.5", by="seed"))


@pytest.mark.parametrize(
    "text",
    ["", "train", "train=1.1", "train=0.9,val=0.2", "a=0.5,a=0.5", "a=1/0", "=1", "a=-1,b=2"],
)
def test_splits_that_make_no_sense(text: str) -> None:
    with pytest.raises(UsageError, match="NAME=SHARE"):
        parse_split(text)


# -- files -------------------------------------------------------------------------------------


def written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_a_csv_is_typed_by_all_its_values(tmp_path: Path, store: Store) -> None:
    text = (
        "episode_id,good,grade,share,note,day\n"
        'e1,true,3,0.5,"a, ""b""\nnext",2026-01-31\n'
        'e2,,,,"",\n'
        "e3,false,-7,1,,2026-02-01\n"
    )
    table = read_labels(written(tmp_path / "l.csv", text))
    assert table.to_pylist()[0] == {
        **{"episode_id": "e1", "good": True, "grade": 3, "share": 0.5},
        **{"note": 'a, "b"\nnext', "day": "2026-01-31"},
    }
    assert table["note"].to_pylist()[1:] == ["", None]
    made = store.version().annotate(table)
    assert made.episode("e3").labels == {"grade": -7, "share": 1.0, "day": "2026-02-01"} | {
        "good": False
    }


def test_ids_stay_texts(tmp_path: Path) -> None:
    made = quick_store(tmp_path / "s")
    made.append([episode("007"), episode("7")])
    table = read_labels(written(tmp_path / "l.csv", "episode_id,g\n007,1\n"))
    assert made.version().annotate(table).episodes()["g"].to_pylist() == [1, None]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,g\ne1,1\n", "episode_id"),
        ("episode_id,g,g\ne1,1,2\n", "different names"),
        ("episode_id,g\n,1\n", "came 1 without"),
        ("episode_id,g\ne1\n", "does not read"),
        ("", "does not read"),
        ("episode_id,g\n\xff\xfe,1\n", None),
    ],
)
def test_files_that_are_no_labels(tmp_path: Path, store: Store, text: str, said) -> None:
    path = tmp_path / "l.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=said):
        store.version().annotate(read_labels(str(path)))
    with pytest.raises(NotFoundError):
        read_labels(str(tmp_path / "none.csv"))
    assert store.version().number == 1
