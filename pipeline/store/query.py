"""Read-only SQL over the episode table, with DuckDB locked down to that table."""

from __future__ import annotations

import duckdb
import pyarrow as pa

from schemas.errors import UsageError

_LOCKED = {
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "python_enable_replacements": "false",
}


def query(table: pa.Table, sql: str) -> pa.Table:
    """Returns the result of one SELECT over the view `episodes`.

    Raises:
        UsageError: if it is not one SELECT, or does not run.
    """
    with duckdb.connect(config=_LOCKED) as connection:
        connection.register("episodes", table)
        connection.execute("SET lock_configuration = true")
        try:
            statements = connection.extract_statements(sql)
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                raise UsageError("Expected one SELECT over the table `episodes`, came other SQL.")
            return connection.sql(statements[0].query).to_arrow_table()
        except duckdb.Error as error:
            reason = str(error).strip().splitlines()[0]
            raise UsageError(f"Expected SQL over the table `episodes`: {reason}") from None
