"""The experiments in their short form: what the documentation claims of the metrics."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.validation import real
from tests.validation.__main__ import table
from tests.validation.experiments import Row, ranking, specificity


def figure(rows: list[Row], what: str, score: str) -> float:
    """The mean of one row."""
    (row,) = (row for row in rows if what in row.what and row.score == score)
    return row.mean


def test_divergence_ranks_demonstrators_by_their_noise() -> None:
    rows = ranking([11])
    assert figure(rows, "Spearman", "action_divergence") >= 0.90
    assert figure(rows, "AUC, noise", "action_divergence") >= 0.98
    assert 0.3 <= figure(rows, "AUC, noise", "random") <= 0.7
    assert "| action_divergence |" in table(rows)


def test_divergence_tells_the_demonstrators_noise_from_the_systems() -> None:
    rows = specificity([12])
    assert figure(rows, "policy against system", "action_divergence") >= 0.95
    assert figure(rows, "system noise against clean", "transition_diversity") >= 0.95


@pytest.mark.slow
def test_labelled_demonstrations(shared_data: Path) -> None:
    rows = real.labelled(shared_data)
    assert figure(rows, "Spearman", "action_divergence") >= 0.94
    assert figure(rows, "policy against system", "action_divergence") >= 0.98
    assert figure(rows, "slow against clean", "length") >= 0.95
    assert figure(rows, "paused against clean", "idle_fraction") >= 0.95


def test_copies_in_a_real_set(shared_data: Path) -> None:
    assert real.copies(shared_data).mean == 25
