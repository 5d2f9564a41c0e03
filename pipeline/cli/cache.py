"""The packed caches of streams on this machine: `cache list`, `cache clear`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.output import Json, emit, note, say, size, table

if TYPE_CHECKING:
    import datetime as dt

    from pipeline.stream.eviction import Cached

CacheDir = Annotated[
    str | None,
    typer.Option("--cache-dir", metavar="PATH", help="Default: $PENSTOCK_CACHE or ~/.cache."),
]


def register(app: typer.Typer) -> None:
    """Adds the group."""
    group = typer.Typer(
        help="List or delete the caches that streams fill.\n\nExample: penstock cache list",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    group.command(
        "list",
        help="List the caches, the one used last first.\n\nExample: penstock cache list --json",
    )(list_)
    group.command(
        "clear",
        help="Delete caches that no process uses: all, or what the limits say.\n\n"
        "Example: penstock cache clear --older-than 30d --max-size 50GB",
    )(clear)
    app.add_typer(group, name="cache")


def list_(cache_dir: CacheDir = None, json: Json = False) -> None:
    from pipeline.stream.cache import cache_root
    from pipeline.stream.eviction import caches

    found = caches(cache_root(cache_dir))
    if json:
        emit({"caches": [_told(cached) for cached in found]})
        return
    rows = [
        (one.store[:8], one.folder.name, size(one.size), _when(one), one.in_use, one.erased)
        for one in found
    ]
    table(["store", "records", "size", "used", "in use", "blocks erased"], rows)
    note(f"{size(sum(one.size for one in found))} in {cache_root(cache_dir)}")


def clear(
    older_than: Annotated[
        str | None,
        typer.Option("--older-than", metavar="TIME", help="Not used for longer, such as 30d."),
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option("--max-size", metavar="SIZE", help="What may stay, such as 50GB."),
    ] = None,
    cache_dir: CacheDir = None,
    json: Json = False,
) -> None:
    from pipeline.cli.maintain import time_span
    from pipeline.stream.cache import cache_root
    from pipeline.stream.eviction import evict
    from schemas.sizes import parse_bytes

    deleted, busy = evict(
        cache_root(cache_dir),
        older_than=None if older_than is None else time_span(older_than).total_seconds(),
        max_size=None if max_size is None else parse_bytes(max_size),
    )
    if json:
        emit({"deleted": [_told(one) for one in deleted], "in_use": [_told(one) for one in busy]})
        return
    say(f"deleted {len(deleted):,} caches ({size(sum(one.size for one in deleted))})")
    if busy:
        note(f"{len(busy):,} caches are in use and stay.")


def _told(cached: Cached) -> dict[str, object]:
    return {
        "folder": str(cached.folder),
        "store": cached.store,
        "bytes": cached.size,
        "used": _when(cached).isoformat(),
        "in_use": cached.in_use,
        "blocks_erased": cached.erased,
    }


def _when(cached: Cached) -> dt.datetime:
    import datetime as dt

    return dt.datetime.fromtimestamp(cached.used, dt.UTC)
