"""Names of versions: `tag`, `branch`, `revert`."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli.output import Json, StoreRef, emit, say, table

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
    json: Json = False,
) -> None:
    from pipeline.store.store import open_store, parse_ref
    from schemas.errors import UsageError

    url, ref = parse_ref(store)
    opened = open_store(url)
    if delete is not None:
        opened.delete_tag(delete)
    elif name is not None:
        opened.tag(name, ref)
    elif not list:
        raise UsageError("Expected a NAME, --list or --delete NAME.")
    tags = opened.tags()
    if json:
        emit({"tags": {name: ref.model_dump() for name, ref in tags.items()}})
    elif list:
        table(
            ("tag", "version", "id"), [(n, f"{r.branch}:{r.number}", r.id) for n, r in tags.items()]
        )
    else:
        say(f"deleted the tag {delete}" if delete else f"{name} -> {ref}")


def branch(
    store: StoreRef,
    name: Name = None,
    list: List = False,
    delete: Delete = None,
    json: Json = False,
) -> None:
    from pipeline.store.store import open_store, parse_ref
    from schemas.errors import UsageError

    url, ref = parse_ref(store)
    opened = open_store(url)
    if delete is not None:
        opened.delete_branch(delete)
    elif name is not None:
        opened.branch(name, ref)
    elif not list:
        raise UsageError("Expected a NAME, --list or --delete NAME.")
    branches = opened.branches()
    if json:
        emit({"branches": {name: v.commit.ref.model_dump() for name, v in branches.items()}})
    elif list:
        rows = [(n, v.number, len(v), v.message) for n, v in branches.items()]
        table(("branch", "number", "episodes", "message"), rows)
    else:
        say(f"closed the branch {delete}" if delete else f"{name} starts at {ref}")


def revert(store: StoreRef, json: Json = False) -> None:
    from pipeline.store.store import open_store, parse_ref

    url, ref = parse_ref(store)
    version = open_store(url).revert(ref)
    if json:
        emit({"version": version.id, "number": version.number, "branch": version.branch})
    else:
        say(f"{version.branch}:{version.number} {version.message}")
