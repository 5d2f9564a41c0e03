"""Type-checks a filter against the columns it will read, before any row is looked at."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Literal as OneOf
from typing import TypeAlias

import pyarrow as pa

from schemas.errors import FilterError, UnknownNameError, suggest
from schemas.filter_ast import (
    And,
    Arithmetic,
    Between,
    Column,
    Comparison,
    Expression,
    In,
    IsNull,
    Like,
    Literal,
    Negate,
    Not,
    Or,
    Quantile,
)

ValueKind: TypeAlias = OneOf["truth value", "number", "text", "time", "nothing", "list"]
"""What a column or an expression holds; `nothing` is a column of nulls only."""


def check(tree: Expression, columns: Mapping[str, pa.DataType]) -> None:
    """Checks that a filter reads known columns and makes sense for their types.

    Raises:
        UnknownNameError: for an unknown column, naming the nearest.
        FilterError: for a part whose types do not fit, quoting it.
    """
    _expect(tree, "truth value", columns, tree)


def kind_of(dtype: pa.DataType) -> ValueKind:
    """Returns what a column of an Arrow type holds, as the filter language sees it."""
    if pa.types.is_dictionary(dtype):
        return kind_of(dtype.value_type)
    if pa.types.is_boolean(dtype):
        return "truth value"
    if pa.types.is_integer(dtype) or pa.types.is_floating(dtype):
        return "number"
    if pa.types.is_string(dtype) or pa.types.is_large_string(dtype):
        return "text"
    if pa.types.is_timestamp(dtype):
        return "time"
    return "nothing" if pa.types.is_null(dtype) else "list"


def as_time(text: str) -> dt.datetime | None:
    """Returns the time an ISO 8601 text names (UTC where it names no zone), or None."""
    try:
        time = dt.datetime.fromisoformat(text)
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=dt.UTC)


def _kind(tree: Expression, columns: Mapping[str, pa.DataType]) -> ValueKind:
    match tree:
        case Column(name):
            return _column_kind(name, columns)
        case Literal(value):
            return _literal_kind(value)
        case Quantile(column, _, group):
            _expect(column, "number", columns, tree)
            if group is not None and _kind(group, columns) == "list":
                raise FilterError(
                    f"Expected a column to group by in `{tree}`, came `{group}`, which holds lists."
                )
            return "number"
        case Negate(operand):
            _expect(operand, "number", columns, tree)
            return "number"
        case Arithmetic(_, left, right):
            _expect(left, "number", columns, tree)
            _expect(right, "number", columns, tree)
            return "number"
        case IsNull(value):
            _kind(value, columns)
        case Like(value):
            _expect(value, "text", columns, tree)
        case Comparison(operator, left, right):
            _check_comparison(tree, operator, [left, right], columns)
        case Between(value, low, high):
            _check_comparison(tree, "between", [value, low, high], columns)
        case In(value, options):
            _check_comparison(tree, "==", [value, *options], columns)
        case Not(operand):
            _expect(operand, "truth value", columns, tree)
        case And(operands) | Or(operands):
            for operand in operands:
                _expect(operand, "truth value", columns, operand)
    return "truth value"


def _column_kind(name: str, columns: Mapping[str, pa.DataType]) -> ValueKind:
    if name not in columns:
        raise UnknownNameError(
            f"Expected a column of the version, came {name!r} "
            f"({suggest(name, columns)}); text goes into quotes."
        )
    return kind_of(columns[name])


def _literal_kind(value: bool | int | float | str) -> ValueKind:
    if isinstance(value, bool):
        return "truth value"
    return "text" if isinstance(value, str) else "number"


def _expect(
    tree: Expression,
    expected: ValueKind,
    columns: Mapping[str, pa.DataType],
    within: Expression,
) -> None:
    came = _kind(tree, columns)
    if came not in (expected, "nothing"):
        raise FilterError(
            f"Expected a {expected} in `{within}`, came the {came} `{tree}`; "
            f"{_ADVICE.get(expected, 'use another column')}."
        )


_ADVICE = {
    "truth value": "compare it with something, as in `length > 10`",
    "number": "only numbers can be computed with",
    "text": "`like` tests text columns only",
}


def _check_comparison(
    tree: Expression,
    operator: str,
    parts: list[Expression],
    columns: Mapping[str, pa.DataType],
) -> None:
    kinds = [_kind(part, columns) for part in parts]
    if "time" in kinds:
        _check_times(tree, parts, kinds)
        return
    known = {kind for kind in kinds if kind != "nothing"}
    if len(known) > 1:
        said = " with ".join(
            f"the {kind} `{part}`" for kind, part in zip(kinds, parts, strict=True)
        )
        raise FilterError(
            f"Expected values of one kind in `{tree}`, came {said}; compare like with like."
        )
    if "list" in known:
        raise FilterError(
            f"Expected a number, a text or a truth value in `{tree}`, came `{parts[0]}`, which "
            f"is none of them; it can only be tested with `is null`."
        )
    if "truth value" in known and operator not in ("==", "!="):
        raise FilterError(
            f"Expected numbers or text around {operator!r} in `{tree}`, came truth values; "
            f"use them as they are, or with `not`."
        )


def _check_times(tree: Expression, parts: list[Expression], kinds: list[ValueKind]) -> None:
    for part, kind in zip(parts, kinds, strict=True):
        is_time = isinstance(part, Literal) and kind == "text" and as_time(str(part.value))
        if kind not in ("time", "nothing") and not is_time:
            raise FilterError(
                f"Expected a time to compare with in `{tree}`, came `{part}`; "
                f"write it like '2026-01-31' or '2026-01-31T12:00:00+00:00'."
            )
