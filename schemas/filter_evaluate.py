"""Runs a checked filter over a table of episodes, with SQL's logic of true, false and null.

A comparison with null is null, `and`, `or` and `not` follow Kleene, and only rows that come out
true are kept. NaN counts as null, and so does a division by zero. Which rows came out null is
told as well, so that a curator can be asked instead of rows vanishing in silence.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.errors import FilterError
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
    walk,
)
from schemas.filter_check import as_time, check

_COMPARE = {
    "==": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
_COMPUTE = {"+": pc.add, "-": pc.subtract, "*": pc.multiply, "/": pc.divide}
_NO_NUMBER = pa.scalar(None, pa.float64())


def resolve(tree: Expression, table: pa.Table) -> Expression:
    """Returns the filter with every `quantile(...)` replaced by its number over a table.

    Linear interpolation between neighbouring values, nulls and NaN left out. Quantiles within
    groups stand for several numbers and stay (`group_quantiles`).

    Raises:
        FilterError: if a column has no finite quantile, because all its values are null.
    """
    if not any(isinstance(node, Quantile) for node in walk(tree)):
        return tree
    if isinstance(tree, Quantile):
        return tree if tree.group is not None else Literal(_quantile(tree, table))
    changed: dict[str, Any] = {}
    for field in fields(tree):
        value = getattr(tree, field.name)
        if isinstance(value, Expression):
            changed[field.name] = resolve(value, table)
        elif isinstance(value, tuple):
            changed[field.name] = tuple(resolve(node, table) for node in value)
    return replace(tree, **changed)


def evaluate(tree: Expression, table: pa.Table) -> np.ndarray:
    """Returns which rows a filter keeps, (rows,) bool; rows that come out null are not kept."""
    return evaluate_with_nulls(tree, table)[0]


def evaluate_with_nulls(tree: Expression, table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Returns which rows a filter keeps, and for which it cannot say, both (rows,) bool.

    A row is unknown only where a null decides: `false and null` is false.

    Raises:
        UnknownNameError: for an unknown column.
        FilterError: for types that do not fit.
    """
    check(tree, {field.name: field.type for field in table.schema})
    found = _run(resolve(tree, table), table)
    if isinstance(found, pa.Scalar):
        found = pa.repeat(found, table.num_rows)
    found = found.cast(pa.bool_())
    kept = found.fill_null(False).to_numpy(zero_copy_only=False)
    return kept.astype(bool), found.is_null().to_numpy(zero_copy_only=False).astype(bool)


def group_quantiles(tree: Expression, table: pa.Table) -> dict[str, dict[str, float | None]]:
    """Returns what each quantile within groups stands for: by its text, then by group.

    A group's quantile is None where the group has no values.
    """
    return {
        str(node): {
            "null" if group is None else str(group): number
            for group, number in _by_group(node, node.group, table).items()
        }
        for node in walk(tree)
        if isinstance(node, Quantile) and node.group is not None
    }


def _by_group(tree: Quantile, group: Column, table: pa.Table) -> dict[Any, float | None]:
    groups = _column(group.name, table).dictionary_encode(null_encoding="encode")
    codes = groups.indices.to_numpy(zero_copy_only=False)
    values = _column(tree.column.name, table).cast(pa.float64()).to_numpy(zero_copy_only=False)
    order = np.argsort(codes, kind="stable")
    runs = np.split(values[order], np.flatnonzero(np.diff(codes[order])) + 1)
    found: dict[Any, float | None] = {}
    for name, run in zip(groups.dictionary.to_pylist(), runs, strict=False):
        finite = run[np.isfinite(run)]
        found[name] = float(np.quantile(finite, tree.fraction)) if len(finite) else None
    return found


def _group_values(tree: Quantile, group: Column, table: pa.Table) -> pa.Array:
    """The quantile of each row's own group."""
    found = _by_group(tree, group, table)
    return pa.array([found[one] for one in _column(group.name, table).to_pylist()], pa.float64())


def _quantile(tree: Quantile, table: pa.Table) -> float:
    values = _column(tree.column.name, table).drop_null()
    if len(values) == 0:
        raise FilterError(
            f"Expected values to take `{tree}` of, came only nulls; score the version first, "
            f"or use another column."
        )
    number = float(np.quantile(values.to_numpy(zero_copy_only=False), tree.fraction))
    if not math.isfinite(number):
        raise FilterError(
            f"Expected a finite number for `{tree}`, came {number}; use another fraction."
        )
    return number


def _column(name: str, table: pa.Table) -> pa.Array:
    """One column as one array in a type that compares well, NaN as null."""
    column = table.column(name).combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # what older Arrow versions return
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    dtype = column.type
    if pa.types.is_dictionary(dtype):
        column = column.dictionary_decode()
        dtype = column.type
    if pa.types.is_floating(dtype):
        column = column.cast(pa.float64())
        return pc.if_else(pc.is_nan(column), _NO_NUMBER, column)
    if pa.types.is_uint64(dtype) and (pc.max(column).as_py() or 0) >= 2**63:
        return column.cast(pa.float64(), safe=False)
    if pa.types.is_integer(dtype):
        return column.cast(pa.int64())
    if pa.types.is_timestamp(dtype):
        return column.cast(pa.timestamp("us", "UTC"), safe=False)
    return column


def _run(tree: Expression, table: pa.Table) -> Any:
    """The value of an expression: an Arrow array of the table's length, or a scalar."""
    match tree:
        case Column(name):
            return _column(name, table)
        case Literal(value):
            return pa.scalar(value)
        case Quantile(group=Column() as group):
            return _group_values(tree, group, table)
        case Negate(operand):
            return _compute("-", pa.scalar(0.0), _run(operand, table))
        case Arithmetic(operator, left, right):
            return _compute(operator, _run(left, table), _run(right, table))
        case Comparison(operator, left, right):
            return _compare(operator, _run(left, table), _run(right, table))
        case Between(value, low, high, negated):
            found = _run(value, table)
            above = _compare(">=", found, _run(low, table))
            below = _compare("<=", found, _run(high, table))
            return _negate(pc.and_kleene(above, below), negated)
        case IsNull(value, negated):
            return _negate(pc.is_null(_run(value, table), nan_is_null=True), negated)
        case Like(value, pattern, negated):
            return _negate(pc.match_like(_text(_run(value, table)), pattern), negated)
        case In(value, options, negated):
            return _negate(_contained(_run(value, table), options), negated)
        case Not(operand):
            return pc.invert(_truth(_run(operand, table)))
        case And(operands):
            return _fold(pc.and_kleene, operands, table)
        case Or(operands):
            return _fold(pc.or_kleene, operands, table)
    raise FilterError(f"Expected a filter with its quantiles resolved, came `{tree}`.")


def _fold(join: Any, operands: tuple[Expression, ...], table: pa.Table) -> Any:
    found = _truth(_run(operands[0], table))
    for operand in operands[1:]:
        found = join(found, _truth(_run(operand, table)))
    return found


def _truth(found: Any) -> Any:
    return found.cast(pa.bool_()) if pa.types.is_null(found.type) else found


def _text(found: Any) -> Any:
    return found.cast(pa.string()) if pa.types.is_null(found.type) else found


def _negate(found: Any, negated: bool) -> Any:
    return pc.invert(found) if negated else found


def _compute(operator: str, left: Any, right: Any) -> Any:
    """Arithmetic in float64: integers would overflow in silence and divide to integers."""
    left, right = left.cast(pa.float64()), right.cast(pa.float64())
    if operator == "/":
        right = pc.if_else(pc.equal(right, 0.0), _NO_NUMBER, right)
    found = _COMPUTE[operator](left, right)
    return pc.if_else(pc.is_nan(found), _NO_NUMBER, found)


def _compare(operator: str, left: Any, right: Any) -> Any:
    left, right = _comparable(left, right), _comparable(right, left)
    if pa.types.is_null(left.type) or pa.types.is_null(right.type):
        return pa.scalar(None, pa.bool_())
    return _COMPARE[operator](left, right)


def _comparable(found: Any, other: Any) -> Any:
    """Turns a text into a time where the other side is one."""
    if isinstance(found, pa.StringScalar) and pa.types.is_timestamp(other.type):
        return pa.scalar(as_time(found.as_py()), pa.timestamp("us", "UTC"))
    return found


def _contained(found: Any, options: tuple[Literal, ...]) -> Any:
    """`found in options`; null where `found` is null."""
    values = [_comparable(pa.scalar(option.value), found) for option in options]
    if pa.types.is_floating(found.type) or any(isinstance(v, pa.DoubleScalar) for v in values):
        found, values = found.cast(pa.float64()), [value.cast(pa.float64()) for value in values]
    if pa.types.is_null(found.type):
        return found.cast(pa.bool_())
    allowed = pa.array([value.as_py() for value in values], found.type)
    if isinstance(found, pa.Scalar):
        return pa.scalar(found.as_py() in allowed.to_pylist() if found.is_valid else None)
    member = pc.is_in(found, value_set=allowed)
    return pc.if_else(pc.is_null(found), pa.scalar(None, pa.bool_()), member)
