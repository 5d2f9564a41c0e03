"""Ablations on a small world: paired, resumable, told in words, run again from their document."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learners.ablate import DOCUMENT, AblateConfig, ablate, again
from learners.ablation_report import markdown
from learners.checkpoint import load_checkpoint
from learners.comparison import Arm, Comparison, Size, compare
from learners.data import Pinned
from learners.evaluate import EVALUATION_SEED, Evaluation
from learners.judge import RECORD, Judged
from learners.plots import plot_comparison
from pipeline.cli.main import main
from pipeline.store.store import Store, open_store
from schemas.errors import ConfigError, UnknownNameError, UsageError
from tests.learners.homing import ENVIRONMENT, demonstrations

LETTERS = "ABCDEF"


@pytest.fixture
def store(tmp_path: Path, homing: None) -> Store:
    made = open_store(tmp_path / "store", create=True)
    made.append(demonstrations(30))
    made.version().where("episode_return > 0").commit("good")
    return made


def _config(store: Store, out: Path, **changes: Any) -> AblateConfig:
    given: dict[str, Any] = {
        "algo": "bc",
        "data": (store.url, f"{store.url}@good"),
        "environment": ENVIRONMENT,
        "out": str(out),
        "seeds": 2,
        "steps": 5,
        "episodes": 3,
        "batch_size": 32,
        "settings": {"hidden": (8, 8)},
    }
    return AblateConfig(**{**given, **changes})


def test_pairs_differ_by_their_data_alone(tmp_path: Path, store: Store) -> None:
    store.tag("same", store.version())
    data = (store.url, f"{store.url}@same", f"{store.url}@good")
    found = ablate(_config(store, tmp_path / "out", data=data))
    same, good = found.differences
    assert (same.returns.mean, same.returns.interval) == (0.0, (0.0, 0.0))
    assert same.verdict == "unclear"
    first, second = (load_checkpoint(tmp_path / "out" / arm / "seed-1") for arm in "AB")
    for name, tensor in first.tensors.items():
        assert torch.equal(tensor, second.tensors[name]), name
    assert good.returns.mean != 0.0
    (seeds,) = {tuple(one.evaluation.seed for one in arm.judged) for arm in found.arms}
    assert seeds == (EVALUATION_SEED, EVALUATION_SEED)
    sizes = [arm.size.episodes for arm in found.arms]
    assert sizes[0] == sizes[1] == 30
    assert (good.removed, good.added) == (30 - sizes[2], 0)


def test_what_is_there_is_taken_over_and_versions_stay(tmp_path: Path, store: Store) -> None:
    said: list[str] = []

    def told(stage: str, done: int, total: int, values: Any) -> None:
        said.append(stage)
        if stage == "train B" and is_cut:
            raise InterruptedError

    is_cut = True
    with pytest.raises(InterruptedError):
        ablate(_config(store, tmp_path / "cut"), told)
    store.append(demonstrations(5, first=40))  # main moves on; the ablation does not
    record = (tmp_path / "cut" / "A" / "seed-0" / RECORD).stat().st_mtime_ns
    is_cut = False
    said.clear()
    found = ablate(_config(store, tmp_path / "cut"), told)
    assert "train B" in said
    assert "train A" not in said
    assert (tmp_path / "cut" / "A" / "seed-0" / RECORD).stat().st_mtime_ns == record
    assert found.arms[0].size.episodes == 30
    more = ablate(_config(store, tmp_path / "cut", seeds=3), told)
    assert more.differences[0].returns.seeds[:2] == found.differences[0].returns.seeds
    with pytest.raises(ConfigError, match="steps = 5"):
        ablate(_config(store, tmp_path / "cut", steps=6))


def test_the_document_is_enough_to_run_it_again(tmp_path: Path, store: Store) -> None:
    first = ablate(_config(store, tmp_path / "one"))
    store.append(demonstrations(5, first=40))
    config = again(tmp_path / "one" / DOCUMENT, {"out": str(tmp_path / "two")})
    second = ablate(config)
    ours, theirs = first.document(), second.document()
    assert ours["differences"] == theirs["differences"]
    assert [arm["version"] for arm in ours["versions"]] == [
        arm["version"] for arm in theirs["versions"]
    ]


@pytest.mark.parametrize("change", [{"environment": "Homing-v9"}, {"algo": "bcc"}])
def test_unknown_names_are_said_before_anything_is_written(
    tmp_path: Path, store: Store, change: dict[str, str]
) -> None:
    with pytest.raises(UnknownNameError):
        ablate(_config(store, tmp_path / "out", **change))
    assert not (tmp_path / "out").exists()


def test_weights_are_refused(tmp_path: Path, store: Store) -> None:
    with pytest.raises(ConfigError, match="without weights"):
        ablate(_config(store, tmp_path / "out", data=(store.url, f"{store.url}@good=2")))


# -- differences and their words -----------------------------------------------------------------


def _arm(letter: str, ids: str, returns: np.ndarray, successes: np.ndarray | None = None) -> Arm:
    judged = tuple(
        Judged(
            f"{letter}/seed-{seed}",
            "bc",
            5,
            (),
            "",
            Evaluation(
                "Hopper-v5",
                tuple(row.tolist()),
                (1,) * len(row),
                None,
                (0.0, 0.0),
                None if successes is None else tuple(map(bool, successes[seed])),
            ),
        )
        for seed, row in enumerate(returns)
    )
    return Arm(letter, f"store@{letter}", Pinned("store", letter), Size(frozenset(ids), 9), judged)


def _compared(shift: float, ids: str = "abc", spread: float = 3.0) -> Comparison:
    """Six seeds, whose scores differ much, and differences little."""
    random = np.random.default_rng(0)
    base = random.normal(100.0, 50.0, (6, 1)) + random.normal(size=(6, 10))
    other = base + shift + spread * random.normal(size=(6, 1)) / 3
    return compare([_arm("A", "abcd", base), _arm("B", ids, other)])


def test_pairing_takes_out_what_seeds_have_in_common() -> None:
    found = _compared(5.0)
    low, high = found.differences[0].returns.interval
    assert 0 < low < 5.0 < high < 10.0
    alone = found.arms[0].score.returns.interval
    assert alone[1] - alone[0] > 5 * (high - low)


@pytest.mark.parametrize(
    ("shift", "ids", "question", "answer"),
    [
        (9.0, "abc", "Did removing 1 of 4 episodes help?", ": yes, at 95 %."),
        (-9.0, "abcdef", "Did adding 2 episodes to 4 help?", ": no, it hurt, at 95 %."),
        (0.1, "abce", "from 4 to 4 episodes (1 removed, 1 added) help?", ": cannot tell."),
        (0.0, "abcd", "Do the same 4 episodes teach the same?", ": cannot tell."),
    ],
)
def test_the_answer_is_what_the_interval_says(
    shift: float, ids: str, question: str, answer: str
) -> None:
    found = _compared(shift, ids)
    (sentence,) = found.sentences()
    assert question in sentence
    assert sentence.endswith(answer)
    (told,) = found.document()["differences"]
    low, high = told["interval"]
    digits = 1 if high - low >= 10 else 2
    assert f"[{low:.{digits}f}, {high:.{digits}f}] over 6 seeds" in sentence
    assert told["verdict"] == {"y": "better", "n": "worse", "c": "unclear"}[answer[2]]


def test_a_figure_has_the_digits_that_its_interval_is_worth() -> None:
    tiny = np.full((5, 4), 1e-16)
    tiny[0] = -30.0
    tiny[1] = 30.0
    found = compare([_arm("A", "a", np.zeros((5, 4))), _arm("B", "a", tiny)])
    assert "B - A = 0.0 of return [-" in found.sentences()[0]
    same = compare([_arm("A", "a", tiny), _arm("B", "a", tiny)])
    assert "B - A = 0.0 of return [0.0, 0.0] over 5 seeds: cannot tell." in same.sentences()[0]


def test_success_is_judged_where_it_is_known() -> None:
    random = np.random.default_rng(1)
    returns = random.normal(size=(5, 40))
    rates = (0.2, 0.8)
    arms = [
        _arm(letter, "ab", returns, random.uniform(size=(5, 40)) < rate)
        for letter, rate in zip("AB", rates, strict=True)
    ]
    found = compare(arms)
    (one,) = found.differences
    assert (one.score, one.verdict) == ("success", "better")
    assert 50 < 100 * one.found.mean < 70
    assert "points of success" in found.sentences()[0]
    assert one.normalized is not None
    assert one.returns.mean == 0.0


def test_a_page_has_a_row_for_each_version(tmp_path: Path) -> None:
    config = AblateConfig(
        algo="bc", data=("s@A", "s@B"), environment="Hopper-v5", out=str(tmp_path)
    )
    found = _compared(9.0)
    page = markdown(config, found, "ablation.svg")
    table = [line for line in page.splitlines() if line.startswith(("| A |", "| B |"))]
    assert [line.count("|") for line in table] == [9, 9, 4, 4]
    assert found.sentences()[0] in page
    assert "(ablation.svg)" in page


def test_pairs_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("a.svg", "b.png"):
        plot_comparison(_compared(2.0), tmp_path / name)
    text = (tmp_path / "a.svg").read_text()
    assert "B - A" in text
    assert "4 episodes" in text
    again_drawn = tmp_path / "c.svg"
    plot_comparison(_compared(2.0), again_drawn)
    assert again_drawn.read_text() == text
    with pytest.raises(UsageError, match=r"\.svg, \.png"):
        plot_comparison(_compared(2.0), tmp_path / "a.jpeg")


# -- from the command line -----------------------------------------------------------------------


def test_the_command_tells_and_leaves_a_report(
    tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    asked = ["ablate", "--data", store.url, "--data", f"{store.url}@good", "--algo", "bc"]
    small = ["--steps", "3", "--episodes", "2", "--seeds", "2", "--set", "hidden=[8,8]"]
    assert main([*asked, "--env", ENVIRONMENT, *small, "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    (difference,) = told["differences"]
    assert difference["score"] == "success"
    assert len(told["versions"][0]["runs"]) == 2
    assert difference["sentence"] in (out / "ablation.md").read_text()
    assert json.loads((out / DOCUMENT).read_bytes())["result"]["differences"] == told["differences"]
    assert (out / "ablation.svg").exists()
    assert main(["ablate", str(out / DOCUMENT), "--out", str(tmp_path / "two")]) == 0
    said = capsys.readouterr().out
    assert difference["sentence"] in said
    assert "data" in said.splitlines()[0]
    assert main(["ablate", str(out / DOCUMENT), "--out", "x", "--steps", "7"]) == 2
    assert "steps as well, which the document says" in capsys.readouterr().err
    assert main(["ablate", "--data", store.url, "--algo", "bc", "--out", "x"]) == 2
    assert main(["ablate", "--algo", "bc", "--env", ENVIRONMENT, "--out", "x"]) == 2


def test_runs_are_drawn_with_seeds_together(
    tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    ablate(_config(store, out, seeds=3))
    picture = tmp_path / "curves.svg"
    assert main(["plot", str(out / "A"), str(out / "B"), "--out", str(picture), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["runs"]) == 6
    assert told["columns"] == ["policy_loss"]
    text = picture.read_text()
    assert "A (bc, 3 seeds)" in text
    assert "B (bc, 3 seeds)" in text
    assert main(["plot", str(out / "A"), "--out", "curves.gif"]) == 2
    (file,) = (out / "A" / "seed-0" / "checkpoints").iterdir()
    assert main(["plot", str(file), "--out", str(picture)]) == 2


def test_a_run_that_was_lost_is_made_again_as_it_was(tmp_path: Path, store: Store) -> None:
    config = _config(store, tmp_path / "out")
    first = ablate(config)
    shutil.rmtree(tmp_path / "out" / "B" / "seed-1")
    second = ablate(config)
    ours, theirs = (found.differences[0].returns.seeds for found in (first, second))
    assert ours == pytest.approx(theirs, abs=1e-3)  # alone, sums are made in another order
    assert (tmp_path / "out" / "B" / "seed-1" / RECORD).exists()
