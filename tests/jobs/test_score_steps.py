"""One episode step by step: the readings are what its scores are means of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.jobs.measure import measure_version, score_steps
from pipeline.store.store import open_store
from schemas.errors import UnscoredError
from schemas.metrics import MeasureConfig
from tests.episodes import episode


def test_means_of_steps_are_the_scores(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", create=True)
    store.append([episode(f"e{number}", length=40) for number in range(20)])
    with pytest.raises(UnscoredError, match="penstock measure"):
        score_steps(store.version(), "e3")
    version = measure_version(store, "main", MeasureConfig(bootstrap=0)).version
    found = score_steps(version, "e3")
    scores = version.episodes("episode_id == 'e3'").to_pylist()[0]
    for name in ("action_variance", "action_divergence", "transition_diversity"):
        assert found[name].shape == (40,)
        assert np.nanmean(found[name]) == pytest.approx(scores[name], rel=1e-9)
    assert found["idle"].mean() == scores["idle_fraction"]
