"""The suite notices every seeded mistake: a check that cannot fail says nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reliability.figures import tell
from tests.reliability.mutants import MUTANTS
from tests.reliability.sizes import LONG

SHORT = (
    "no sync of a file",
    "no sync of the branch's folder",
    "no sync of a new folder's parent",
    "a commit that is not exclusive",
    "no comparison of ids after a lost race",
    "no deduplication after a lost race",
    "building on what may be lost",
    "no checksums",
    "marking without grace",
    "no look at the marks at a commit",
    "no second look before the sweep",
    "no regard for leases",
    "a repair that leaves gaps",
)


@pytest.mark.parametrize("name", MUTANTS if LONG else SHORT)
def test_a_mistake_is_noticed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant = MUTANTS[name]
    mutant.seed(monkeypatch)
    with pytest.raises((Exception, pytest.fail.Exception)):
        mutant.check(tmp_path)
    tell(f"mutant: {name}", caught=1)


@pytest.mark.parametrize("name", MUTANTS if LONG else SHORT[:1])
def test_the_check_is_content_without_the_mistake(name: str, tmp_path: Path) -> None:
    MUTANTS[name].check(tmp_path)
