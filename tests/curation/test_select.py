"""Steps of a curation: what each keeps, in which order, and that a refresh does it again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.curation.preview import clause_rows, preview, task_rows, write_plot
from pipeline.curation.select import Curation, apply, refresh
from pipeline.store.store import Store
from schemas.errors import FilterError, UnknownNameError, UnscoredError, UsageError
from tests.store.disks import quick_store
from tests.store.makers import episode, ids_of, names, score

TASKS = ("push", "push", "reach", "push", "reach", None, "push", "reach", None, "push")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Ten episodes of 0 to 9 steps: five push, three reach, two of no task."""
    made = quick_store(tmp_path / "s")
    made.append([episode(f"e{n}", n, task=TASKS[n]) for n in range(10)])
    return made


def kept(store: Store, **wanted: object) -> list[str]:
    selection = apply(store.version(), Curation(**wanted))
    found: list[str] = selection.episodes()["episode_id"].to_pylist()
    return found


# -- quantiles within groups -------------------------------------------------------------------


def test_a_quantile_within_groups_is_each_group_s_own(store: Store) -> None:
    version = store.version()
    selection = version.where("length >= quantile(length, 0.5, task)")
    # push has lengths 0 1 3 6 9, reach 2 4 7, and those without a task 5 8.
    assert selection.episodes()["length"].to_pylist() == [3, 4, 6, 7, 8, 9]
    told = selection.derivation
    assert told.resolved == "length >= quantile(length, 0.5, task)"
    assert told.thresholds == {
        "quantile(length, 0.5, task)": {"push": 3.0, "reach": 4.0, "null": 6.5}
    }
    everywhere = version.where("length >= quantile(length, 0.5)")
    assert everywhere.derivation.resolved == "length >= 4.5"
    assert everywhere.derivation.thresholds == {}


def test_a_group_without_scores_is_unscored(store: Store) -> None:
    score(store, {name: float(n) for n, name in enumerate(names(10)) if TASKS[n] == "push"})
    where = "action_divergence <= quantile(action_divergence, 0.5, task)"
    with pytest.raises(UnscoredError, match="5 without"):
        store.version().where(where)
    chosen = store.version().where(where, unscored="drop")
    assert chosen.episodes()["episode_id"].to_pylist() == ["e0", "e1", "e3"]
    (groups,) = chosen.derivation.thresholds.values()
    assert groups == {"push": 3.0, "reach": None, "null": None}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("length > quantile(length, 0.5, tusk)", UnknownNameError),
        ("length > quantile(length, 0.5, 3)", FilterError),
        ("length > quantile(task, 0.5, kind)", FilterError),
        ("length > quantile(length, 0.5, task", FilterError),
    ],
)
def test_quantiles_that_make_no_sense(store: Store, text: str, error: type) -> None:
    with pytest.raises(error):
        store.version().where(text)


# -- the best ----------------------------------------------------------------------------------


def test_the_best_of_each_group(store: Store) -> None:
    assert kept(store, top=2, by="length") == ["e8", "e9"]
    assert kept(store, top=1, by="length", per="task") == ["e7", "e8", "e9"]
    assert kept(store, top=2, by="-length", per="task") == ["e0", "e1", "e2", "e4", "e5", "e8"]
    assert kept(store, top=99, by="length", per="task") == names(10)
    assert kept(store, where="length < 7", top=1, by="length", per="task") == ["e4", "e5", "e6"]


def test_of_equal_values_the_earlier_episode_wins(tmp_path: Path) -> None:
    store = quick_store(tmp_path / "s")
    store.append([episode(name, 4) for name in "dabc"])
    assert kept(store, top=2, by="length") == ["d", "a"]
    assert kept(store, top=2, by="-length") == ["d", "a"]


def test_the_best_by_a_score_that_some_have_not(store: Store) -> None:
    score(store, {"e1": 0.1, "e2": 0.2, "e3": float("nan")})
    best = {"top": 1, "by": "-action_divergence"}
    with pytest.raises(UnscoredError, match="8 without"):
        kept(store, **best)
    assert kept(store, **best, unscored="drop") == ["e1"]
    assert kept(store, **best, unscored="keep") == ["e0", "e1", *names(10)[3:]]
    assert kept(store, **best, where="action_divergence is not null") == ["e1"]
    with pytest.raises(UsageError, match="is not null"):
        kept(store, top=1, by="seed")


# -- copies ------------------------------------------------------------------------------------


def copies(store: Store, found: dict[str, str | None]) -> None:
    score(store, found, metric="duplicate_of")  # type: ignore[arg-type]


def test_the_first_of_each_group_of_copies_stays(store: Store) -> None:
    copies(store, dict.fromkeys(names(10)) | {"e3": "e1", "e6": "e1", "e9": "e8"})
    assert kept(store, dedupe=True) == ["e0", "e1", "e2", "e4", "e5", "e7", "e8"]
    # Among candidates: where the original is left out, its first copy stands for all.
    assert kept(store, dedupe=True, where="length > 1") == [*names(10)[2:6], "e7", "e8"]
    assert kept(store, dedupe=True, top=2, by="length") == ["e7", "e8"]


def test_copies_that_nobody_looked_for(store: Store) -> None:
    with pytest.raises(UnscoredError, match="penstock measure"):
        kept(store, dedupe=True)
    copies(store, dict.fromkeys(names(8)) | {"e3": "e1"})
    with pytest.raises(UnscoredError, match="came 2 without"):
        kept(store, dedupe=True)
    assert kept(store, dedupe=True, where="length < 8") == ["e0", "e1", "e2", *names(8)[4:]]
    assert "e9" in kept(store, dedupe=True, unscored="keep")
    assert "e9" not in kept(store, dedupe=True, unscored="drop")


# -- frames ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("2:5", {n: (2, min(5, n)) for n in range(3, 10)}),
        ("7:", {8: (7, 8), 9: (7, 9)}),
        (":-6", {7: (0, 1), 8: (0, 2), 9: (0, 3)}),
        ("-2:", {n: (max(0, n - 2), n) for n in range(1, 10)}),
    ],
)
def test_frames_are_steps_as_a_slice_takes_them(store: Store, text, spans) -> None:
    selection = apply(store.version(), Curation(frames=text))
    made = selection.commit(branch="cut")
    assert ids_of(made) == [f"e{n}" for n in spans]
    np.testing.assert_array_equal(made.index().keep, list(spans.values()))
    start, stop = (None if not end else int(end) for end in text.split(":"))
    wanted = np.concatenate([store.version().episode(f"e{n}").actions[start:stop] for n in spans])
    np.testing.assert_array_equal(made.field("actions").compute(), wanted)
    assert store.version().index().keep is None


def test_frames_narrow_what_labels_keep_already(store: Store) -> None:
    store.version().annotate(pa.table({"episode_id": ["e8", "e9"], "keep_start": [5, 1]}))
    made = apply(store.version(), Curation(frames="3:7", where="length > 7")).commit(branch="cut")
    assert made.index().keep.tolist() == [[5, 7], [3, 7]]
    store.revert("main:1")
    again = refresh(store, "cut").commit(branch="cut")
    assert again.index().keep.tolist() == [[3, 7], [3, 7]]


@pytest.mark.parametrize("text", ["", ":", "5", "a:b", "1:2:3", "1.5:2"])
def test_frames_that_are_none(store: Store, text: str) -> None:
    with pytest.raises(UsageError, match="START:STOP"):
        kept(store, frames=text)


# -- balance -----------------------------------------------------------------------------------


def test_balance_takes_equally_many_of_each_value(store: Store) -> None:
    chosen = apply(store.version(), Curation(balance="task"))
    counts = {row["task"]: row["kept"] for row in task_rows(chosen)}
    assert counts == {"push": 2, "reach": 2, None: 2}
    one = kept(store, balance="task", each=1)
    assert len(one) == 3
    assert set(one) <= set(chosen.episodes()["episode_id"].to_pylist())
    with pytest.raises(UsageError, match="at least 3 episodes of every task, came 2 of None"):
        kept(store, balance="task", each=3)
    drawn = {tuple(kept(store, balance="task", seed=seed)) for seed in range(8)}
    assert len(drawn) > 1
    # Growth of one group moves nothing while the rarest decides.
    store.append([episode("f1", 3, task="push")])
    assert len(set(kept(store, balance="task")) & set(ids_of(store.version("main:1")))) >= 5


# -- all together ------------------------------------------------------------------------------


def test_steps_come_in_order_and_are_on_record(store: Store) -> None:
    copies(store, dict.fromkeys(names(10)) | {"e9": "e6"})
    wanted = Curation(
        where="length > 0",
        dedupe=True,
        frames="1:",
        top=3,
        by="length",
        per="task",
        exclude=("e8", "elsewhere"),
        balance="task",
        each=1,
        seed=3,
        unscored="drop",
    )
    selection = apply(store.version(), wanted)
    told = selection.derivation
    assert dict(told.dropped) == {
        **{"where": 1, "dedupe": 1, "frames": 1, "top": 0, "exclude": 1},
        "balance": 3,
    }
    assert sum(told.dropped.values()) + len(selection) == 10
    made = selection.commit(branch="few")
    kept_on_record = made.state.derivation
    assert kept_on_record is not None
    assert kept_on_record.score_sets == {"duplicate_of": "s1"}
    again = refresh(store, "few")
    assert again.derivation == kept_on_record
    np.testing.assert_array_equal(again.mask, selection.mask)
    store.append([episode("g", 30, task="lift")])
    copies(store, {"g": None})
    grown = refresh(store, "few")
    assert "g" in grown.episodes()["episode_id"].to_pylist()
    grown.commit(branch="few")
    assert ids_of(store.revert("few:1")) == ids_of(made)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({}, "--where"),
        ({"seed": 4, "unscored": "keep"}, "--where"),
        ({"top": 3}, "--by COLUMN"),
        ({"by": "length"}, "--top N"),
        ({"per": "task", "where": "length > 1"}, "--per COLUMN"),
        ({"each": 2, "where": "length > 1"}, "--balance"),
        ({"top": 3, "by": "task"}, "numbers"),
        ({"top": 3, "by": "length", "per": "episode_return"}, "group by"),
        ({"where": "length > 1", "unscored": "maybe"}, "keep or drop"),
        ({"where": "length > 100"}, "loosen"),
        ({"where": "length > 100", "balance": "task"}, "loosen"),
    ],
)
def test_curations_that_do_not_fit(store: Store, wanted, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        kept(store, **wanted)


# -- a look ------------------------------------------------------------------------------------


def test_a_preview_says_what_each_part_leaves_out(store: Store, tmp_path: Path) -> None:
    where = "length > 3 and task == 'push' and (length < 9 or length > 50)"
    selection = apply(store.version(), Curation(where=where))
    assert clause_rows(selection) == [
        {"clause": "length > 3", "dropped": 4, "alone": 3},
        {"clause": "task == 'push'", "dropped": 5, "alone": 4},
        {"clause": "length < 9 or length > 50", "dropped": 1, "alone": 1},
    ]
    told = preview(selection)
    assert (told["episodes"], told["of"], told["steps"], told["of_steps"]) == (1, 10, 6, 45)
    assert told["dropped"] == {"where": 9}
    assert told["tasks"][0] == {"task": "push", "kept": 1, "of": 5}
    cut = preview(apply(store.version(), Curation(frames="2:4")))
    assert cut["steps"] == 1 + 2 * 6
    assert store.version().number == 1


def test_a_plot_is_a_picture_or_a_page(store: Store, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    hostile = episode("h", 4, task="<script>alert(1)</script>")
    store.append([hostile])
    selection = apply(store.version(), Curation(where="length > 2"))
    for suffix, start in ((".png", b"\x89PNG"), (".pdf", b"%PDF"), (".html", b"<!doctype")):
        write_plot(selection, str(tmp_path / f"plot{suffix}"))
        assert (tmp_path / f"plot{suffix}").read_bytes().startswith(start)
    assert b"<script>" not in (tmp_path / "plot.html").read_bytes()
    assert len(selection.plot().axes) == 1
    with pytest.raises(UsageError, match="png"):
        write_plot(selection, str(tmp_path / "plot.txt"))
