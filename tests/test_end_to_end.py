"""The main job from end to end, small: every stage of the demo on real parts."""

from __future__ import annotations

import json

import pytest

from pipeline.cli.demo_report import write_report
from pipeline.cli.demo_stages import Scale, run
from pipeline.store.store import open_store
from schemas.errors import UsageError

TINY = Scale(
    episodes_per_level=6,
    seeds=2,
    bc_steps=40,
    iql_steps=40,
    env_steps=600,
    evaluate_every=300,
    evaluation_episodes=2,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PENSTOCK_CACHE", str(folder / "cache"))
        report = run(folder / "demo", TINY, quiet=True)
    write_report(report, folder / "demo")
    return folder / "demo", report


def test_every_stage_leaves_what_it_promises(finished):
    folder, report = finished
    written = json.loads((folder / "report.json").read_text())
    assert list(written["stages"]) == ["collect", "ingest", "measure", "curate", "learn"]
    assert (folder / "quality.png").stat().st_size > 1_000
    assert (folder / "learning.png").stat().st_size > 1_000
    assert report.metrics["episodes_added"] == 24
    assert report.metrics["episodes_added_again"] == 0


def test_scores_rank_the_known_qualities(finished):
    _, report = finished
    assert report.ranking["spearman"] > 0.7
    levels = [level["action_divergence"] for level in report.ranking["levels"]]
    assert levels[0] < levels[-1]


def test_the_curated_version_shares_all_data_and_is_what_was_trained_on(finished):
    folder, report = finished
    store = open_store(folder / "store")
    clean = store.version("demo-clean")
    assert clean.id == report.versions["curated"]
    assert len(clean) == report.curated["episodes"] == 12
    blocks = {block.id for part in clean.state.parts for block in part.blocks}
    raw = {block.id for part in store.version("demo-raw").state.parts for block in part.blocks}
    assert blocks <= raw


def test_rollouts_came_back_through_the_store(finished):
    folder, report = finished
    store = open_store(folder / "store")
    for seed in (0, 1):
        online = store.version(f"online-{seed}")
        table = online.episodes(columns=["kind", "length", "policy_version"])
        assert set(table["kind"].to_pylist()) == {"rollout"}
        assert sum(table["length"].to_pylist()) >= TINY.env_steps
        assert None not in table["policy_version"].to_pylist()
    assert store.doctor().damage == []
    assert [seed["seed"] for seed in report.seeds] == [0, 1]
    assert all(seed["iql_finetuned"]["returns"] for seed in report.seeds)


def test_a_folder_of_someone_else_s_is_not_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("keep")
    with pytest.raises(UsageError, match="an earlier demo made"):
        run(tmp_path, TINY, quiet=True)
    assert (tmp_path / "thesis.txt").read_text() == "keep"
