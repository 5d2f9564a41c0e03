"""The command line: what it prints, what it exits with, and that errors are one sentence."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from pipeline.cli.main import main
from tests.episodes import write_d4rl

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def penstock(capfd):
    """Runs a command in this process; returns exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture
def loaded(tmp_path, penstock):
    """A store of six episodes, ingested on the command line."""
    source = write_d4rl(tmp_path / "a.hdf5", [30, 40, 50, 60, 70, 80])
    code, out, _ = penstock("ingest", source, "--into", tmp_path / "s", "--json")
    assert code == 0
    assert json.loads(out)["episodes_added"] == 6
    return tmp_path / "s"


def as_json(result: tuple[int, str, str]) -> dict:
    code, out, err = result
    assert code == 0, err
    return json.loads(out)


def test_ingest_prints_one_json_object_with_the_promised_keys(tmp_path, penstock):
    source = write_d4rl(tmp_path / "a.hdf5", [3, 4])
    code, out, _ = penstock("ingest", source, "--into", tmp_path / "s", "--json")
    assert code == 0
    assert out.count("\n") == 1
    promised = {
        *("version", "number", "branch", "seconds", "reasons", "steps_added", "bytes_written"),
        *("episodes_added", "episodes_known", "episodes_changed", "episodes_replaced"),
        "episodes_quarantined",
    }
    assert promised <= set(json.loads(out))


def test_quarantined_episodes_exit_with_3_every_time(tmp_path, penstock):
    rewards = np.zeros(7, np.float32)
    rewards[1] = np.nan
    source = write_d4rl(tmp_path / "a.hdf5", [3, 4], rewards=rewards)
    for added in (1, 0):
        code, out, _ = penstock("ingest", source, "--into", tmp_path / "s", "--json")
        assert (code, json.loads(out)["episodes_added"]) == (3, added)
    assert len(as_json(penstock("quarantine", tmp_path / "s", "--json"))["episodes"]) == 1


def test_log_show_diff_and_names(loaded, penstock):
    assert as_json(penstock("tag", loaded, "v1", "--json"))["tags"]["v1"]["number"] == 1
    shown = as_json(penstock("show", f"{loaded}@v1", "--json"))
    assert (shown["episodes"], shown["steps"], shown["tags"]) == (6, 330, ["v1"])
    assert shown["specs"]["default"]["fields"]["actions"]["shape"] == [2]
    where = ("curate", loaded, "--where", "length > 50", "--branch", "long", "--json")
    curated = as_json(penstock(*where))
    assert curated["episodes"] == 3
    changes = as_json(penstock("diff", loaded, "v1", "long", "--json"))
    assert (len(changes["removed"]), changes["added"]) == (3, [])
    assert len(as_json(penstock("log", f"{loaded}@long", "--json"))["versions"]) == 2
    names = as_json(penstock("branch", loaded, "--list", "--json"))["branches"]
    assert set(names) == {"main", "long"}
    assert penstock("branch", loaded, "--delete", "long")[0] == 0
    assert set(as_json(penstock("branch", loaded, "--list", "--json"))["branches"]) == {"main"}


def test_episodes_filters_sorts_limits_and_writes_csv(loaded, penstock):
    rows = as_json(
        penstock("episodes", loaded, "--where", "length >= 40", "--sort=-length", "--json")
    )["episodes"]
    assert [row["length"] for row in rows] == [80, 70, 60, 50, 40]
    code, out, _ = penstock("episodes", loaded, "--columns", "episode_id,length", "--csv")
    assert code == 0
    assert len(list(csv.DictReader(io.StringIO(out)))) == 6
    code, out, _ = penstock("episodes", loaded, "--limit", "2")
    assert code == 0
    assert "2 of 6 episodes" in out


@pytest.mark.parametrize("form", [(), ("--csv",), ("--json",)], ids=str)
def test_a_column_asked_for_twice_is_there_once(loaded, penstock, form):
    code, out, _ = penstock("episodes", loaded, "--columns", "length,success,length", *form)
    assert code == 0
    first = out.splitlines()[0]
    assert (first.count("length"), first.count("success")) in ((1, 1), (6, 6))


def test_query_and_stats(loaded, penstock):
    sql = "SELECT count(*) AS n, max(length) AS longest FROM episodes"
    assert as_json(penstock("query", loaded, sql, "--json"))["rows"] == [{"n": 6, "longest": 80}]
    fields = as_json(penstock("stats", loaded, "--json"))["fields"]
    assert fields["actions"]["count"] == 330
    assert len(fields["observations"]["mean"]) == 4


def test_measure_then_filter_by_score_then_refresh(tmp_path, loaded, penstock):
    code, out, _ = penstock(
        "curate", loaded, "--where", "action_divergence < 1", "--branch", "x", "--json"
    )
    assert (code, json.loads(out)["error"]["kind"]) == (2, "unscored")
    measured = as_json(penstock("measure", loaded, "--json"))
    assert measured["episodes_scored"] == 6
    assert "action_divergence" in measured["metrics"]
    filtered = "action_divergence <= quantile(action_divergence, 0.5)"
    as_json(penstock("curate", loaded, "--where", filtered, "--branch", "half", "--json"))
    shown = as_json(penstock("show", f"{loaded}@half", "--json"))
    assert shown["episodes"] == 3
    assert shown["derivation"]["resolved"] != filtered
    more = write_d4rl(tmp_path / "b.hdf5", [55, 65], seed=1)
    assert penstock("ingest", more, "--into", loaded)[0] == 0
    code, out, _ = penstock("curate", f"{loaded}@half", "--refresh", "--json")
    assert json.loads(out)["error"]["kind"] == "unscored"  # two episodes have no score yet
    again = as_json(penstock("measure", loaded, "--json"))
    assert (again["episodes_scored"], again["episodes_reused"]) == (2, 6)
    refreshed = as_json(penstock("curate", f"{loaded}@half", "--refresh", "--json"))
    assert (refreshed["branch"], refreshed["episodes"], refreshed["number"]) == ("half", 4, 2)


def test_curate_by_top_and_exclusions_and_preview(tmp_path, loaded, penstock):
    ids = [row["episode_id"] for row in as_json(penstock("episodes", loaded, "--json"))["episodes"]]
    (tmp_path / "out.txt").write_text("\n".join(ids[-1:]))
    top = as_json(
        penstock(
            *("curate", loaded, "--top", 3, "--by", "length"),
            *("--exclude", tmp_path / "out.txt", "--branch", "top", "--json"),
        )
    )
    assert top["episodes"] == 2
    preview = as_json(penstock("curate", loaded, "--where", "length < 50", "--preview", "--json"))
    assert (preview["episodes"], preview["of"]) == (2, 6)


def test_export_opens_as_a_source_again(tmp_path, loaded, penstock):
    out = tmp_path / "again.hdf5"
    assert as_json(penstock("export", loaded, out, "--format", "d4rl", "--json"))["episodes"] == 6
    report = as_json(penstock("ingest", out, "--into", loaded, "--json"))
    assert (report["episodes_added"], report["episodes_known"]) == (0, 6)


def test_export_options_say_how_to_write(tmp_path, loaded, penstock):
    out = tmp_path / "steps"
    command = ("export", loaded, out, "--format", "replay_zarr", "--option")
    assert as_json(penstock(*command, "zarr_format=3", "--json"))["episodes"] == 6
    assert (out / "zarr.json").exists()
    code, said, notes = penstock(*command, "zarr_fromat=3", "--json")
    assert code == 2
    assert "did you mean 'zarr_format'" in json.loads(said)["error"]["message"]
    assert penstock(*command, "zip")[0] == 2
    code, _, notes = penstock(*command[:2], tmp_path / "two", "--format", "replay_zarr")
    assert code == 0
    assert "replay_zarr cannot hold final_observation" in notes
    assert "texts" not in notes  # what is refused is said when it is met


def test_validate_lists_problems_without_a_store(tmp_path, penstock):
    rewards = np.zeros(7, np.float32)
    rewards[5] = np.inf
    source = write_d4rl(tmp_path / "a.hdf5", [3, 4], rewards=rewards)
    code, out, _ = penstock("validate", source, "--json")
    assert code == 3
    assert [problem["code"] for problem in json.loads(out)["problems"]] == ["inf"]


def test_maintenance_commands(loaded, tmp_path, penstock):
    more = write_d4rl(tmp_path / "b.hdf5", [55, 65], seed=1)
    assert penstock("ingest", more, "--into", loaded)[0] == 0
    assert as_json(penstock("compact", loaded, "--all", "--json"))["parts_after"] == 1
    removed = as_json(penstock("remove", loaded, "--where", "length < 50", "--json"))
    assert removed["episodes"] == 6
    ids = [row["episode_id"] for row in as_json(penstock("episodes", loaded, "--json"))["episodes"]]
    (tmp_path / "ids.txt").write_text(ids[0])
    assert as_json(penstock("erase", loaded, "--ids", tmp_path / "ids.txt", "--json")) == {
        "episodes": 1,
        "linked_sources": [],
    }
    assert penstock("gc", loaded, "--erase", "--grace", "0s", "--json")[0] == 0
    assert as_json(penstock("show", loaded, "--json"))["episodes"] == 5
    assert as_json(penstock("doctor", loaded, "--json"))["repaired"] == []
    shard = next(loaded.glob("tails/*.arrow"))
    shard.write_bytes(shard.read_bytes()[:-20])
    assert penstock("doctor", loaded)[0] == 6
    assert penstock("doctor", loaded, "--repair")[0] == 0
    assert penstock("doctor", loaded)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "kind", "says"),
    [
        (["show", "{tmp}/none"], 2, "not_found", "penstock ingest"),
        (["show", "{store}@mian"], 2, "not_found", "main"),
        (["show", "{store}@main:9"], 2, "not_found", "main:9"),
        (["episodes", "{store}", "--where", "lenght > 3"], 2, None, "length"),
        (["episodes", "{store}", "--where", "length >"], 2, "bad_filter", "length >"),
        (["episodes", "{store}", "--columns", "lengt"], 2, "unknown_name", "length"),
        (["query", "{store}", "DROP TABLE episodes"], 2, "usage", "SELECT"),
        (["query", "{store}", "SELECT * FROM '/etc/passwd'"], 2, "usage", "episodes"),
        (["ingest", "{tmp}/none.hdf5", "--into", "{tmp}/x"], 2, "not_found", "none.hdf5"),
        (["ingest", "{tmp}", "--into", "{tmp}/x", "--engin", "beam"], 2, "usage", "--engin"),
        (["ingest", "{tmp}", "--into", "{tmp}/x", "--format", "d4rll"], 2, "unknown_name", "d4rl"),
        (["measure", "{store}", "--metrics", "action_divergense"], 2, "unknown_name", "divergence"),
        (["curate", "{store}", "--branch", "b"], 2, "usage", "--where"),
        (["curate", "{store}", "--where", "length > 1e9", "--branch", "b"], 2, "usage", "loosen"),
        (["curate", "{store}", "--where", "length > 1", "--branch", "../b"], 2, "usage", "branch"),
        (["gc", "{store}", "--grace", "soon"], 2, "usage", "24h"),
        (["nonsense"], 2, "usage", "nonsense"),
        (["tag", "{store}"], 2, "usage", "NAME"),
        (["evaluate", "{tmp}/run", "--env", "Hopper-v5"], 2, "not_found", "run"),
    ],
)
def test_errors_are_one_sentence_with_a_kind(
    loaded, tmp_path, penstock, arguments, code, kind, says
):
    given = [a.format(store=loaded, tmp=tmp_path) for a in arguments]
    came, out, err = penstock(*given, "--json")
    error = json.loads(out)["error"]
    assert came == code
    assert kind is None or error["kind"] == kind
    assert says in f"{error['message']} {error['where']}"
    assert "Traceback" not in err
    assert err.strip().startswith("penstock:")


def test_help_is_quick_to_import_and_names_every_command():
    code = (
        "import sys; from pipeline.cli.main import main; main(['--help']);"
        "print(sorted(set(sys.modules) & "
        "{'numpy', 'pyarrow', 'torch', 'apache_beam', 'zarr', 'pydantic', 'duckdb'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip().endswith("[]")
    assert "ingest" in done.stdout


def test_every_command_has_help_with_an_example(capfd):
    from typer.main import get_command

    from pipeline.cli.main import app

    for name, command in get_command(app).commands.items():
        assert "Example: penstock" in (command.help or ""), name
        assert main([name, "--help"]) == 0
    capfd.readouterr()


def test_the_module_and_the_beam_driver_run_the_same_job(tmp_path):
    source = write_d4rl(tmp_path / "a.hdf5", [3, 4])
    for command in (["-m", "penstock", "ingest"], [str(ROOT / "beam_runner.py")]):
        extra = [] if "penstock" in command else ["--runner", "FnApiRunner"]
        done = subprocess.run(
            [
                sys.executable,
                *command,
                str(source),
                "--into",
                str(tmp_path / "s"),
                *extra,
                "--json",
            ],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["episodes_known"] == 2


def test_a_module_that_hides_ours_is_named(tmp_path):
    (tmp_path / "pipeline.py").write_text("")
    lines = ("import penstock", "try: penstock.open_store", "except ImportError as e: print(e)")
    code = "\n".join(lines)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert str(tmp_path / "pipeline.py") in done.stdout
    assert "rename" in done.stdout


def test_ingest_and_streams_never_load_torch_and_learners_never_load_beam():
    for module, forbidden in (
        ("pipeline.jobs.on_beam", "torch"),
        ("learners.train", "apache_beam"),
    ):
        code = f"import sys, {module}; print({forbidden!r} in sys.modules)"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
        )
        assert done.stdout.strip() == "False", module


def test_runs_are_listed_replayed_and_forgotten(penstock, tmp_path):
    store, run = tmp_path / "store", tmp_path / "run"
    penstock("ingest", write_d4rl(tmp_path / "a.hdf5", [9, 9]), "--into", store)
    penstock("train", "bc", "--data", store, "--steps", 3, "--batch-size", 8, "--out", run)
    code, out, _ = penstock("run", "list", store, "--json")
    ((name, (reference,)),) = json.loads(out)["runs"].items()
    assert code == 0
    assert reference["step"] == 0
    code, out, _ = penstock("replay", run, "--step", 2, "--out", tmp_path / "b.npz", "--json")
    made = json.loads(out)
    assert len(made["indices"]) == len(made["episode_ids"]) == 8
    with np.load(tmp_path / "b.npz") as batch:
        assert batch["indices"].tolist() == made["indices"]
    code, out, _ = penstock("seen", store, made["episode_ids"][0], "--json")
    assert [row["run"] for row in json.loads(out)["runs"]] == [name]
    assert penstock("run", "show", store, name)[0] == 0
    assert penstock("run", "forget", store, name)[0] == 0
    code, _, err = penstock("run", "show", store, name)
    assert code == 2
    assert "Expected a run" in err
    assert penstock("replay", run, "--step", 3)[0] == 2


def test_training_takes_settings_of_streams_and_episodes_are_counted(penstock, tmp_path):
    store, run = tmp_path / "store", tmp_path / "run"
    penstock("ingest", write_d4rl(tmp_path / "a.hdf5", [9, 9]), "--into", store)
    train = ("train", "bc", "--data", store, "--batch-size", 8, "--out", run)
    code, _, err = penstock(*train, "--steps", 4, "--stream", "sampler=shufle")
    assert (code, "did you mean 'shuffle'" in err) == (2, True)
    code, _, err = penstock(*train, "--steps", 4, "--stream", "shuffle")
    assert (code, "--stream KEY=VALUE" in err) == (2, True)
    given = ("sampler=shuffle", "follow=main", "follow_every=2")
    stream = [word for setting in given for word in ("--stream", setting)]
    assert penstock(*train, "--steps", 4, *stream, "--memory", "1 lot")[0] == 2
    assert penstock(*train, "--steps", 4, *stream, "--memory", "64MB")[0] == 0
    kept = json.loads((run / "run.json").read_text())["config"]["stream"]
    assert kept["memory"] == "64MB"
    rows: dict[str, int] = {}
    for step in range(4):
        made = as_json(penstock("replay", run, "--step", step, "--json"))
        for name in made["episode_ids"]:
            rows[name] = rows.get(name, 0) + 1
    for name, count in rows.items():
        seen = as_json(penstock("seen", store, name, "--exact", "--until-step", 4, "--json"))
        assert sum(row["rows"] for row in seen["runs"]) == count
    assert penstock("seen", store, name, "--exact", "--until-step", 4)[0] == 0
    code, _, err = penstock("seen", store, name, "--exact")
    assert (code, "--until-step" in err) == (2, True)
    assert penstock("seen", store, name, "--until-step", 4)[0] == 2


def test_wrong_usage_names_what_comes_nearest_or_where_to_look(penstock, tmp_path):
    for given, said in (
        (("ingest", tmp_path, "--dryrun", "--into", "s"), "did you mean --dry-run"),
        (("log", tmp_path, "--bogus"), "see `penstock log --help`."),
        (("log",), "see `penstock log --help`."),
        (("measur", tmp_path), "Did you mean 'measure'"),
    ):
        code, out, err = penstock(*given)
        assert (code, out) == (2, ""), given
        assert said in err


def test_the_command_ends_with_its_code_and_all_it_said(tmp_path):
    command = [sys.executable, "-m", "penstock"]
    kept = subprocess.run([*command, "--version"], capture_output=True, text=True, cwd=ROOT)
    assert (kept.returncode, kept.stdout.strip()) == (0, version("penstock"))
    missing = subprocess.run(
        [*command, "log", tmp_path / "none", "--json"], capture_output=True, text=True, cwd=ROOT
    )
    assert missing.returncode == 2
    assert json.loads(missing.stdout)["error"]["message"] in missing.stderr


def test_a_version_is_copied_to_another_store(loaded, penstock, tmp_path):
    told = as_json(penstock("copy", loaded, tmp_path / "o", "--json"))
    assert (told["branch"], told["episodes_added"], told["steps_added"]) == ("main", 6, 330)
    code, out, _ = penstock("copy", loaded, tmp_path / "o")
    assert code == 0
    assert "0 episodes copied" in out
    assert "6 were there" in out
    code, _, err = penstock("copy", f"{loaded}@mian", tmp_path / "new")
    assert code == 2
    assert "main" in err
    assert not (tmp_path / "new").exists()
