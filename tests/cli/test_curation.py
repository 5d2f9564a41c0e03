"""`curate`, `annotate` and `suggest` on the command line."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from pipeline.cli.main import main
from pipeline.store.store import Store, open_store
from tests.episodes import write_d4rl
from tests.store.makers import episode, names, score


@pytest.fixture
def penstock(capfd):
    """Runs a command in this process; returns exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Sixty episodes of two tasks; those of low divergence succeed."""
    made = open_store(tmp_path / "s", create=True)
    rng = np.random.default_rng(0)
    bad = rng.random(60)
    made.append(
        episode(f"e{n}", 3 + n % 5, task=f"t{n % 2}", success=bool(bad[n] < 0.5)) for n in range(60)
    )
    score(made, dict(zip(names(60), bad.tolist(), strict=True)))
    return made


def as_json(result: tuple[int, str, str]) -> dict:
    code, out, err = result
    assert code == 0, err
    assert out.count("\n") == 1
    return json.loads(out)


def test_curate_by_every_step_then_refresh_and_undo(store, penstock):
    where = "length >= quantile(length, 0.5, task)"
    made = as_json(
        penstock(
            *("curate", store.url, "--where", where, "--frames", "1:4", "--top", 10),
            *("--by", "-action_divergence", "--per", "task", "--balance", "task", "--each", 5),
            *("--seed", 2, "--branch", "few", "--json"),
        )
    )
    assert made["episodes"] == 10
    told = made["derivation"]
    assert list(told["dropped"]) == ["where", "frames", "top", "balance"]
    assert told["thresholds"] == {"quantile(length, 0.5, task)": {"t0": 5.0, "t1": 5.0}}
    shown = as_json(penstock("show", f"{store.url}@few", "--json"))
    assert shown["derivation"]["balance"] == "task"
    log = as_json(penstock("log", f"{store.url}@few", "--json"))["versions"]
    assert "top 10 by -action_divergence per task" in log[0]["message"]
    again = as_json(penstock("curate", f"{store.url}@few", "--refresh", "--json"))
    assert (again["episodes"], again["number"]) == (10, 2)
    assert as_json(penstock("revert", f"{store.url}@few:1", "--json"))["number"] == 3
    rows = as_json(penstock("episodes", f"{store.url}@few", "--json"))["episodes"]
    assert {(row["keep_start"], row["keep_stop"]) for row in rows} == {(1, 4)}


def test_preview_tells_and_draws_and_commits_nothing(store, penstock, tmp_path):
    pytest.importorskip("matplotlib")
    where = ("--where", "success and task == 't1'")
    plot = tmp_path / "p.html"
    told = as_json(penstock("curate", store.url, *where, "--preview", "--plot", plot, "--json"))
    assert [row["clause"] for row in told["clauses"]] == ["success", "task == 't1'"]
    assert told["dropped"]["where"] == told["of"] - told["episodes"]
    assert {row["task"]: row["of"] for row in told["tasks"]} == {"t0": 30, "t1": 30}
    assert plot.read_bytes().startswith(b"<!doctype html>")
    code, out, _ = penstock("curate", store.url, *where, "--preview")
    assert code == 0
    assert "alone" in out
    assert "nothing committed" in out
    assert set(store.branches()) == {"main"}


def test_annotate_from_a_file_then_filter_then_undo(store, penstock, tmp_path):
    (tmp_path / "l.csv").write_text("episode_id,grade\ne1,5\ne2,3\n")
    made = as_json(penstock("annotate", store.url, "--csv", tmp_path / "l.csv", "--json"))
    assert (made["columns"], made["episodes"], made["number"]) == (["grade"], 2, 3)
    rows = as_json(penstock("episodes", store.url, "--where", "grade > 4", "--json"))["episodes"]
    assert [row["episode_id"] for row in rows] == ["e1"]
    assert penstock("revert", f"{store.url}@main:2")[0] == 0
    code, out, _ = penstock("episodes", store.url, "--where", "grade > 4", "--json")
    assert (code, json.loads(out)["error"]["kind"]) == (2, "unknown_name")
    (tmp_path / "l.csv").write_text("episode_id,grade\nnobody,5\n")
    code, out, err = penstock("annotate", store.url, "--csv", tmp_path / "l.csv", "--json")
    assert (code, json.loads(out)["error"]["kind"]) == (2, "not_found")
    assert "'nobody'" in err


def sides(store: Store) -> dict[str, str]:
    table = store.version().episodes()
    return dict(zip(table["episode_id"].to_pylist(), table["split"].to_pylist(), strict=True))


def test_a_split_grows_with_the_data(store, penstock):
    command = ("annotate", store.url, "--split", "train=0.8,val=0.2", "--seed", 7, "--json")
    made = as_json(penstock(*command))
    assert sum(made["counts"].values()) == 60
    before = sides(store)
    assert set(before.values()) == {"train", "val"}
    store.append([episode(f"f{n}", 4) for n in range(20)])
    again = as_json(penstock(*command))
    assert sum(again["counts"].values()) == 80
    assert before.items() <= sides(store).items()
    train = as_json(penstock("episodes", store.url, "--where", "split == 'train'", "--json"))
    assert len(train["episodes"]) == again["counts"]["train"]
    for wrong in ((), ("--csv", "x", "--split", "a=1"), ("--split", "a=0.5")):
        assert penstock("annotate", store.url, *wrong)[0] == 2


def test_suggest_proposes_a_command_that_runs(store, penstock):
    told = as_json(penstock("suggest", store.url, "--json"))
    assert told["target"] == "success"
    assert told["proposed"].startswith("action_divergence <= quantile(action_divergence, ")
    assert told["tasks"] == 2
    assert told["candidates"][0]["beats_random"]
    assert store.version().number == 2, "suggest applies nothing"
    command = shlex.split(told["command"])
    assert command[0] == "penstock"
    made = as_json(penstock(*command[1:], "--json"))
    assert made["episodes"] == told["candidates"][0]["kept"]
    code, out, _ = penstock("suggest", store.url)
    assert code == 0
    assert told["sentence"] in out


def test_the_page_on_curation_keeps_its_word(store, penstock, tmp_path, monkeypatch):
    """Every command of docs/curation.md runs, in order."""
    Path(store.url).rename(tmp_path / "store")
    made = open_store(tmp_path / "store")
    score(made, dict.fromkeys(names(60)), metric="duplicate_of")
    (tmp_path / "labels.csv").write_text("episode_id,grade\ne1,5\n")
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).resolve().parents[2] / "docs" / "curation.md"
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines() if line]
    assert len(commands) > 10
    for command in commands:
        code, _, err = penstock(*shlex.split(command)[1:])
        assert code == 0, f"{command}: {err}"
    assert len(open_store(tmp_path / "store").version("best")) == 20


@pytest.mark.slow
def test_the_copies_in_a_real_sample_are_found_and_left_out(shared_data, tmp_path, penstock):
    """Half of this published sample of Bridge is the other half again, under other names."""
    source = shared_data / "public/bridge_v2_sample"
    code, out, err = penstock("ingest", source, "--into", tmp_path / "b", "--json")
    assert code == 0, err
    assert json.loads(out)["episodes_added"] == 50
    code, out, err = penstock("curate", tmp_path / "b", "--dedupe", "--branch", "x", "--json")
    assert (code, json.loads(out)["error"]["kind"]) == (2, "unscored")
    as_json(penstock("measure", tmp_path / "b", "--metrics", "duplicate_of", "--json"))
    made = as_json(penstock("curate", tmp_path / "b", "--dedupe", "--branch", "one", "--json"))
    assert (made["episodes"], made["derivation"]["dropped"]) == (25, {"dedupe": 25})
    split = as_json(penstock("annotate", tmp_path / "b", "--split", "train=0.6,val=0.4", "--json"))
    assert set(split["counts"]) == {"train", "val"}
    rows = open_store(tmp_path / "b").version().episodes().to_pylist()
    side = {row["episode_id"]: row["split"] for row in rows}
    copies = [row for row in rows if row["duplicate_of"] is not None]
    assert len(copies) == 25
    assert all(row["split"] == side[row["duplicate_of"]] for row in copies)


def test_weights_become_a_label(penstock, tmp_path):
    store = tmp_path / "store"
    penstock("ingest", write_d4rl(tmp_path / "a.hdf5", [9, 9, 9, 9]), "--into", store)
    code, out, err = penstock("annotate", store, "--weights", "returns", "--json")
    assert code == 0
    assert json.loads(out)["columns"] == ["weight"]
    assert "effective of 4 episodes" in err
    _, out, _ = penstock("episodes", store, "--columns", "episode_return,weight", "--json")
    rows = sorted((row["episode_return"], row["weight"]) for row in json.loads(out)["episodes"])
    assert [weight for _, weight in rows] == sorted(weight for _, weight in rows)
    code, _, err = penstock("annotate", store, "--weights", "return")
    assert code == 2
    assert "returns" in err
    assert penstock("annotate", store)[0] == 2


def test_metrics_take_named_features(penstock, tmp_path):
    store = tmp_path / "store"
    penstock("ingest", write_d4rl(tmp_path / "a.hdf5", [40] * 6), "--into", store)
    features = ("--relative-actions", "--angles", "observations:1", "--return-random", "-9")
    code, _, _ = penstock("measure", store, "--metrics", "action_divergence", *features)
    assert code == 0
    assert penstock("measure", store, "--embedding", "observations")[0] == 2


def test_readings_of_steps_are_kept_beside_the_scores(penstock, tmp_path):
    store = tmp_path / "store"
    penstock("ingest", write_d4rl(tmp_path / "a.hdf5", [40] * 6), "--into", store)
    names = "action_divergence,idle"
    code, out, _ = penstock("measure", store, "--steps", names, "--json")
    assert code == 0
    version = open_store(store).version()
    assert version.number == json.loads(out)["number"]
    scores = version.episodes(columns=["episode_id", "action_divergence", "idle_fraction"])
    for row in scores.to_pylist():
        extras = version.episode(row["episode_id"]).extras
        assert np.nanmean(extras["action_divergence"]) == pytest.approx(row["action_divergence"])
        assert np.mean(extras["idle"]) == pytest.approx(row["idle_fraction"])
    code, _, err = penstock("measure", store, "--steps", "action_divergenc")
    assert code == 2
    assert "'action_divergence'" in err
