"""From what people write for a version to its commit: a branch, a tag, a number, an id, a time."""

from __future__ import annotations

import datetime as dt

from pipeline.store import derive, layout
from pipeline.store.catalog import Catalog
from schemas.errors import NotFoundError, UsageError, suggest
from schemas.version import Commit

MIN_ID_PREFIX = 8


def parse_ref(text: str) -> tuple[str, str]:
    """Splits `STORE@REF` into store and reference; the reference is `main` if left out."""
    store, at, ref = text.rpartition("@")
    if not at or "/" in ref:
        return text, "main"
    return store, ref or "main"


def resolve(catalog: Catalog, ref: str) -> Commit:
    """Returns the commit that a branch, `branch:number`, a tag or a prefix of an id names.

    Raises:
        NotFoundError: naming the nearest branches and tags.
        UsageError: if it is no reference, or names several.
    """
    refs = catalog.refs
    name, colon, number = ref.partition(":")
    if colon:
        if not (number.isascii() and number.isdigit()):
            raise UsageError(f"Expected BRANCH:NUMBER, came {ref!r}.")
        return refs.read(layout.check_name(name, "branch"), int(number))
    if layout.is_name(ref):
        head = refs.head(ref)
        if head is not None and not head.closed:
            return head
        tagged = derive.read_tag(catalog, ref)
        if tagged is not None:
            return refs.read(tagged.branch, tagged.number)
    found = _by_id(catalog, ref.lower())
    if found is not None:
        return found
    known = [*refs.branches(), *derive.tags(catalog)]
    if not known and ref == "main":
        raise NotFoundError(
            "Expected a version, came a store without any; ingest something first.",
            where=catalog.url,
        )
    raise NotFoundError(
        f"Expected a branch, a tag, BRANCH:NUMBER or an id prefix of {MIN_ID_PREFIX} or more "
        f"digits, came {ref!r}; {suggest(ref, known)}",
        where=catalog.url,
    )


def _by_id(catalog: Catalog, prefix: str) -> Commit | None:
    if len(prefix) < MIN_ID_PREFIX or not set(prefix) <= set("0123456789abcdef"):
        return None
    found: dict[str, Commit] = {}
    for head in catalog.refs.heads().values():  # versions outlive a closed branch
        for commit in catalog.refs.history(head):
            if commit.id.startswith(prefix):
                found[commit.id] = commit
    if len(found) > 1:
        raise UsageError(f"Expected an unambiguous id, came {prefix!r} for {len(found)}.")
    return next(iter(found.values()), None)


def at_time(catalog: Catalog, branch: str, when: dt.datetime) -> Commit:
    """Returns what a branch showed at a time.

    Raises:
        NotFoundError: if it had no version by then.
    """
    when = when if when.tzinfo else when.astimezone()
    head = catalog.refs.head(branch)
    low, high = 0, head.number if head else 0
    while low < high:  # commit times only grow along a branch
        middle = (low + high + 1) // 2
        early = catalog.refs.read(branch, middle).created_at <= when
        low, high = (middle, high) if early else (low, middle - 1)
    if not low:
        raise NotFoundError(
            f"Expected a version of {branch!r} at {when.isoformat()}, came none that old."
        )
    return catalog.refs.read(branch, low)
