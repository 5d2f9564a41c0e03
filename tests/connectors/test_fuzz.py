"""Mutated datasets of every parser: no crash, no hang, no traceback, no commit of what is refused.

150 mutants per parser by default, 20,000 with PENSTOCK_LONG=1.
"""

from __future__ import annotations

import pytest

from tests.connectors.fuzz import run
from tests.connectors.small import SMALL
from tests.reliability.sizes import size


@pytest.mark.slow
@pytest.mark.timeout(size(600, 20_000))
@pytest.mark.parametrize("parser", [small.name for small in SMALL])
def test_mutants_are_refused_quarantined_or_read(parser: str) -> None:
    count = size(150, 20_000)
    tally = run(parser, count)
    assert tally.failures == []
    assert tally.count == count
    assert tally.outcomes["accepted"] < count
