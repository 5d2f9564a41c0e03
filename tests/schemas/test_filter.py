"""The filter language: text to tree and back, types, and SQL's logic of nulls."""

from __future__ import annotations

import datetime as dt
import sqlite3
import string

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import FilterError, UnknownNameError
from schemas.filter import (
    check,
    columns_of,
    evaluate,
    evaluate_with_nulls,
    null_tested_columns,
    parse,
    resolve,
)
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

EXAMPLE = (
    "success and action_divergence < 0.3 and task in ('push', 'reach') "
    "and kind == 'demonstration' and length between 10 and 500"
)

TABLE = pa.table(
    {
        "length": pa.array([5, 10, 500, 501, None], pa.int64()),
        "score": pa.array([0.1, 0.2, float("nan"), None, 0.5], pa.float64()),
        "success": pa.array([True, False, None, True, True]),
        "task": pa.array(["push", "reach", "Push it", None, "50%"]),
        "when": pa.array(
            [dt.datetime(2026, 1, day, tzinfo=dt.UTC) for day in (1, 2, 3, 4)] + [None],
            pa.timestamp("us", "UTC"),
        ),
        "unscored": pa.nulls(5),
        "tags": pa.array([["a"], [], None, ["b"], []], pa.list_(pa.string())),
        "größe 1": pa.array([1, 2, 3, 4, 5], pa.uint64()),
        "policy": pa.array(["a", "b", "a", "b", None]).dictionary_encode(),
    }
)
TYPES = {field.name: field.type for field in TABLE.schema}


def kept(text: str) -> list[int]:
    return np.flatnonzero(evaluate(parse(text), TABLE)).tolist()


def unknown(text: str) -> list[int]:
    return np.flatnonzero(evaluate_with_nulls(parse(text), TABLE)[1]).tolist()


# -- text and tree -----------------------------------------------------------------------------


def test_the_documented_example_parses_to_its_tree() -> None:
    assert parse(EXAMPLE) == And(
        (
            Column("success"),
            Comparison("<", Column("action_divergence"), Literal(0.3)),
            In(Column("task"), (Literal("push"), Literal("reach"))),
            Comparison("==", Column("kind"), Literal("demonstration")),
            Between(Column("length"), Literal(10), Literal(500)),
        )
    )
    assert columns_of(parse(EXAMPLE)) == ("success", "action_divergence", "task", "kind", "length")


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("a or b and not c", Or((Column("a"), And((Column("b"), Not(Column("c"))))))),
        ("not a == 1", Not(Comparison("==", Column("a"), Literal(1)))),
        ("a = -1", Comparison("==", Column("a"), Literal(-1))),
        ('a <> "x"', Comparison("!=", Column("a"), Literal("x"))),
        ("A AND B", And((Column("A"), Column("B")))),
        ("a is not null", IsNull(Column("a"), negated=True)),
        ("a not in (1)", In(Column("a"), (Literal(1),), negated=True)),
        ("a not like '%x'", Like(Column("a"), "%x", negated=True)),
        ("`and` > 'it''s'", Comparison(">", Column("and"), Literal("it's"))),
        (
            "a - 1 - 2 * -b >= quantile(c, 0.8)",
            Comparison(
                ">=",
                Arithmetic(
                    "-",
                    Arithmetic("-", Column("a"), Literal(1)),
                    Arithmetic("*", Literal(2), Negate(Column("b"))),
                ),
                Quantile(Column("c"), 0.8),
            ),
        ),
        (
            "a between 1 and 2 and b",
            And((Between(Column("a"), Literal(1), Literal(2)), Column("b"))),
        ),
    ],
)
def test_precedence_and_spellings(text: str, tree: Expression) -> None:
    assert parse(text) == tree


NUMBERS = st.integers(-(2**63) + 1, 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8) | st.sampled_from(
    ["a", "length", "and", "Quantile", "größe", "x1", "1x", "a b", "`", "null"]
)
COLUMNS = st.builds(Column, NAMES)
LITERALS = st.builds(Literal, NUMBERS | st.booleans() | st.text(max_size=8))
FRACTIONS = st.floats(0, 1)


def _grow(inner: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
    several = st.lists(inner, min_size=2, max_size=3).map(tuple)
    options = st.lists(LITERALS, min_size=1, max_size=3).map(tuple)
    return st.one_of(
        st.builds(Negate, inner),
        st.builds(Arithmetic, st.sampled_from("+-*/"), inner, inner),
        st.builds(Comparison, st.sampled_from(["==", "!=", "<", "<=", ">", ">="]), inner, inner),
        st.builds(Between, inner, inner, inner, st.booleans()),
        st.builds(In, inner, options, st.booleans()),
        st.builds(Like, inner, st.text(max_size=6), st.booleans()),
        st.builds(IsNull, inner, st.booleans()),
        st.builds(Not, inner),
        st.builds(And, several),
        st.builds(Or, several),
    )


TREES = st.recursive(
    COLUMNS | LITERALS | st.builds(Quantile, COLUMNS, FRACTIONS), _grow, max_leaves=12
)


@given(TREES)
def test_text_of_a_tree_parses_to_the_same_tree(tree: Expression) -> None:
    again = parse(str(tree))
    assert again == tree
    assert repr(again) == repr(tree)  # equality alone takes 1, 1.0 and true for the same


@given(st.text(string.printable + "äπ²٣", max_size=40))
def test_any_text_parses_or_is_refused_in_one_sentence(text: str) -> None:
    try:
        tree = parse(text)
    except FilterError as error:
        message = error.message
    else:
        message = "."
        assert parse(str(tree)) == tree
    assert message.endswith(".")


@pytest.mark.parametrize(
    "text",
    [
        "(" * 20_000 + "a" + ")" * 20_000,
        "not " * 10_000 + "a",
        "- " * 10_000 + "a > 1",
        "+".join(["a"] * 10_000),
        "a > " + "9" * 60_000,
        "a > 1e999",
        "x" * 70_000,
        "a == " + "'" * 60_001,
    ],
)
def test_hostile_texts_are_refused(text: str) -> None:
    with pytest.raises(FilterError):
        parse(text)


def test_long_chains_of_conditions_are_fine() -> None:
    tree = parse(" or ".join(f"a == {number}" for number in range(4_000)))
    assert isinstance(tree, Or)
    assert len(tree.operands) == 4_000


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ("length >", "position 9"),
        ("length > 10 10", "position 13"),
        ("length > 10)", "remove it or open"),
        ("(length > 10", "close the parenthesis"),
        ("10 < length < 20", "between low and high"),
        ("a && b", "as words"),
        ("a == 'x", "closing quote"),
        ("a == null", "is null"),
        ("a is true", "is not null"),
        ("a in ()", "in ('a', 'b')"),
        ("a in (b)", "in ('a', 'b')"),
        ("a not 3", "say what is not"),
        ("a like b", "push%"),
        ("quantile(a, 2) > 1", "from 0 to 1"),
        ("quantile(3, 0.2) > 1", "quantile(column, 0.8)"),
        ("length > 1x", "digit"),
        ("first name == 'x'", "backticks"),
    ],
)
def test_errors_say_where_and_what_to_do(text: str, said: str) -> None:
    with pytest.raises(FilterError, match="Expected") as caught:
        parse(text)
    assert said in caught.value.message
    assert caught.value.exit_code == 2


# -- types -------------------------------------------------------------------------------------


def test_an_unknown_column_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"'lenght'.*'length'"):
        check(parse("success and lenght > 3"), TYPES)


@pytest.mark.parametrize(
    "text",
    [
        "length",
        "length + 1",
        "'x'",
        "success and length",
        "success > true",
        "success == 1",
        "task > 3",
        "task + 1 > 3",
        "-task > 3",
        "length like 'x'",
        "length in ('a')",
        "success in (1)",
        "task between 1 and 'b'",
        "quantile(task, 0.5) > 1",
        "tags == 'a'",
        "when > 3",
        "when > 'yesterday'",
        "not length",
    ],
)
def test_types_that_do_not_fit_are_refused(text: str) -> None:
    with pytest.raises(FilterError, match="Expected"):
        check(parse(text), TYPES)


# -- values ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("length between 10 and 500", [1, 2]),
        ("length not between 10 and 500", [0, 3]),
        ("score < 0.3", [0, 1]),
        ("score is null", [2, 3]),
        ("score is not null", [0, 1, 4]),
        ("not score < 0.3", [4]),
        ("success", [0, 3, 4]),
        ("not success", [1]),
        ("success == false", [1]),
        ("success or score < 0.3", [0, 1, 3, 4]),
        ("task in ('push', 'reach')", [0, 1]),
        ("task not in ('push', 'reach')", [2, 4]),
        ("task like 'p%'", [0]),
        ("task like '_ush%'", [0, 2]),
        (r"task like '%\%'", [4]),
        ("task not like '%ush%'", [1, 4]),
        ("task < 'q'", [0, 2, 4]),
        ("length / 2 == 2.5", [0]),
        ("length / (length - 5) > 0", [1, 2, 3]),
        ("1 - 2 * 3 == -5 and length > 0", [0, 1, 2, 3]),
        ("-length < -400", [2, 3]),
        ("length in (5, 500.0)", [0, 2]),
        ("when >= '2026-01-03'", [2, 3]),
        ("when in ('2026-01-01T01:00:00+01:00')", [0]),
        ("unscored < 3", []),
        ("unscored is null and success", [0, 3, 4]),
        ("tags is null", [2]),
        ("`größe 1` > 4", [4]),
        ("policy == 'a'", [0, 2]),
        ("true", [0, 1, 2, 3, 4]),
        ("2 < 1", []),
        ("3 in (1, 3)", [0, 1, 2, 3, 4]),
        ("(length > 100) == success", [1, 3]),
    ],
)
def test_rows_that_are_kept(text: str, rows: list[int]) -> None:
    assert kept(text) == rows


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("score < 0.3", [2, 3]),
        ("not score < 0.3", [2, 3]),
        ("success and score < 0.3", [2, 3]),
        ("success and length > 600 and score < 0.3", []),
        ("length < 100 or score < 0.3", [2, 3, 4]),
        ("length > 400 or score < 0.3", [4]),
        ("score is null or score < 0.3", []),
        ("task in ('push')", [3]),
        ("length / (length - 5) > 0", [0, 4]),
        ("unscored > 0", [0, 1, 2, 3, 4]),
        ("unscored in (1, 2)", [0, 1, 2, 3, 4]),
        ("unscored == unscored", [0, 1, 2, 3, 4]),
        ("unscored like 'x'", [0, 1, 2, 3, 4]),
        ("not unscored", [0, 1, 2, 3, 4]),
    ],
)
def test_rows_where_a_null_decides_are_told(text: str, rows: list[int]) -> None:
    assert unknown(text) == rows


def test_columns_whose_nulls_the_filter_speaks_of() -> None:
    tree = parse("score is null or score < 0.3 and length > 3 or task is not null")
    assert null_tested_columns(tree) == {"score", "task"}


def test_quantiles_resolve_to_numbers_over_known_values() -> None:
    tree = resolve(parse("score > quantile(score, 0.5) and length <= quantile(length, 1)"), TABLE)
    assert str(tree) == "score > 0.2 and length <= 501.0"
    assert kept("score > quantile(score, 0.5)") == [4]
    assert kept("length <= quantile(length, 0.5)") == [0, 1]


def test_a_quantile_interpolates_as_numpy_does() -> None:
    values = np.random.default_rng(1).normal(size=101)
    table = pa.table({"x": values})
    tree = resolve(parse("x > quantile(x, 0.83)"), table)
    assert isinstance(tree, Comparison)
    assert tree.right == Literal(float(np.quantile(values, 0.83)))


def test_a_quantile_of_nulls_is_refused() -> None:
    table = pa.table({"x": pa.array([None, float("nan")], pa.float64())})
    with pytest.raises(FilterError, match="score the version"):
        resolve(parse("x > quantile(x, 0.5)"), table)


def test_large_integers_compare_exactly() -> None:
    table = pa.table({"seed": pa.array([2**53, 2**53 + 1], pa.int64())})
    assert evaluate(parse(f"seed == {2**53 + 1}"), table).tolist() == [False, True]
    unsigned = pa.table({"seed": pa.array([3, 2**64 - 1], pa.uint64())})
    assert evaluate(parse("seed > 3"), unsigned).tolist() == [False, True]


def test_an_empty_table_keeps_nothing() -> None:
    mask, nulls = evaluate_with_nulls(parse("length > 3 and success"), TABLE.slice(0, 0))
    assert mask.shape == nulls.shape == (0,)


CELLS = st.integers(-3, 3) | st.none()
NUMERIC = st.recursive(
    st.sampled_from([Column("a"), Column("b")]) | st.integers(-3, 3).map(Literal),
    lambda inner: st.builds(Arithmetic, st.sampled_from("+-*"), inner, inner),
    max_leaves=4,
)
OPTIONS = st.lists(st.integers(-3, 3).map(Literal), min_size=1, max_size=3).map(tuple)
CONDITIONS = st.one_of(
    st.builds(Comparison, st.sampled_from(["==", "!=", "<", "<=", ">", ">="]), NUMERIC, NUMERIC),
    st.builds(Between, NUMERIC, NUMERIC, NUMERIC, st.booleans()),
    st.builds(In, NUMERIC, OPTIONS, st.booleans()),
    st.builds(IsNull, NUMERIC, st.booleans()),
)


def _join(inner: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
    several = st.lists(inner, min_size=2, max_size=3).map(tuple)
    return st.builds(Not, inner) | st.builds(And, several) | st.builds(Or, several)


@given(
    tree=st.recursive(CONDITIONS, _join, max_leaves=6),
    rows=st.lists(st.tuples(CELLS, CELLS), max_size=8),
)
def test_agrees_with_an_sql_engine(tree: Expression, rows: list[tuple[int | None, ...]]) -> None:
    database = sqlite3.connect(":memory:")
    database.execute("create table t (a integer, b integer)")
    database.executemany("insert into t values (?, ?)", rows)
    truth = [row[0] for row in database.execute(f"select {tree} from t order by rowid")]
    database.close()
    table = pa.table(
        {
            "a": pa.array([row[0] for row in rows], pa.int64()),
            "b": pa.array([row[1] for row in rows], pa.int64()),
        }
    )
    mask, nulls = evaluate_with_nulls(tree, table)
    assert mask.tolist() == [value == 1 for value in truth]
    assert nulls.tolist() == [value is None for value in truth]
