"""SQL over the episode rows, and over nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.store.store import Version
from schemas.errors import UsageError
from tests.store.disks import quick_store
from tests.store.makers import episode, score


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Version:
    store = quick_store(tmp_path_factory.mktemp("query") / "s")
    store.append(
        [episode(f"e{n}", n, task=f"t{n % 2}", columns={"sigma": n / 4}) for n in range(6)]
    )
    return score(store, {f"e{n}": float(n) for n in range(4)})


def test_a_select(version: Version) -> None:
    table = version.query(
        "SELECT task, count(*) AS n, avg(length) AS mean, sum(sigma) AS sigma, "
        "count(action_divergence) AS scored FROM episodes GROUP BY task ORDER BY task"
    )
    assert table.to_pylist() == [
        {"task": "t0", "n": 3, "mean": 2.0, "sigma": 1.5, "scored": 2},
        {"task": "t1", "n": 3, "mean": 3.0, "sigma": 2.25, "scored": 2},
    ]
    common = version.query("WITH a AS (SELECT length FROM episodes) SELECT max(length) m FROM a")
    assert common["m"].to_pylist() == [5]
    assert "_block" not in version.query("SELECT * FROM episodes").column_names
    assert version.query("SELECT 1 AS one FROM episodes WHERE length > 99").num_rows == 0


REFUSED = (
    "",
    "SELEC 1",
    "SELECT 1; SELECT 2",
    "DROP TABLE episodes",
    "DELETE FROM episodes",
    "CREATE TABLE x AS SELECT * FROM episodes",
    "COPY episodes TO '{file}'",
    "COPY (SELECT 1) TO '{file}'",
    "ATTACH '{file}' AS other",
    "INSTALL httpfs",
    "LOAD httpfs",
    "PRAGMA database_list",
    "SET enable_external_access = true",
    "EXPORT DATABASE '{file}'",
    "CALL pragma_version()",
    "SELECT * FROM read_csv('{secret}')",
    "SELECT * FROM read_text('{secret}')",
    "SELECT * FROM '{secret}'",
    "SELECT * FROM glob('{secret}')",
    "SELECT * FROM read_parquet('{secret}')",
    "SELECT * FROM table_of_python",
    "SELECT * FROM nothing",
    "SELECT lenght FROM episodes",
)


@pytest.mark.parametrize("sql", REFUSED)
def test_everything_else_is_refused(version: Version, tmp_path: Path, sql: str) -> None:
    table_of_python = version.episodes()
    assert table_of_python.num_rows
    secret = tmp_path / "secret.csv"
    secret.write_text("a,b\n1,2\n")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UsageError) as caught:
        version.query(sql.format(file=tmp_path / "out", secret=secret))
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


def test_a_query_changes_nothing(version: Version) -> None:
    with pytest.raises(UsageError):
        version.query("UPDATE episodes SET length = 0")
    assert version.query("SELECT sum(length) AS n FROM episodes")["n"].to_pylist() == [15]
