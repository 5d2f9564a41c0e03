"""Labels: columns that people add to episodes, committed as overlays like scores.

A label is a truth value, a number or a text per episode. It may correct what the source said of
success, task, kind or policy; everything else that an episode is stays as it came. Nothing is
rewritten, older versions show what they showed, and a revert takes labels back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.store.catalog import Catalog
from pipeline.store.commit import Draft
from pipeline.store.derive import write_overlay
from pipeline.store.layout import new_id
from pipeline.store.replace import changed_between, silenced
from pipeline.store.tables import KEEP_COLUMNS, episode_table
from schemas.episode import KINDS
from schemas.errors import NotFoundError, UsageError, suggest
from schemas.filter_check import kind_of
from schemas.table import FACT_COLUMNS, METRIC_COLUMNS, own_columns
from schemas.version import Annotate, Commit, Overlay, State

FREE_FACTS = ("success", "task", "kind", "policy", "policy_version")
"""What a label may say otherwise than the source did."""
MAX_NAME = 128


def commit_labels(
    catalog: Catalog, branch: str, table: pa.Table, *, base: Commit, message: str, how: str = ""
) -> Commit:
    """Commits labels of some episodes to a branch's head.

    They are keyed by episode id, so they hold on whatever others appended or compacted meanwhile;
    of an episode whose content others replaced meanwhile, they say nothing.

    Args:
        catalog: the store.
        branch: where.
        table: `episode_id` and the labels, of episodes of `base`.
        base: the version that was labelled.
        message: one line for the log.
        how: where they came from, for the record.

    Raises:
        NotFoundError: if the branch is not there, or the version has not all of the episodes.
        UsageError: if a column is one that labels may not take, or of another type than before.
    """
    state = catalog.refs.state(base)
    table = checked(table, episode_table(catalog, base), state)
    overlay = write_overlay(catalog, table)

    def fits(head: Commit) -> None:
        shown, now = episode_table(catalog, head), catalog.refs.state(head)
        for name in _names(table):
            _check_name(name, shown, now)
            _check_type(name, table.schema.field(name).type, shown)

    return commit_overlays(catalog, branch, (overlay,), base, message, how, fits)


def commit_overlays(
    catalog: Catalog,
    branch: str,
    overlays: tuple[Overlay, ...],
    base: Commit,
    message: str,
    how: str,
    fits: Callable[[Commit], None] | None = None,
) -> Commit:
    """Commits overlays of a version's episodes to a branch's head.

    Args:
        catalog: the store.
        branch: where.
        overlays: what to add, written already.
        base: the version they speak of.
        message: one line for the log.
        how: where they came from, for the record.
        fits: called with a head that is not `base`; raises if they do not fit it.
    """

    def plan(head: Commit | None, _state: State) -> Draft:
        if head is None:
            raise NotFoundError(f"Expected a branch {branch!r}, came none.")
        said = overlays
        if head.id != base.id:
            if fits is not None:
                fits(head)
            changed = {
                one.file.key: one
                for one in silenced(catalog, said, changed_between(catalog, base, head))
            }
            said = tuple(changed.get(one.file.key, one) for one in said)
        return Draft((Annotate(overlays=said, how=how),))

    commit = catalog.refs.publish(branch, plan, message=message, run_id=new_id())
    if commit is None:
        raise NotFoundError(f"Expected a branch {branch!r}, came none.")
    return commit


def checked(table: pa.Table, shown: pa.Table, state: State) -> pa.Table:
    """Returns labels in the types that a store keeps them in.

    Args:
        table: `episode_id` and the labels.
        shown: the episode table of the version they are for.
        state: of that version.

    Raises:
        NotFoundError, UsageError: as `commit_labels`.
    """
    names = _names(table)
    if not names or not table.num_rows:
        raise UsageError(
            f"Expected labels of some episodes, came {len(names)} columns of {table.num_rows} rows."
        )
    _check_ids(table, shown)
    columns = {"episode_id": table["episode_id"].cast(pa.string())}
    for name in names:
        _check_name(name, shown, state)
        columns[name] = _plain(name, table[name], shown)
        _check_type(name, columns[name].type, shown)
        _check_values(name, columns[name])
    return pa.table(columns)


def _names(table: pa.Table) -> list[str]:
    return [name for name in table.column_names if name != "episode_id"]


def _check_ids(table: pa.Table, shown: pa.Table) -> None:
    ids = table["episode_id"].cast(pa.string())
    known = pc.is_in(ids, value_set=shown["episode_id"].combine_chunks())
    unknown = ids.filter(pc.invert(known)).to_pylist()
    if unknown:
        first = ", ".join(map(repr, unknown[:3]))
        raise NotFoundError(
            f"Expected ids of the version's episodes, came {len(unknown)} unknown "
            f"({first}{', ...' if len(unknown) > 3 else ''}); "
            f"{suggest(str(unknown[0]), shown['episode_id'].to_pylist()[:10_000])}"
        )
    counts = pc.value_counts(ids.combine_chunks())
    twice = [one["values"] for one in counts.to_pylist() if one["counts"] > 1]
    if twice:
        raise UsageError(
            f"Expected each episode once, came {len(twice)} more often, the first {twice[0]!r}."
        )


def _check_name(name: str, shown: pa.Table, state: State) -> None:
    if not name or name.startswith("_") or not name.isprintable() or len(name) > MAX_NAME:
        raise UsageError(
            f"Expected a label's name of at most {MAX_NAME} printable signs that does not start "
            f"with '_', came {name[:MAX_NAME]!r}."
        )
    facts = {*FACT_COLUMNS.names, "episode_id"} - {*FREE_FACTS}
    taken = {
        "what an episode is": name in facts,
        "a metric, which `penstock measure` sets": name in {*METRIC_COLUMNS, *state.metrics},
        "a column of the source": name in own_columns(shown.schema, "columns"),
    }
    for what, is_taken in taken.items():
        if is_taken:
            raise UsageError(
                f"Expected a label's name, came {name!r}, which is {what}; choose another name "
                f"(of the facts, labels may say {', '.join(FREE_FACTS)} anew)."
            )


def _plain(name: str, column: pa.ChunkedArray, shown: pa.Table) -> pa.ChunkedArray:
    """Returns a column as bool, int64, float64 or text."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_null(kind) and name in shown.column_names:
        return column.cast(shown.schema.field(name).type)
    for to, is_of in (
        (pa.bool_(), (pa.types.is_boolean,)),
        (pa.int64(), (pa.types.is_integer,)),
        (pa.float64(), (pa.types.is_floating,)),
        (pa.string(), (pa.types.is_string, pa.types.is_large_string)),
    ):
        if any(test(kind) for test in is_of):
            return column.cast(to)
    raise UsageError(
        f"Expected truth values, numbers or texts in the label {name!r}, came "
        f"{'nulls only' if pa.types.is_null(kind) else kind}."
    )


def _check_type(name: str, came: pa.DataType, shown: pa.Table) -> None:
    known = shown.schema.field(name).type if name in shown.column_names else came
    if kind_of(came) != kind_of(known) and not pa.types.is_null(known):
        raise UsageError(
            f"Expected {kind_of(known)}s in {name!r} as before, came {kind_of(came)}s; choose "
            f"another name."
        )


def _check_values(name: str, column: pa.ChunkedArray) -> None:
    if name == "kind":
        other = set(column.to_pylist()) - {*KINDS}
        if other:
            raise UsageError(
                f"Expected {', '.join(KINDS)} in 'kind', came {sorted(map(str, other))[0]!r}."
            )
    if name in KEEP_COLUMNS:
        low = pc.min(column).as_py() if pa.types.is_integer(column.type) else -1
        if low is not None and low < 0:
            raise UsageError(f"Expected numbers of steps from 0 on in {name!r}, came others.")


def label_table(episode_ids: Sequence[str], labels: dict[str, object]) -> pa.Table:
    """Returns labels of some episodes: one value for all of them, or a sequence of one each.

    Raises:
        UsageError: if a sequence has another length, or values are of several types.
    """
    columns: dict[str, object] = {"episode_id": pa.array(episode_ids, pa.string())}
    for name, value in labels.items():
        is_one = value is None or isinstance(value, bool | int | float | str)
        values = [value] * len(episode_ids) if is_one else value
        try:
            found = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError) as error:
            raise UsageError(
                f"Expected values of one type for the label {name!r}, came others ({error})."
            ) from None
        if len(found) != len(episode_ids):
            raise UsageError(
                f"Expected {len(episode_ids)} values of {name!r}, one per episode, came "
                f"{len(found)}."
            )
        columns[name] = found
    return pa.table(columns)
