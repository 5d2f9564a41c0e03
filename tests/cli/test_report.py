"""`penstock report` on the command line: what it prints, what it exits with."""

from __future__ import annotations

import html
import json

import numpy as np
import pytest

from pipeline.cli.main import main
from pipeline.store.store import open_store
from tests.episodes import write_d4rl


@pytest.fixture
def store(tmp_path, capfd):
    """A store of four episodes, ingested from a file, with a branch of the longer two."""
    source = write_d4rl(tmp_path / "a.hdf5", [10, 20, 30, 40])
    assert main(["ingest", str(source), "--into", str(tmp_path / "s")]) == 0
    where = ("--where", "length > 25", "--branch", "long", "--tag", "long-v1")
    assert main(["curate", str(tmp_path / "s"), *where]) == 0
    capfd.readouterr()
    return tmp_path / "s"


def test_a_report_prints_where_it_is(store, tmp_path, capfd):
    out = tmp_path / "deep" / "report"
    assert main(["report", f"{store}@long-v1", "--out", str(out), "--against", "main"]) == 0
    assert capfd.readouterr().out == f"{out}/index.html: 2 episodes\n"
    text = (out / "index.html").read_text(encoding="utf-8")
    assert "Against main:1 with 4 episodes: 0 added, 2 removed, 0 replaced" in text
    assert "Curated from main:1: 2 of 4 episodes by <code>length &gt; 25</code>" in text
    assert str(tmp_path / "a.hdf5") in text  # the source
    again = f"penstock report {store}@long:1 --out {out} --against main"
    assert again in text


def test_json_says_the_same(store, tmp_path, capfd):
    out = tmp_path / "report"
    wanted = ["report", str(store), "--out", str(out), "--where", "length < 15", "--json"]
    assert main(wanted) == 0
    printed = json.loads(capfd.readouterr().out)
    assert printed == {"out": str(out), "files": ["index.html"], "episodes": 1}


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        (("--where", "length > "), "bad_filter"),
        (("--against", "mian"), "not_found"),
        (("--where", "action_divergence < 1"), "unscored"),
    ],
)
def test_what_does_not_fit_exits_with_2_and_writes_nothing(store, tmp_path, capfd, options, kind):
    out = tmp_path / "report"
    assert main(["report", str(store), "--out", str(out), *options, "--json"]) == 2
    assert json.loads(capfd.readouterr().out)["error"]["kind"] == kind
    assert not out.exists()


def test_refused_episodes_are_listed_with_their_reasons(tmp_path, capfd):
    rewards = np.zeros(70, np.float32)
    rewards[31] = np.nan  # in the third episode
    source = write_d4rl(tmp_path / "a.hdf5", [10, 20, 40], rewards=rewards)
    assert main(["ingest", str(source), "--into", str(tmp_path / "s")]) == 3
    assert main(["report", str(tmp_path / "s"), "--out", str(tmp_path / "report")]) == 0
    text = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "Refused episodes: 1" in text
    (refused,) = open_store(tmp_path / "s").quarantine().to_pylist()
    assert f'<td>nan</td><td class="text">{html.escape(refused["message"])}</td>' in text
