"""The filter language as data: what a parsed filter is made of.

Every node is a frozen dataclass, equal by content, and `str()` of a node is text that parses to
an equal node again. A commit can therefore record a filter as text, thresholds resolved.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TypeAlias

KEYWORDS = frozenset(
    ("and", "or", "not", "in", "like", "between", "is", "null", "true", "false", "quantile")
)

# How tightly a node binds; a child that binds less tightly than its place asks for gets
# parentheses. The parser climbs the same numbers.
OR, AND, NOT, COMPARISON, SUM, PRODUCT, UNARY, ATOM = range(1, 9)


@dataclass(frozen=True)
class Column:
    """An episode column by name."""

    name: str

    def __str__(self) -> str:
        if re.fullmatch(r"[^\W\d]\w*", self.name) and self.name.lower() not in KEYWORDS:
            return self.name
        return f"`{self.name.replace('`', '``')}`"


@dataclass(frozen=True)
class Literal:
    """A number, a text, true or false."""

    value: bool | int | float | str

    def __str__(self) -> str:
        if isinstance(self.value, bool):
            return "true" if self.value else "false"
        if isinstance(self.value, str):
            return f"'{self.value.replace(chr(39), chr(39) * 2)}'"
        return repr(self.value)


@dataclass(frozen=True)
class Quantile:
    """The quantile of a column over all candidates, or over those that share a group.

    Linear between neighbours.
    """

    column: Column
    fraction: float
    group: Column | None = None

    def __str__(self) -> str:
        within = "" if self.group is None else f", {self.group}"
        return f"quantile({self.column}, {self.fraction!r}{within})"


@dataclass(frozen=True)
class Negate:
    """Unary minus of something that is not a plain number."""

    operand: Expression

    def __str__(self) -> str:
        # Parentheses keep `-(3)` apart from the literal -3.
        inner = isinstance(self.operand, Literal)
        return f"-({self.operand})" if inner else f"-{_wrap(self.operand, UNARY)}"


@dataclass(frozen=True)
class Arithmetic:
    """`left operator right` with one of + - * /."""

    operator: str
    left: Expression
    right: Expression

    def __str__(self) -> str:
        level = SUM if self.operator in "+-" else PRODUCT
        left, right = _wrap(self.left, level), _wrap(self.right, level + 1)
        return f"{left} {self.operator} {right}"


@dataclass(frozen=True)
class Comparison:
    """`left operator right` with one of == != < <= > >=."""

    operator: str
    left: Expression
    right: Expression

    def __str__(self) -> str:
        return f"{_wrap(self.left, SUM)} {self.operator} {_wrap(self.right, SUM)}"


@dataclass(frozen=True)
class Between:
    """`value between low and high`, both ends included."""

    value: Expression
    low: Expression
    high: Expression
    negated: bool = False

    def __str__(self) -> str:
        said = "not between" if self.negated else "between"
        ends = f"{_wrap(self.low, SUM)} and {_wrap(self.high, SUM)}"
        return f"{_wrap(self.value, SUM)} {said} {ends}"


@dataclass(frozen=True)
class In:
    """`value in (option, ...)`."""

    value: Expression
    options: tuple[Literal, ...]
    negated: bool = False

    def __str__(self) -> str:
        said = "not in" if self.negated else "in"
        return f"{_wrap(self.value, SUM)} {said} ({', '.join(map(str, self.options))})"


@dataclass(frozen=True)
class Like:
    """`value like 'pattern'`: % any text, _ one character, a backslash takes either literally."""

    value: Expression
    pattern: str
    negated: bool = False

    def __str__(self) -> str:
        said = "not like" if self.negated else "like"
        return f"{_wrap(self.value, SUM)} {said} {Literal(self.pattern)}"


@dataclass(frozen=True)
class IsNull:
    """`value is null`; the only test that is never null itself."""

    value: Expression
    negated: bool = False

    def __str__(self) -> str:
        return f"{_wrap(self.value, SUM)} is {'not null' if self.negated else 'null'}"


@dataclass(frozen=True)
class Not:
    """`not operand`."""

    operand: Expression

    def __str__(self) -> str:
        return f"not {_wrap(self.operand, NOT)}"


@dataclass(frozen=True)
class And:
    """All of two or more operands."""

    operands: tuple[Expression, ...]

    def __str__(self) -> str:
        return " and ".join(_wrap(operand, NOT) for operand in self.operands)


@dataclass(frozen=True)
class Or:
    """Any of two or more operands."""

    operands: tuple[Expression, ...]

    def __str__(self) -> str:
        return " or ".join(_wrap(operand, AND) for operand in self.operands)


Expression: TypeAlias = (
    Column
    | Literal
    | Quantile
    | Negate
    | Arithmetic
    | Comparison
    | Between
    | In
    | Like
    | IsNull
    | Not
    | And
    | Or
)


def children(node: Expression) -> Iterator[Expression]:
    """Yields the nodes directly below a node."""
    for field in fields(node):
        value = getattr(node, field.name)
        if isinstance(value, Expression):
            yield value
        elif isinstance(value, tuple):
            yield from value


def walk(node: Expression) -> Iterator[Expression]:
    """Yields a node and all below it, in the order of the text."""
    pending = [node]
    while pending:
        found = pending.pop()
        yield found
        pending.extend(reversed(list(children(found))))


def columns_of(node: Expression) -> tuple[str, ...]:
    """Returns the names of all columns a filter reads, in order of first appearance."""
    return tuple(dict.fromkeys(found.name for found in walk(node) if isinstance(found, Column)))


def null_tested_columns(node: Expression) -> frozenset[str]:
    """Returns the columns for which the filter itself says what null means (`is null`)."""
    tests = (found for found in walk(node) if isinstance(found, IsNull))
    return frozenset(name for test in tests for name in columns_of(test.value))


def _binding(node: Expression) -> int:
    match node:
        case Or():
            return OR
        case And():
            return AND
        case Not():
            return NOT
        case Comparison() | Between() | In() | Like() | IsNull():
            return COMPARISON
        case Arithmetic():
            return SUM if node.operator in "+-" else PRODUCT
        case Negate():
            return UNARY
        case _:
            return ATOM


def _wrap(node: Expression, least: int) -> str:
    return str(node) if _binding(node) >= least else f"({node})"
