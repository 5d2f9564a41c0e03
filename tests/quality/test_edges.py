"""Input at the edges: what cannot be scored is null, what can is scored all the same."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.quality.clusters import fit_centroids
from pipeline.quality.features import extract
from pipeline.quality.score import fit_reference, score_episodes
from schemas.episode import Episode
from schemas.errors import UnknownNameError
from schemas.metrics import FeatureSpec, MeasureConfig
from tests.quality.systems import STEPS, episode, linear_policy, linear_system, measure_all

FITTED = ("action_variance", "action_divergence", "action_divergence_h", "transition_diversity")


def changed(episodes: list[Episode], at: int, **facts: object) -> list[Episode]:
    return [*episodes[:at], episodes[at].replace(**facts), *episodes[at + 1 :]]


def test_constant_action_dim_adds_nothing_and_is_counted() -> None:
    episodes, truth = linear_policy(4, 1000, 0)
    padded = [e.replace(actions=np.c_[e.actions, np.full(STEPS, 7.0)]) for e in episodes]
    _, values, _ = measure_all(padded)
    found = values["action_divergence"]
    assert found.value == pytest.approx(truth * 4 / 5, rel=0.05)
    assert found.details["reference"][0]["constant_actions"] == 1


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6])
def test_constant_state_dims_are_dropped(constant: float) -> None:
    episodes, truth = linear_system(4, 1000, 0)
    padded = [
        e.replace(
            observations={
                "observations": np.c_[e.observations["observations"], np.full(STEPS + 1, constant)]
            }
        )
        for e in episodes
    ]
    _, values, model = measure_all(padded)
    (group,) = model.groups.values()
    assert group.states.kept.tolist() == [True] * 4 + [False]
    assert values["transition_diversity"].value == pytest.approx(truth, abs=0.12)


def test_all_states_constant_leaves_the_spread_of_actions() -> None:
    rng = np.random.default_rng(0)
    episodes = [
        episode(f"e{i}", np.ones((STEPS + 1, 2)), rng.normal(size=(STEPS, 2))) for i in range(20)
    ]
    columns, values, _ = measure_all(episodes)
    assert values["action_divergence"].value == pytest.approx(1.0, rel=0.02)
    assert values["action_variance"].value == pytest.approx(1.0, rel=0.02)
    assert np.isnan(columns["transition_diversity"]).all()


def test_one_step_episodes() -> None:
    rng = np.random.default_rng(0)
    episodes, _ = linear_policy(3, 500, 0)
    for end in ("truncated", "terminated"):
        flags = {"truncated": False, end: True}
        episodes.append(episode(end, rng.normal(size=(2, 3)), rng.normal(size=(1, 4)), **flags))
    columns, _, _ = measure_all(episodes)
    assert columns["length"][-2:].tolist() == [1.0, 1.0]
    for name in FITTED[:3]:
        assert np.isfinite(columns[name]).all()
    np.testing.assert_allclose(
        columns["action_divergence"][-2:], columns["action_divergence_h"][-2:]
    )
    assert np.isfinite(columns["transition_diversity"][-2])
    assert np.isnan(columns["transition_diversity"][-1])


@pytest.mark.parametrize("where", ["observations", "actions"])
def test_one_nan_row_is_left_out_and_more_than_one_percent_is_null(where: str) -> None:
    long = 400
    rng = np.random.default_rng(0)
    episodes = [
        episode(f"e{i}", rng.normal(size=(long + 1, 2)), rng.normal(size=(long, 2)))
        for i in range(5)
    ]
    whole = measure_all(episodes)[0]

    def spoilt(rows: int) -> dict[str, np.ndarray]:
        states = episodes[1].observations["observations"].copy()
        actions = np.array(episodes[1].actions)
        (states if where == "observations" else actions)[10 : 10 + rows] = np.nan
        return measure_all(
            changed(episodes, 1, observations={"observations": states}, actions=actions)
        )[0]

    few, many = spoilt(1), spoilt(5)
    for name in FITTED:
        assert np.isfinite(few[name]).all()
        assert np.isnan(many[name][1])
        assert np.isfinite(np.delete(many[name], 1)).all()
        np.testing.assert_allclose(few[name], whole[name], rtol=0.1)
    assert few["integrity"][1] == pytest.approx(1 - 1 / 401)
    assert many["integrity"][1] == pytest.approx(1 - 5 / 401)


def test_infinite_values_are_as_bad_as_nan() -> None:
    episodes, _ = linear_policy(2, 500, 0)
    actions = np.array(episodes[0].actions)
    actions[3, 0] = np.inf
    columns, _, _ = measure_all(changed(episodes, 0, actions=actions))
    assert np.isnan(columns["action_divergence"][0])
    assert np.isfinite(columns["action_divergence"][1:]).all()


@pytest.mark.parametrize(
    ("facts", "moving"),
    [
        ({"truncated": True}, 5),
        ({"terminated": True, "truncated": False}, 4),
        ({"truncated": True, "final_observation": "copied"}, 4),
    ],
)
def test_only_real_next_states_are_transitions(facts: dict[str, object], moving: int) -> None:
    found = extract(
        episode("e", np.arange(12.0).reshape(6, 2), np.ones((5, 1)), **facts), FeatureSpec()
    )
    assert found is not None
    assert found.acting.sum() == 5
    assert found.moving.sum() == moving
    assert found.faulty_transitions == 0


def test_missing_final_observation_costs_one_transition() -> None:
    whole = episode("e", np.arange(12.0).reshape(6, 2), np.ones((5, 1)))
    cut = whole.replace(
        observations={"observations": whole.observations["observations"][:-1]},
        final_observation="missing",
    )
    found = extract(cut, FeatureSpec())
    assert found is not None
    assert found.moving.tolist() == [True] * 4 + [False]
    assert found.faulty_transitions == 0


def test_no_rewards_or_actions_is_null_not_zero() -> None:
    episodes, _ = linear_policy(2, 500, 0)
    episodes = changed(episodes, 2, actions=None)
    episodes = changed(episodes, 4, rewards=np.arange(float(STEPS)))
    columns, values, _ = measure_all(episodes)
    for name in FITTED:
        assert np.isnan(columns[name][2])
        assert np.isfinite(np.delete(columns[name], 2)).all()
        assert values[name].episodes == 9
        assert values[name].coverage == pytest.approx(0.9)
    assert columns["episode_return"][4] == STEPS * (STEPS - 1) / 2
    assert np.isnan(np.delete(columns["episode_return"], 4)).all()


def test_nan_rewards_have_no_return() -> None:
    episodes, _ = linear_policy(2, 500, 0)
    columns, _, _ = measure_all(changed(episodes, 0, rewards=np.full(STEPS, np.nan)))
    assert np.isnan(columns["episode_return"][0])


def discrete_episodes(temperature: float) -> tuple[list[Episode], np.ndarray]:
    """Three classes whose odds do not depend on the state; and those odds."""
    odds = np.exp(np.arange(3) / temperature)
    odds /= odds.sum()
    rng = np.random.default_rng(0)
    return [
        episode(f"e{i}", rng.normal(size=(101, 2)), rng.choice(3, size=100, p=odds))
        for i in range(40)
    ], odds


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_discrete_actions_score_gini_and_report_entropy(temperature: float) -> None:
    episodes, odds = discrete_episodes(temperature)
    _, values, _ = measure_all(episodes)
    gini = 1 - (odds**2).sum()
    entropy = -(odds * np.log(odds)).sum()
    assert values["action_variance"].value == pytest.approx(gini, rel=0.05)
    assert values["action_divergence"].value == pytest.approx(gini, rel=0.05)
    found = values["action_divergence"].details["reference"][0]
    assert found["conditional_entropy"] == pytest.approx(entropy, rel=0.05)


def test_integer_actions_of_a_wide_range_are_continuous() -> None:
    episodes, truth = linear_policy(2, 1000, 0)
    whole = [e.replace(actions=np.round(np.array(e.actions) * 1e4).astype(int)) for e in episodes]
    found = measure_all(whole)[1]["action_divergence"]
    assert found.value == pytest.approx(truth, rel=0.05)
    assert "conditional_entropy" not in found.details["reference"][0]


def test_deterministic_systems_are_clamped_and_flagged() -> None:
    rng = np.random.default_rng(0)
    episodes = []
    for number in range(20):
        states, actions = [rng.normal(size=3)], rng.normal(size=(STEPS, 3))
        for action in actions:
            states.append(0.9 * states[-1] + 0.3 * action)
        episodes.append(episode(f"e{number}", np.array(states), actions))
    columns, values, _ = measure_all(episodes)
    found = values["transition_diversity"]
    assert found.details["reference"][0]["deterministic"]
    assert found.details["reference"][0]["deterministic_directions"] == 3
    floor = 1.5 * np.log(2 * np.pi * 1e-12)
    assert found.details["reference"][0]["value"] == pytest.approx(floor + 1.5)
    assert np.isfinite(columns["transition_diversity"]).all()
    assert floor <= columns["transition_diversity"].min()
    assert columns["transition_diversity"].max() < floor + 3


def test_a_task_of_few_rows_is_scored_as_far_as_it_goes() -> None:
    rng = np.random.default_rng(0)
    episodes, truth = linear_policy(4, 1000, 0)
    tiny = [
        episode(f"t{i}", rng.normal(size=(7, 4)), rng.normal(size=(6, 4)), task="tiny")
        for i in range(4)
    ]
    single = [episode("s", rng.normal(size=(4, 4)), rng.normal(size=(3, 4)), task="single")]
    columns, values, model = measure_all([*episodes, *tiny, *single])
    assert [layout.task for layout in model.groups] == ["single", "tiny", None]
    assert np.isfinite(columns["action_divergence"][20:24]).all()
    assert columns["action_divergence"][20:24].mean() == pytest.approx(1.0, abs=0.5)
    for name in FITTED:
        assert np.isnan(columns[name][24])
    assert set(values["action_divergence"].details["tasks"]) == {"", "tiny"}
    assert columns["action_divergence"][:20].mean() == pytest.approx(truth, rel=0.05)


def test_tasks_are_standardised_apart() -> None:
    one, truth = linear_policy(3, 1000, 0)
    two = [
        e.replace(episode_id=f"b{e.episode_id}", task="b", actions=100 * np.array(e.actions))
        for e in one
    ]
    columns, _, _ = measure_all([*one, *two])
    assert columns["action_divergence"][:20].mean() == pytest.approx(truth, rel=0.05)
    assert columns["action_divergence"][20:].mean() == pytest.approx(truth, rel=0.05)


def test_an_outlier_alone_in_its_cluster_is_judged_by_the_whole_task() -> None:
    episodes, _ = linear_policy(2, 1000, 0)
    rng = np.random.default_rng(1)
    far = episode("far", 50 + rng.normal(size=(STEPS + 1, 2)), 9 + rng.normal(size=(STEPS, 4)))
    columns, _, model = measure_all([*episodes, far])
    (group,) = model.groups.values()
    assert group.policy is not None
    assert np.isfinite(columns["action_divergence"]).all()
    assert columns["action_variance"][-1] > 10 * columns["action_variance"][:-1].max()


def test_more_clusters_than_rows_per_cluster_still_scores() -> None:
    episodes, truth = linear_policy(3, 500, 0)
    columns, values, _ = measure_all(episodes, clusters=200)
    assert np.isfinite(columns["action_divergence"]).all()
    assert values["action_divergence"].value == pytest.approx(truth, rel=0.2)


def test_equal_points_make_one_cluster() -> None:
    assert len(fit_centroids(np.ones((50, 3)), 8, 0)) == 1
    two = np.repeat([[0.0], [1.0]], 10, axis=0)
    np.testing.assert_allclose(np.sort(fit_centroids(two, 8, 0), axis=0), [[0.0], [1.0]])


def test_unknown_tasks_and_layouts_are_null() -> None:
    episodes, _ = linear_policy(3, 500, 0)
    model = fit_reference(lambda: episodes, MeasureConfig())
    other = [episodes[0].replace(task="new"), linear_policy(2, 50, 0)[0][0], episodes[1]]
    table = score_episodes(other, model)
    assert table["action_divergence"].is_null().to_pylist() == [True, True, False]
    assert table["length"].to_pylist() == [50.0] * 3


def test_images_and_integers_are_no_state_unless_named() -> None:
    e = episode("e", np.zeros((4, 2)), np.zeros((3, 1))).replace(
        observations={
            "observations/state": np.zeros((4, 2)),
            "observations/pixels": np.zeros((4, 10, 10, 3), np.float32),
            "observations/count": np.zeros((4, 1), np.int64),
        }
    )
    found = extract(e, FeatureSpec())
    assert found is not None
    assert found.layout.states == (("observations/state", 2),)
    named = extract(e, FeatureSpec(observations=("observations/count", "observations/pixels")))
    assert named is not None
    assert named.states.shape == (3, 301)
    with pytest.raises(UnknownNameError, match="did you mean 'observations/state'"):
        extract(e, FeatureSpec(observations=("observations/stat",)))


def test_nothing_to_score_is_an_empty_table() -> None:
    model = fit_reference(lambda: [], MeasureConfig())
    table = score_episodes([], model)
    assert table.num_rows == 0
    assert table.column_names[0] == "episode_id"
