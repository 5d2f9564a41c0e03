"""Names of versions: `tag`, `branch`, `revert`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.output import Json, StoreRef, emit, say, table
from pipeline.cli.reaching import TlsCa

if TYPE_CHECKING:
    from pipeline.store.store import Store

Name = Annotated[str | None, typer.Argument(metavar="NAME", help="The new name.")]
List = Annotated[bool, typer.Option("--list", help="List the names.")]
Delete = Annotated[str | None, typer.Option("--delete", metavar="NAME", help="Remove a name.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("tag", help="Name a version for ever.\n\nExample: penstock tag ./store@main v1")(
        tag
    )
    app.command(
        "branch", help="Start a branch at a version.\n\nExample: penstock branch ./store@v1 try"
    )(branch)
    app.command(
        "revert",
        help="Make an older version the newest again.\n\nExample: penstock revert ./store@main:3",
    )(revert)


def tag(
    store: StoreRef,
    name: Name = None,
    list: List = False,
    delete: Delete = None,
    tls_ca: TlsCa = None,
    json: Json = False,
) -> None:
    opened, ref = _opened(store)
    _change(name, delete, list, lambda new: opened.tag(new, ref), opened.delete_tag)
    tags = opened.tags()
    if json:
        emit({"tags": {name: ref.model_dump() for name, ref in tags.items()}})
    elif list:
        rows = [(n, f"{r.branch}:{r.number}", r.id) for n, r in tags.items()]
        table(("tag", "version", "id"), rows)
    else:
        say(f"deleted the tag {delete}" if delete else f"{name} -> {ref}")


def branch(
    store: StoreRef,
    name: Name = None,
    list: List = False,
    delete: Delete = None,
    tls_ca: TlsCa = None,
    json: Json = False,
) -> None:
    opened, ref = _opened(store)
    _change(name, delete, list, lambda new: opened.branch(new, ref), opened.delete_branch)
    branches = opened.branches()
    if json:
        emit({"branches": {name: v.commit.ref.model_dump() for name, v in branches.items()}})
    elif list:
        rows = [(n, v.number, len(v), v.message) for n, v in branches.items()]
        table(("branch", "number", "episodes", "message"), rows)
    else:
        say(f"closed the branch {delete}" if delete else f"{name} starts at {ref}")


def _opened(store: str) -> tuple[Store, str]:
    from pipeline.store.store import open_store, parse_ref

    url, ref = parse_ref(store)
    return open_store(url), ref


def _change(
    name: str | None,
    delete: str | None,
    is_listing: bool,
    make: Callable[[str], object],
    remove: Callable[[str], object],
) -> None:
    """Makes or removes a name, as asked."""
    from schemas.errors import UsageError

    if delete is not None:
        remove(delete)
    elif name is not None:
        make(name)
    elif not is_listing:
        raise UsageError("Expected a NAME, --list or --delete NAME.")


def revert(store: StoreRef, json: Json = False) -> None:
    opened, ref = _opened(store)
    version = opened.revert(ref)
    if json:
        emit({"version": version.id, "number": version.number, "branch": version.branch})
    else:
        say(f"{version.branch}:{version.number} {version.message}")
