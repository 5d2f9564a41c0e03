from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.cli.main import main
from pipeline.jobs.validate import validate
from schemas.errors import NotFoundError
from schemas.problems import ADVICE
from tests.connectors.makers import d4rl_arrays, demo, write_hdf5, write_robomimic

ROOT = Path(__file__).parents[2]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, object]]:
    code = main(["validate", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_healthy_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = run(capsys, write_hdf5(tmp_path / "a.hdf5", d4rl_arrays()))
    assert (code, said["problems"]) == (0, [])
    source = said["source"]
    assert isinstance(source, dict)
    assert (source["format"], source["episodes"], source["steps"]) == ("d4rl", 3, 14)


def test_every_problem_of_every_episode_has_a_place_a_code_and_advice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = d4rl_arrays() | {"next_observations": None}
    arrays.pop("next_observations")
    arrays["rewards"][2] = np.inf
    arrays["actions"][3] = np.nan
    arrays["observations"][9] = np.nan
    code, said = run(capsys, write_hdf5(tmp_path / "a.hdf5", arrays))
    assert code == 3
    problems = said["problems"]
    assert isinstance(problems, list)
    assert [(p["where"], p["code"]) for p in problems] == [
        ("rows 0:5", "nan"),
        ("rows 0:5", "inf"),
        ("rows 6:14", "nan"),
    ]
    for problem in problems:
        assert set(problem) == {"source", "where", "code", "message", "advice"}
        assert problem["advice"] == ADVICE[problem["code"]]


def test_a_source_that_cannot_be_trusted_is_a_problem_beside_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write_hdf5(tmp_path / "a.hdf5", d4rl_arrays())
    cut = Path(write_hdf5(tmp_path / "b.hdf5", d4rl_arrays()))
    cut.write_bytes(cut.read_bytes()[:-9])
    bad = write_robomimic(tmp_path / "c.hdf5", {"demo_0": demo(rewards=np.zeros(3))})
    code, said = run(capsys, str(tmp_path))
    assert code == 6
    assert [s["where"] for s in said["sources"]] == [good, bad]  # type: ignore[attr-defined]
    problems = said["problems"]
    assert isinstance(problems, list)
    assert [(p["source"], p["code"]) for p in problems] == [
        (str(cut), "source_untrusted"),
        (bad, "length_mismatch"),
    ]
    assert str(cut) in problems[0]["message"]


def test_people_get_a_table_and_advice_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = d4rl_arrays()
    arrays["rewards"][[2, 9]] = np.nan
    assert main(["validate", write_hdf5(tmp_path / "a.hdf5", arrays)]) == 3
    said = capsys.readouterr().out
    assert said.count(ADVICE["nan"]) == 1
    assert "2 problems" in said


def test_what_is_not_there_is_a_usage_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", str(tmp_path / "absent.hdf5")]) == 2
    assert main(["validate", str(tmp_path / "*.hdf5")]) == 2
    assert "nothing matches" in capsys.readouterr().err


def test_progress_is_told(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    listen: Callable[[int, int], None] = lambda *done: steps.append(done)  # noqa: E731
    validate([write_hdf5(tmp_path / "a.hdf5", d4rl_arrays())], listener=listen)
    assert steps == [(1, 5), (1, 1), (1, 8)]


def test_a_folder_of_files_and_a_pattern_are_several_sources(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    for name in ("b.h5", "a.hdf5"):
        write_hdf5(folder / name, d4rl_arrays())
    for text in (str(folder), str(folder / "*"), str(tmp_path / "**" / "?.h*5")):
        found = [Path(listing.where).name for listing in validate([text]).listings]
        assert found == ["a.hdf5", "b.h5"]
    with pytest.raises(NotFoundError):
        validate([str(tmp_path / "*.parquet")])


def test_a_format_that_is_named_is_not_guessed(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["x"] = 1
    (problem,) = validate([f"d4rl:{tmp_path / 'a.hdf5'}"]).problems
    assert problem.code == "source_untrusted"
    assert "D4RL arrays" in problem.message


def codes_in_use() -> set[str]:
    """Every code that production code gives an episode's fault."""
    found = set()
    for folder in ("schemas", "connectors", "pipeline"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "EpisodeError":
                    values = [k.value for k in node.keywords if k.arg == "code"]
                    found |= {v.value for v in values if isinstance(v, ast.Constant)}
    return found


def test_every_code_has_advice() -> None:
    used = codes_in_use()
    assert len(used) > 4
    assert used <= set(ADVICE)
