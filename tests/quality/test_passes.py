"""Any split and order of the passes gives the same scores."""

from __future__ import annotations

import json
from functools import reduce

import numpy as np
import pyarrow as pa
import pytest

from pipeline.quality.dataset import dataset_values, standard_errors
from pipeline.quality.passes import accumulate, merge
from pipeline.quality.reference import ReferenceModel, from_arrays
from pipeline.quality.registry import METRICS, chosen, versions
from pipeline.quality.sample import RowSample, merge_samples, sample_rows
from pipeline.quality.score import SIGNATURES, fit_reference, score_episodes
from pipeline.quality.sketch import SketchStage
from schemas.episode import Episode
from schemas.errors import DamagedStoreError, UnknownNameError, UsageError
from schemas.metrics import MeasureConfig
from tests.quality.systems import linear_policy, linear_system, measure_all


def two_tasks() -> list[Episode]:
    one, _ = linear_policy(5, 3200, 0)
    two, _ = linear_system(3, 3200, 1)
    return [*one, *(e.replace(episode_id=f"b/{e.episode_id}", task="b") for e in two)]


def in_shards(episodes: list[Episode], config: MeasureConfig, seed: int) -> ReferenceModel:
    order = np.random.default_rng(seed).permutation(len(episodes))
    shards = [[episodes[i] for i in order[start::64]] for start in range(64)]
    sketch = SketchStage(config)
    fit = sketch.finalise(reduce(merge, [accumulate(shard, sketch) for shard in shards]))
    return fit.finalise(reduce(merge, [accumulate(shard, fit) for shard in shards]))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_64_shards_in_random_order_score_as_one_pass(seed: int) -> None:
    episodes, config = two_tasks(), MeasureConfig(metrics=tuple(METRICS))
    whole = score_episodes(episodes, fit_reference(lambda: episodes, config))
    split = score_episodes(episodes, in_shards(episodes, config, seed))
    for name, metric in METRICS.items():
        if not metric.is_text:
            np.testing.assert_allclose(
                split[name].to_numpy(), whole[name].to_numpy(), rtol=1e-9, err_msg=name
            )
    assert split[SIGNATURES].equals(whole[SIGNATURES])


def test_scores_do_not_depend_on_what_is_scored_together() -> None:
    episodes = two_tasks()
    model = fit_reference(lambda: episodes, MeasureConfig())
    together = score_episodes(episodes, model)["action_divergence"].to_numpy()
    alone = [score_episodes([e], model)["action_divergence"][0].as_py() for e in episodes[::9]]
    np.testing.assert_allclose(alone, together[::9], rtol=1e-9)


def test_a_member_is_judged_without_itself_whatever_it_is_called() -> None:
    episodes, _ = linear_policy(4, 1000, 0)
    model = fit_reference(lambda: episodes, MeasureConfig())
    renamed = [e.replace(episode_id=f"x{i}", success=True) for i, e in enumerate(episodes)]
    np.testing.assert_array_equal(
        score_episodes(renamed, model)["action_divergence"].to_numpy(),
        score_episodes(episodes, model)["action_divergence"].to_numpy(),
    )


def test_leaving_out_equals_fitting_without() -> None:
    episodes, _ = linear_policy(4, 1000, 0)
    config = MeasureConfig(clusters=1)
    with_it = fit_reference(lambda: episodes, config)
    (group,) = with_it.groups.values()
    inside = score_episodes(episodes[:1], with_it)["action_divergence"][0].as_py()
    states = np.concatenate([e.observations["observations"][:-1] for e in episodes])
    actions = np.concatenate([e.actions for e in episodes])
    x = np.c_[np.ones(len(states)), states]
    y = (actions - actions.mean(0)) / actions.std(0)
    own = slice(0, 50)
    system = x[50:].T @ x[50:]
    residual = y[own] - x[own] @ np.linalg.solve(system, x[50:].T @ y[50:])
    leverage = (x[own] * np.linalg.solve(system, x[own].T).T).sum(1)
    expected = ((residual**2).mean(1) / (1 + leverage)).mean()
    assert inside == pytest.approx(expected, rel=1e-4)
    assert group.policy is not None
    assert group.policy.strength == 0


def test_copies_of_an_episode_do_not_vouch_for_one_another() -> None:
    episodes, _ = linear_policy(4, 1000, 0)
    copies = [episodes[0].replace(episode_id=f"copy{i}") for i in range(15)]
    alone = measure_all(episodes, clusters=1)[0]["action_divergence"][0]
    among = measure_all([*episodes, *copies], clusters=1)[0]["action_divergence"]
    scale = np.concatenate([e.actions for e in episodes]).var(0).mean()
    crowd = np.concatenate([e.actions for e in [*episodes, *copies]]).var(0).mean()
    assert among[0] == pytest.approx(alone * scale / crowd, rel=0.05)
    np.testing.assert_allclose(among[20:], among[0], rtol=1e-12)


def test_new_episodes_are_scored_on_the_frozen_scale() -> None:
    episodes, truth = linear_policy(4, 3000, 0)
    model = fit_reference(lambda: episodes[:40], MeasureConfig())
    fresh = score_episodes(episodes[40:], model)["action_divergence"].to_numpy()
    assert fresh.mean() == pytest.approx(truth, rel=0.06)
    louder = [e.replace(actions=2 * np.array(e.actions)) for e in episodes[40:]]
    assert score_episodes(louder, model)["action_divergence"].to_numpy().mean() > 10 * truth


def test_model_survives_as_plain_arrays() -> None:
    episodes = two_tasks()
    model = fit_reference(lambda: episodes, MeasureConfig(seed=3))
    arrays, document = model.to_arrays()
    assert all(isinstance(array, np.ndarray) and array.dtype != object for array in arrays.values())
    again = from_arrays(arrays, json.loads(json.dumps(document)))
    assert again.config == model.config
    assert score_episodes(episodes, again).equals(score_episodes(episodes, model))
    with pytest.raises(DamagedStoreError, match="format 1"):
        from_arrays(arrays, {**document, "format": 99})
    arrays.pop("0/centroids")
    with pytest.raises(DamagedStoreError, match="0/centroids"):
        from_arrays(arrays, document)


def test_samples_depend_on_rows_alone() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(2000, 3000))[:, :1500]  # wide enough that the sample drops rows
    keys = np.repeat(rng.integers(0, 2**63, 40).astype(np.uint64), 50)
    steps = np.tile(np.arange(50), 40)
    whole = sample_rows(rows, keys, steps)
    assert len(whole.keys) == whole.limit < 2000
    order = rng.permutation(2000)
    parts = [sample_rows(rows[i], keys[i], steps[i]) for i in np.array_split(order, 7)]
    merged = reduce(merge_samples, parts)
    np.testing.assert_array_equal(merged.keys, whole.keys)
    np.testing.assert_array_equal(merged.rows, whole.rows)
    assert isinstance(merged, RowSample)


def test_only_chosen_metrics_are_computed() -> None:
    episodes, _ = linear_policy(2, 500, 0)
    columns, values, model = measure_all(episodes, metrics=("length", "integrity"))
    assert set(columns) == set(values) == {"length", "integrity"}
    assert model.groups == {}
    assert versions(model.config) == {"length": "1", "integrity": "1"}
    assert chosen(MeasureConfig()) == tuple(n for n, m in METRICS.items() if m.is_default)
    with pytest.raises(UnknownNameError, match="did you mean 'action_variance'"):
        chosen(MeasureConfig(metrics=("action_varianc",)))


def test_dataset_values_weigh_tasks_by_steps() -> None:
    table = pa.table(
        {
            "task": ["a", "a", "b", None],
            "length": [10.0, 30.0, 60.0, 5.0],
            "integrity": [1.0, 0.5, 0.25, None],
            "episode_return": [1.0, 2.0, 6.0, None],
        }
    )
    config = MeasureConfig(metrics=("length", "integrity", "episode_return"), bootstrap=500)
    values = dataset_values(table, ReferenceModel(config, {}), config)
    assert values["integrity"].value == pytest.approx((10 + 15 + 15) / 100)
    assert values["integrity"].coverage == pytest.approx(0.75)
    assert values["integrity"].details["tasks"]["a"] == {
        "value": pytest.approx(0.625),
        "episodes": 2,
        "steps": 40,
    }
    assert values["episode_return"].value == pytest.approx(3.0)
    assert values["length"].value == pytest.approx(105 / 4)
    with pytest.raises(UsageError, match="integrity"):
        dataset_values(table.drop_columns(["integrity"]), ReferenceModel(config, {}), config)


def test_dataset_diversity_is_the_step_weighted_mean_of_episodes() -> None:
    episodes, _ = linear_system(3, 1000, 0)
    short = [
        e.replace(
            episode_id=f"s{e.episode_id}",
            observations={"observations": e.observations["observations"][:11]},
            actions=e.actions[:10],  # type: ignore[index]
            terminated=False,
            truncated=True,
        )
        for e in episodes[:8]
    ]
    columns, values, _ = measure_all([*episodes, *short])
    for name in ("transition_diversity", "action_divergence", "action_variance"):
        expected = np.average(columns[name], weights=columns["length"])
        assert values[name].value == pytest.approx(expected, rel=1e-12)


def test_bootstrap_error_is_the_textbook_one() -> None:
    scores = np.random.default_rng(0).normal(size=400)
    both = np.stack([scores, 3 * scores])
    one, three = standard_errors(both, np.ones((2, 400)), 2000, seed=1)
    assert one == pytest.approx(scores.std() / 20, rel=0.1)
    assert one is not None
    assert three == pytest.approx(3 * one, rel=1e-12)
    assert standard_errors(both[:, :1], np.ones((2, 1)), 200, 0) == [None, None]
    assert standard_errors(both, np.ones((2, 400)), 0, 0) == [None, None]
