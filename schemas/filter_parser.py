"""Filter text to a tree: a tokenizer and a precedence-climbing parser, both bounded.

Filters arrive from command lines and from the network, so nothing in a text can make this recurse
without limit, run code, or take more than linear time.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from schemas.errors import FilterError
from schemas.filter_ast import (
    AND,
    COMPARISON,
    KEYWORDS,
    NOT,
    OR,
    PRODUCT,
    SUM,
    UNARY,
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
    children,
)

MAX_CHARACTERS = 65_536
MAX_DEPTH = 64

_TOKEN = re.compile(
    r"""
      (?P<space>\s+)
    | (?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)(?!\w)
    | (?P<text>'(?:[^']|'')*'|"(?:[^"]|"")*")
    | (?P<quoted>`(?:[^`]|``)+`)
    | (?P<word>[^\W\d]\w*)
    | (?P<sign><=|>=|==|!=|<>|[=<>+\-*/(),])
    """,
    re.VERBOSE,
)
_SIGNS = {"=": "==", "<>": "!="}
_COMPARISONS = ("==", "!=", "<", "<=", ">", ">=")


@dataclass(frozen=True)
class _Token:
    kind: str  # number, text, name, keyword, sign, end
    value: str
    start: int


def parse(text: str) -> Expression:
    """Returns the tree of a filter.

    Raises:
        FilterError: if the text is not a filter; the message marks the position.
    """
    if len(text) > MAX_CHARACTERS:
        raise FilterError(
            f"Expected a filter of at most {MAX_CHARACTERS} characters, came {len(text)}; "
            f"put long lists of episodes into an exclusion file."
        )
    return _Parser(text).parse()


def _tokens(text: str) -> list[_Token]:
    found: list[_Token] = []
    start = 0
    while start < len(text):
        match = _TOKEN.match(text, start)
        if match is None:
            raise _unreadable(text, start)
        kind, value = match.lastgroup or "", match.group()
        if kind == "word":
            kind = "keyword" if value.lower() in KEYWORDS else "name"
            value = value.lower() if kind == "keyword" else value
        elif kind == "quoted":
            kind, value = "name", value[1:-1].replace("``", "`")
        elif kind == "text":
            value = value[1:-1].replace(value[0] * 2, value[0])
        elif kind == "sign":
            value = _SIGNS.get(value, value)
        if kind != "space":
            found.append(_Token(kind, value, start))
        start = match.end()
    return [*found, _Token("end", "the end", len(text))]


def _unreadable(text: str, start: int) -> FilterError:
    if text[start] in "'\"`":
        return _error(text, start, "Expected a closing quote for this one", "add it")
    if text[start].isdigit() or text[start] == ".":
        return _error(text, start, "Expected a number", "names cannot start with a digit")
    advice = "write `and`, `or`, `not` as words" if text[start] in "&|!~" else "remove it"
    return _error(text, start, f"Expected a filter, came the character {text[start]!r}", advice)


def _error(text: str, start: int, said: str, advice: str) -> FilterError:
    before, after = text[max(0, start - 24) : start], text[start : start + 24]
    shown = (
        f"{'…' if start > 24 else ''}{before} >>> {after}{'…' if start + 24 < len(text) else ''}"
    )
    return FilterError(f"{said} at position {start + 1} ({shown.strip()}); {advice}.")


class _Parser:
    """Precedence climbing over the tokens of one text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._all = _tokens(text)
        self._next = 0
        self._depth = 0

    def parse(self) -> Expression:
        if self._peek.kind == "end":
            raise FilterError(
                "Expected a filter, came an empty text; write something like `length > 10`."
            )
        tree = self._expression(OR)
        if self._peek.kind != "end":
            raise self._unexpected("and, or, or the end", self._advice())
        self._check_depth(tree)
        return tree

    # -- tokens --------------------------------------------------------------------------------

    @property
    def _peek(self) -> _Token:
        return self._all[self._next]

    def _take(self) -> _Token:
        token = self._peek
        self._next += token.kind != "end"
        return token

    def _accept(self, *values: str) -> str | None:
        token = self._peek
        if token.kind in ("sign", "keyword") and token.value in values:
            return self._take().value
        return None

    def _expect(self, value: str, advice: str) -> None:
        if self._accept(value) is None:
            raise self._unexpected(repr(value), advice)

    def _unexpected(self, expected: str, advice: str) -> FilterError:
        token = self._peek
        came = token.value if token.kind == "end" else repr(token.value)
        return _error(self._text, token.start, f"Expected {expected}, came {came}", advice)

    def _advice(self) -> str:
        token = self._peek
        if token.kind == "sign" and token.value in _COMPARISONS:
            return "join two comparisons with `and`, or write `x between low and high`"
        if token.kind == "sign" and token.value == ")":
            return "remove it or open a parenthesis before"
        if token.kind == "name":
            return "join conditions with `and` or `or`; a name with spaces goes into backticks"
        return "join conditions with `and` or `or`"

    # -- grammar -------------------------------------------------------------------------------

    def _expression(self, least: int) -> Expression:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._too_deep(self._peek.start)
        tree = self._prefix(least)
        while (grown := self._infix(tree, least)) is not None:
            tree = grown
        self._depth -= 1
        return tree

    def _prefix(self, least: int) -> Expression:
        if least <= NOT and self._accept("not"):
            return Not(self._expression(NOT))
        if self._accept("-"):
            if self._peek.kind == "number":
                return Literal(-self._number())
            return Negate(self._expression(UNARY))
        if self._accept("("):
            tree = self._expression(OR)
            self._expect(")", "close the parenthesis")
            return tree
        return self._atom()

    def _atom(self) -> Expression:
        token = self._peek
        if token.kind == "number":
            return Literal(self._number())
        if token.kind == "text":
            return Literal(self._take().value)
        if token.kind == "name":
            return Column(self._take().value)
        if self._accept("quantile"):
            return self._quantile()
        if word := self._accept("true", "false"):
            return Literal(word == "true")
        if self._accept("null"):
            self._next -= 1
            raise self._unexpected("a value", "test for null with `is null` or `is not null`")
        raise self._unexpected(
            "a column, a number, a quoted text or a parenthesis", "complete the condition here"
        )

    def _infix(self, left: Expression, least: int) -> Expression | None:
        """One operator after `left` that binds at least as tightly as asked; None if none does."""
        if least <= PRODUCT and (sign := self._accept("*", "/")):
            return Arithmetic(sign, left, self._expression(PRODUCT + 1))
        if least <= SUM and (sign := self._accept("+", "-")):
            return Arithmetic(sign, left, self._expression(SUM + 1))
        if least <= COMPARISON and (tree := self._condition(left)) is not None:
            return tree
        if least <= AND and self._peek.value == "and" and self._peek.kind == "keyword":
            return And((left, *self._joined("and", NOT)))
        if least <= OR and self._peek.value == "or" and self._peek.kind == "keyword":
            return Or((left, *self._joined("or", AND)))
        return None

    def _joined(self, word: str, least: int) -> list[Expression]:
        operands = []
        while self._accept(word):
            operands.append(self._expression(least))
        return operands

    def _condition(self, left: Expression) -> Expression | None:
        if sign := self._accept(*_COMPARISONS):
            tree: Expression = Comparison(sign, left, self._expression(SUM))
        elif self._accept("is"):
            negated = self._accept("not") is not None
            self._expect("null", "only `is null` and `is not null` are tests; compare with ==")
            tree = IsNull(left, negated)
        else:
            negated = self._accept("not") is not None
            word = self._accept("between", "in", "like")
            if word is None:
                if negated:
                    raise self._unexpected("in, like or between", "say what is not")
                return None
            tree = {"between": self._between, "in": self._in, "like": self._like}[word](
                left, negated
            )
        if self._peek.kind == "sign" and self._peek.value in _COMPARISONS:
            raise self._unexpected("and, or, or the end", self._advice())
        return tree

    def _between(self, value: Expression, negated: bool) -> Expression:
        low = self._expression(SUM)
        self._expect("and", "write `x between low and high`")
        return Between(value, low, self._expression(SUM), negated)

    def _in(self, value: Expression, negated: bool) -> Expression:
        advice = "write `x in ('a', 'b')`"
        self._expect("(", advice)
        options = [self._option(advice)]
        while self._accept(","):
            options.append(self._option(advice))
        self._expect(")", advice)
        return In(value, tuple(options), negated)

    def _option(self, advice: str) -> Literal:
        if self._peek.kind in ("number", "text") or self._peek.value in ("-", "true", "false"):
            tree = self._prefix(UNARY)
            if isinstance(tree, Literal):
                return tree
        raise self._unexpected("a number, a quoted text, true or false", advice)

    def _like(self, value: Expression, negated: bool) -> Expression:
        if self._peek.kind != "text":
            raise self._unexpected("a quoted pattern", "write `x like 'push%'`")
        return Like(value, self._take().value, negated)

    def _quantile(self) -> Expression:
        advice = "write `quantile(column, 0.8)`, or `quantile(column, 0.8, task)` for each task's"
        self._expect("(", advice)
        if self._peek.kind != "name":
            raise self._unexpected("a column", advice)
        column = Column(self._take().value)
        self._expect(",", advice)
        if self._peek.kind != "number":
            raise self._unexpected("a number from 0 to 1", advice)
        start = self._peek.start
        fraction = float(self._number())
        if not 0 <= fraction <= 1:
            raise _error(self._text, start, "Expected a number from 0 to 1", advice)
        group = None
        if self._accept(","):
            if self._peek.kind != "name":
                raise self._unexpected("a column", advice)
            group = Column(self._take().value)
        self._expect(")", advice)
        return Quantile(column, fraction, group)

    def _number(self) -> int | float:
        token = self._take()
        if token.value.isdigit():
            # The length first: turning a million digits into an int takes quadratic time.
            whole = int(token.value) if len(token.value) <= 20 else 2**63
            if whole < 2**63:
                return whole
        elif math.isfinite(value := float(token.value)):
            return value
        raise _error(
            self._text, token.start, "Expected a number within 64 bits", "write a smaller one"
        )

    # -- bounds --------------------------------------------------------------------------------

    def _check_depth(self, tree: Expression) -> None:
        # Chains like a + b + c nest to the left without the parser nesting.
        level, depth = [tree], 0
        while level:
            depth += 1
            if depth > MAX_DEPTH:
                raise self._too_deep(len(self._text))
            level = [below for node in level for below in children(node)]

    def _too_deep(self, start: int) -> FilterError:
        return _error(
            self._text,
            start,
            f"Expected at most {MAX_DEPTH} levels of nesting, came more",
            "write a flatter filter",
        )
