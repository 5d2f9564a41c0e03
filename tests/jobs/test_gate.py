"""The quality gate: before the commit, episode by episode and all together."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline.jobs.drift import merge, shifts, spreads_of
from pipeline.jobs.measure import measure_version
from pipeline.store.store import open_store
from schemas.errors import GateError, UnknownNameError
from schemas.gate import Gate
from schemas.jobs import IngestJob
from schemas.metrics import MeasureConfig
from tests.episodes import episode, write_d4rl
from tests.jobs.running import ingest


def gate(**rules):
    return Gate.model_validate(rules)


def test_a_rule_keeps_episodes_out_and_their_neighbours_go_in(tmp_path):
    source = write_d4rl(tmp_path / "a.hdf5", [3, 9, 4, 8])
    rules = gate(episodes=[{"name": "short", "quarantine": "length < 5 or integrity < 0.5"}])
    report = ingest(tmp_path / "s", source, gate=rules)
    assert (report.episodes_added, report.reasons) == (2, {"gate:short": 2})
    assert open_store(tmp_path / "s").version().episodes()["length"].to_pylist() == [9, 8]
    assert ingest(tmp_path / "s", source, gate=rules).reasons == {"gate:short": 2}
    assert ingest(tmp_path / "s", source).episodes_added == 2  # another gate, another judgement


def test_a_refusal_commits_nothing_and_says_why_in_the_record(tmp_path):
    source = write_d4rl(tmp_path / "a.hdf5", [3, 9])
    ingest(tmp_path / "s", write_d4rl(tmp_path / "b.hdf5", [7], seed=5))
    rules = gate(episodes=[{"name": "long", "refuse": "length > 8"}])
    with pytest.raises(GateError, match="'long' holds") as raised:
        ingest(tmp_path / "s", source, gate=rules)
    assert raised.value.exit_code == 6
    assert len(open_store(tmp_path / "s").version()) == 1
    records = [json.loads(p.read_text()) for p in (tmp_path / "s" / "runs").glob("*.json")]
    (failed,) = [record for record in records if record["outcome"] == "failed"]
    assert failed["error"]["kind"] == "gate_refused"
    assert "length = 9" in failed["error"]["reasons"][0]


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ({"max_quarantined_fraction": 0.4}, "50.0% \\(1 of 2\\)"),
        ({"min_episodes": 2}, "Expected 2 healthy episodes, came 1"),
    ],
)
def test_rules_about_all_episodes(tmp_path, rules, says):
    rewards = np.zeros(7, np.float32)
    rewards[1] = np.nan
    source = write_d4rl(tmp_path / "a.hdf5", [3, 4], rewards=rewards)
    with pytest.raises(GateError, match=says):
        ingest(tmp_path / "s", source, gate=gate(**rules))
    assert open_store(tmp_path / "s").branches() == {}


def test_drift_warns_or_refuses(tmp_path):
    lengths = [10] * 25
    ingest(tmp_path / "s", write_d4rl(tmp_path / "a.hdf5", lengths, seed=1))
    same = write_d4rl(tmp_path / "b.hdf5", lengths, seed=2)
    far = write_d4rl(tmp_path / "c.hdf5", lengths, seed=3, rewards=np.full(250, 5, np.float32))
    warn, refuse = ({"threshold": 1.0, "then": then} for then in ("warn", "refuse"))
    assert ingest(tmp_path / "s", same, gate=gate(drift=refuse)).warnings == ()
    with pytest.raises(GateError, match="rewards moved by"):
        ingest(tmp_path / "s", far, gate=gate(drift=refuse))
    report = ingest(tmp_path / "s", far, gate=gate(drift=warn))
    assert report.episodes_added == 25
    assert any(text.startswith("rewards moved by") for text in report.warnings)


def test_the_shift_is_in_standard_deviations_whatever_the_split():
    old = [episode(f"o{k}", length=50) for k in range(40)]
    new = [e.replace(rewards=np.asarray(e.rewards) * 1 + np.float32(2)) for e in old]
    halves = [merge(map(spreads_of, part)) for part in (old[:7], old[7:])]
    found = shifts(merge(halves), merge(map(spreads_of, new)))
    rewards = np.concatenate([np.asarray(e.rewards) for e in old]).astype(np.float64)
    assert found["rewards"] == pytest.approx(2 / rewards.std(), rel=1e-6)
    assert found["actions"] == pytest.approx(0, abs=1e-9)


def test_relative_metrics_are_judged_against_the_frozen_reference(tmp_path):
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(1200, 4)).astype(np.float32)
    actions = (observations[:, :2] + 0.01 * rng.normal(size=(1200, 2))).astype(np.float32)
    good = write_d4rl(tmp_path / "a.hdf5", [100] * 12, observations=observations, actions=actions)
    rules = gate(episodes=[{"name": "odd", "quarantine": "action_divergence > 0.5"}])
    report = ingest(tmp_path / "s", good, gate=rules)
    assert report.episodes_added == 12
    assert "no reference for action_divergence" in report.warnings[0]
    measure_version(open_store(tmp_path / "s"), "main", MeasureConfig(bootstrap=0))
    other = observations[:200] + np.float32(0.01)
    near = (other[:100, :2] + 0.01 * rng.normal(size=(100, 2))).astype(np.float32)
    wild = rng.normal(size=(100, 2)).astype(np.float32) * 3
    mixed = write_d4rl(
        tmp_path / "b.hdf5",
        [100, 100],
        observations=other,
        actions=np.concatenate([near, wild]),
    )
    report = ingest(tmp_path / "s", mixed, gate=rules)
    assert (report.episodes_added, report.reasons) == (1, {"gate:odd": 1})


def test_an_unknown_column_is_named_before_anything_is_committed(tmp_path):
    source = write_d4rl(tmp_path / "a.hdf5", [3])
    with pytest.raises(UnknownNameError, match="'length'") as error:
        ingest(tmp_path / "s", source, gate=gate(episodes=[{"name": "x", "refuse": "lenght < 5"}]))
    assert error.value.where == "gate rule 'x'"


@pytest.mark.parametrize(
    "rules",
    [
        {"episodes": [{"name": "x"}]},
        {"episodes": [{"name": "x", "refuse": "length <"}]},
        {"episodes": [{"name": "x", "refuse": "length < quantile(length, 0.5)"}]},
        {"episodes": [{"name": "x", "refuse": "length < 1"}] * 2},
        {"episodes": [{"name": "a b", "refuse": "length < 1"}]},
    ],
)
def test_gates_that_say_nothing_sensible(rules):
    with pytest.raises(ValueError, match=r"(?i)expected|match"):
        gate(**rules)


def test_a_gate_that_may_refuse_takes_one_commit():
    with pytest.raises(ValueError, match="commit_every"):
        IngestJob(sources=("a",), into="s", run_id="r", commit_every=5, gate=gate(min_episodes=1))
