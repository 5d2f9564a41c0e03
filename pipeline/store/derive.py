"""Versions made from versions without copying data: curated subsets, branches, reverts, tags."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from pipeline.store import blocks, layout
from pipeline.store.catalog import Catalog, parquet_bytes
from pipeline.store.commit import Draft, close_plan
from pipeline.store.files import files_of_state
from schemas.document import DataFile
from schemas.errors import (
    DamagedStoreError,
    NameTakenError,
    NotFoundError,
    TransientError,
    UsageError,
)
from schemas.state import apply
from schemas.version import (
    Annotate,
    Append,
    Commit,
    Derivation,
    Expire,
    FieldDocument,
    Measure,
    Operation,
    Overlay,
    Part,
    Reset,
    State,
    VersionRef,
)


def commit_selection(
    catalog: Catalog,
    base: Commit,
    table: pa.Table,
    derivation: Derivation,
    *,
    branch: str,
    message: str,
    labels: pa.Table | None = None,
) -> Commit:
    """Commits the kept rows of a version as a new version that shares all its data.

    Args:
        catalog: the store.
        base: the version the rows are of.
        table: rows of its `tables.episode_table`.
        derivation: how they were chosen, for the record.
        branch: where to; new, or one whose next version this becomes.
        message: one line for the log.
        labels: `episode_id` and columns that the new version says of its episodes besides.
    """
    layout.check_name(branch, "branch")
    check_free(catalog, branch, taken_by="tag")
    state = _select(catalog, catalog.refs.state(base), table, derivation)
    if labels is not None:
        overlays = (*state.overlays, write_overlay(catalog, labels))
        state = state.model_copy(update={"overlays": overlays})
    head_now = catalog.refs.head(branch)
    continues = head_now is not None and head_now.id == base.id

    def plan(head: Commit | None, _state: State) -> Draft:
        jump = state
        if head is not None and continues:
            jump = _with_later(catalog, state, base, head)
        parent = None if head else base.ref
        return Draft((Reset(reason="curate", to=base.ref),), jump=jump, parent=parent)

    commit = catalog.refs.publish(branch, plan, message=message, run_id=layout.new_id())
    return _made(commit)


def _with_later(catalog: Catalog, state: State, base: Commit, head: Commit) -> State:
    """Returns a curated state with what others committed to its branch since its base.

    Raises:
        TransientError: if they put other episodes in place of those that were chosen from.
    """
    for number in range(base.number + 1, head.number + 1):
        later = catalog.refs.read(head.branch, number)
        if any(map(_puts_others, later.operations)):
            raise TransientError(
                f"Expected {head.branch!r} to grow at most, came {later.message!r} meanwhile; "
                f"curate its new version.",
                where=catalog.url,
            )
        state = apply(state, later.operations)
    return state


def _puts_others(operation: Operation) -> bool:
    """True for what may change or take away episodes that were there."""
    if isinstance(operation, Append):
        return operation.replaced is not None
    return not isinstance(operation, Measure | Annotate)


def create_branch(catalog: Catalog, base: Commit, branch: str) -> Commit:
    """Makes a branch whose first version is `base`.

    Raises:
        NameTakenError: if a branch or tag has the name, or had it.
    """
    layout.check_name(branch, "branch")
    check_free(catalog, branch, taken_by="tag")
    state = catalog.refs.state(base)

    def plan(head: Commit | None, _state: State) -> Draft:
        if head is not None:
            raise NameTakenError(f"The branch {branch!r} exists; choose another name.")
        return Draft((Reset(reason="branch", to=base.ref),), jump=state, parent=base.ref)

    message = f"branch {branch} from {base.branch}:{base.number}"
    return _made(catalog.refs.publish(branch, plan, message=message, run_id=layout.new_id()))


def revert(catalog: Catalog, branch: str, to: Commit) -> Commit:
    """Makes an older version the newest of a branch, as a new commit."""
    state = catalog.refs.state(to)

    def plan(head: Commit | None, _state: State) -> Draft:
        if head is None:
            raise NotFoundError(f"Expected a branch {branch!r}, came none.")
        return Draft((Reset(reason="revert", to=to.ref),), jump=state)

    message = f"revert to {to.branch}:{to.number}"
    return _made(catalog.refs.publish(branch, plan, message=message, run_id=layout.new_id()))


def expire(catalog: Catalog, branch: str, before: int) -> Commit:
    """Lets go of a branch's versions before a number, but for those that tags or runs name.

    Their files go with the next collections; their commits stay.

    Raises:
        UsageError: if the newest version itself would go.
    """

    def plan(head: Commit | None, _state: State) -> Draft:
        if head is None:
            raise NotFoundError(f"Expected a branch {branch!r}, came none.")
        if before > head.number:
            raise UsageError(
                f"Expected to keep a version up to {branch}:{head.number}, came {before}."
            )
        return Draft((Expire(before=before),))

    message = f"expire versions before {branch}:{before}"
    return _made(catalog.refs.publish(branch, plan, message=message, run_id=layout.new_id()))


def delete_branch(catalog: Catalog, branch: str) -> None:
    """Closes a branch; its commits stay and its name is not used again."""
    if catalog.refs.head(branch) is None:
        raise NotFoundError(f"Expected a branch {branch!r}, came none; `--list` names them.")
    catalog.refs.publish(branch, close_plan, message="close", run_id=layout.new_id())


# -- tags --------------------------------------------------------------------------------------


def create_tag(catalog: Catalog, commit: Commit, name: str) -> None:
    """Gives a version a name for ever.

    Raises:
        NameTakenError: if a branch, or a tag of another version, has the name.
    """
    layout.check_name(name, "tag")
    check_free(catalog, name, taken_by="branch")
    document = {
        "name": name,
        "version": commit.ref.model_dump(),
        "created_at": dt.datetime.now(dt.UTC).isoformat(),
    }
    data = json.dumps(document, indent=1).encode()
    catalog.marks.refuse(files_of_state(catalog.refs.state(commit)), "a tag")
    catalog.refs.settle(commit)
    if not catalog.objects.put_if_absent(layout.tag(name), data):
        known = read_tag(catalog, name)
        if known is None or known.id != commit.id:
            raise NameTakenError(
                f"The tag {name!r} names another version; tags never move: choose another name."
            )


def read_tag(catalog: Catalog, name: str) -> VersionRef | None:
    """Returns what a tag names, or None if there is no such tag."""
    try:
        data = catalog.objects.read(layout.tag(name))
    except FileNotFoundError:
        return None
    try:
        return VersionRef.model_validate(json.loads(data)["version"])
    except (ValueError, KeyError, TypeError):
        raise DamagedStoreError(
            "Expected a tag, came something else.", where=layout.tag(name)
        ) from None


def tags(catalog: Catalog) -> dict[str, VersionRef]:
    """Returns all tags by name."""
    names = sorted(n.removesuffix(".json") for n in catalog.objects.names(layout.TAGS))
    found = {name: read_tag(catalog, name) for name in names}
    return {name: ref for name, ref in found.items() if ref is not None}


def delete_tag(catalog: Catalog, name: str) -> None:
    """Removes a tag; the version stays."""
    layout.check_name(name, "tag")
    if not catalog.objects.exists(layout.tag(name)):
        raise NotFoundError(f"Expected a tag {name!r}, came none; `--list` names them.")
    catalog.objects.delete(layout.tag(name))


def check_free(catalog: Catalog, name: str, *, taken_by: str) -> None:
    """Branches and tags share one name space.

    Raises:
        NameTakenError: if the other kind of name is in use.
    """
    if taken_by == "tag":
        # A branch that is there already has the name to itself.
        is_known = catalog.refs.has_seen(name)
        taken = not is_known and catalog.objects.exists(layout.tag(name))
    else:
        taken = catalog.refs.head(name) is not None
    if taken:
        raise NameTakenError(f"There is a {taken_by} named {name!r}; choose another name.")


# -- selections --------------------------------------------------------------------------------


def _select(catalog: Catalog, state: State, table: pa.Table, derivation: Derivation) -> State:
    """Returns a version's state with only some of its rows."""
    kept_part = table["_part"].to_numpy()
    kept_row = table["_part_row"].to_numpy()
    lengths = table["length"].to_numpy()
    chosen: list[tuple[Part, np.ndarray, int]] = []
    for index, part in enumerate(state.parts):
        mine = kept_part == index
        if mine.any():
            chosen.append((part, kept_row[mine], int(lengths[mine].sum())))
    partial = [(p, rows) for p, rows, _ in chosen if len(rows) < _rows_of(catalog, p)]
    file = write_selection(catalog, partial) if partial else None
    cut = {part.id for part, _ in partial}
    parts = tuple(
        part.model_copy(
            update={
                "episodes": len(rows),
                "steps": steps,
                "selection": file if part.id in cut else None,
            }
        )
        for part, rows, steps in chosen
    )
    return state.model_copy(update={"parts": parts, "derivation": derivation})


def _rows_of(catalog: Catalog, part: Part) -> int:
    return int(catalog.parquet(part.rows).num_rows)


def write_selection(catalog: Catalog, partial: list[tuple[Part, np.ndarray]]) -> DataFile:
    """Writes which rows of which parts are kept: one small file for all of them."""
    names = np.repeat([part.id for part, _ in partial], [len(rows) for _, rows in partial])
    table = pa.table(
        {
            "part": pa.array(names).dictionary_encode(),
            "row": pa.array(np.concatenate([rows for _, rows in partial]).astype(np.uint32)),
        }
    )
    key = layout.selection(layout.new_id())
    data = parquet_bytes(table)
    catalog.objects.put({key: data})
    return blocks.data_file(key, data)


def write_overlay(
    catalog: Catalog,
    table: pa.Table,
    *,
    score_set: str | None = None,
    steps: Mapping[str, FieldDocument] | None = None,
) -> Overlay:
    """Writes columns by episode id, as no version shows them yet.

    Args:
        catalog: the store.
        table: `episode_id` and the columns.
        score_set: of scores.
        steps: what a row of each column is, if they are arrays of steps.
    """
    data = parquet_bytes(table)
    key = layout.overlay(layout.new_id())
    catalog.objects.put({key: data})
    return Overlay(
        file=blocks.data_file(key, data),
        score_set=score_set,
        columns=tuple(name for name in table.column_names if name != "episode_id"),
        episodes=table.num_rows,
        steps=steps or {},
    )


def _made(commit: Commit | None) -> Commit:
    if commit is None:
        raise UsageError("There was nothing to commit.")
    return commit
