"""The filter language over episode rows, in one place for those who use it.

`success and action_divergence < 0.3 and task in ('push', 'reach') and length between 10 and 500`:
parsed by us into a tree we own (`filter_ast`, `filter_parser`), checked against the columns
(`filter_check`) and run with SQL's logic of nulls (`filter_evaluate`). No text of a user ever
reaches an SQL engine or `eval`.
"""

from __future__ import annotations

from schemas.filter_ast import Expression, columns_of, null_tested_columns
from schemas.filter_check import check
from schemas.filter_evaluate import evaluate, evaluate_with_nulls, group_quantiles, resolve
from schemas.filter_parser import parse

__all__ = [
    "Expression",
    "check",
    "columns_of",
    "evaluate",
    "evaluate_with_nulls",
    "group_quantiles",
    "null_tested_columns",
    "parse",
    "resolve",
]
