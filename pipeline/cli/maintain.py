"""Keeping a store: `gc`, `compact`, `copy`, `doctor`, `expire`, `remove`, `erase` and more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.output import Json, StoreArg, StoreRef, emit, note, say, size, table
from pipeline.cli.reaching import TlsCa

if TYPE_CHECKING:
    import datetime as dt

Grace = Annotated[str, typer.Option("--grace", metavar="TIME", help="Such as 24h, 30m or 7d.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Tell, delete nothing.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command(
        "gc",
        help="Delete, in two phases, what nothing refers to.\n\n"
        "Example: penstock gc ./store --grace 24h",
    )(gc)
    app.command("compact", help="Join small parts.\n\nExample: penstock compact ./store@main")(
        compact
    )
    app.command(
        "copy",
        help="Copy a version to another store; run again, copy what came since.\n\n"
        "Example: penstock copy ./store@clean s3://bucket/store",
    )(copy)
    app.command(
        "materialise",
        help="Copy linked data into the store.\n\nExample: penstock materialise ./store@main",
    )(materialise)
    app.command("doctor", help="Read and check everything.\n\nExample: penstock doctor ./store")(
        doctor
    )
    app.command(
        "expire",
        help="Let old versions go; tags keep theirs.\n\n"
        "Example: penstock expire ./store@main --keep 100",
    )(expire)
    app.command(
        "remove",
        help="Hide episodes in a new version.\n\n"
        "Example: penstock remove ./store --where 'length < 5'",
    )(remove)
    app.command(
        "erase",
        help="Erase episodes from every version for ever; `gc --erase` rewrites the files.\n\n"
        "Example: penstock erase ./store --ids ids.txt",
    )(erase)


def gc(
    store: StoreArg,
    grace: Grace = "24h",
    dry_run: DryRun = False,
    erase: Annotated[
        bool, typer.Option("--erase", help="Also rewrite files that hold erased episodes.")
    ] = False,
    json: Json = False,
) -> None:
    from pipeline.store.store import open_store

    done = open_store(store).gc(time_span(grace), dry_run=dry_run, erase=erase)
    if json:
        told = {"files": done.deleted, "marked": done.marked, "bytes": done.bytes}
        emit({**told, "shared_media": done.shared_media})
        return
    say(f"deleted {len(done.deleted):,} files, marked {len(done.marked):,} ({size(done.bytes)})")
    for key in done.shared_media:
        note(f"{key} keeps frames of erased episodes: episodes that are kept use the same file.")
    if done.marked and not dry_run:
        note(f"A gc after {grace} deletes what is marked now, if nothing refers to it by then.")


def compact(
    store: StoreRef,
    everything: Annotated[bool, typer.Option("--all", help="Short runs of parts too.")] = False,
    json: Json = False,
) -> None:
    from pipeline.store.store import open_store, parse_ref

    url, branch = parse_ref(store)
    done = open_store(url).compact(branch, everything=everything)
    if json:
        numbers = [commit.number for commit in done.commits]
        emit(
            {
                "versions": numbers,
                "parts_before": done.parts_before,
                "parts_after": done.parts_after,
                "rows": done.rows,
            }
        )
    else:
        say(f"{done.parts_before:,} parts became {done.parts_after:,} ({done.rows:,} rows written)")


def copy(
    store: StoreRef,
    into: Annotated[str, typer.Argument(metavar="STORE2", help="Made if it is not there.")],
    branch: Annotated[
        str | None, typer.Option("--branch", metavar="NAME", help="Of STORE2; the same by default.")
    ] = None,
    tls_ca: TlsCa = None,
    json: Json = False,
) -> int:
    from pipeline.cli.progress import steps_bar
    from pipeline.store.store import open_store, parse_ref

    url, ref = parse_ref(store)
    source = open_store(url)
    source.version(ref)  # before a store is made for nothing
    with steps_bar("copy", quiet=json) as advance:
        done = source.copy(ref, open_store(into, create=True), branch=branch, advance=advance)
    commit = done.commit
    if json:
        place = {"version": commit.id, "number": commit.number, "branch": commit.branch}
        counts = {"episodes_added": done.episodes, "episodes_known": done.known}
        emit(
            {
                **place,
                **counts,
                "episodes_quarantined": done.refused,
                "steps_added": done.steps,
            }
        )
    else:
        say(
            f"{commit.branch}:{commit.number} of {into}: {done.episodes:,} episodes copied "
            f"({done.steps:,} steps), {done.known:,} were there, {done.refused:,} refused"
        )
    return 3 if done.refused else 0


def materialise(
    store: StoreRef,
    branch: Annotated[
        str | None, typer.Option("--branch", metavar="NAME", help="A new branch for the outcome.")
    ] = None,
    json: Json = False,
) -> None:
    from pipeline.cli.progress import steps_bar
    from pipeline.store.store import open_store, parse_ref

    url, ref = parse_ref(store)
    with steps_bar("materialise", quiet=json) as advance:
        done = open_store(url).materialise(ref, branch=branch, advance=advance)
    commit = done.commit
    if json:
        place = {"version": commit.id, "number": commit.number, "branch": commit.branch}
        emit({**place, "episodes": done.episodes, "steps": done.steps, "bytes": done.bytes})
    elif done.episodes:
        say(
            f"{commit.branch}:{commit.number}: {done.episodes:,} episodes copied "
            f"({done.steps:,} steps, {size(done.bytes)})"
        )
    else:
        say(f"{commit.branch}:{commit.number}: nothing is linked")


def doctor(
    store: StoreArg,
    repair: Annotated[
        bool, typer.Option("--repair", help="Append commits that show all that is whole.")
    ] = False,
    json: Json = False,
) -> int:
    from pipeline.store.store import open_store

    opened = open_store(store)
    found = opened.doctor()
    repaired = opened.repair() if repair and found.damage else []
    after = open_store(store).doctor() if repaired else found
    if json:
        emit(
            {
                "problems": found.problems,
                "files": found.files,
                "bytes": found.bytes,
                "repaired": [
                    {"branch": r.branch, "version": r.commit.id, "left_out": r.left_out}
                    for r in repaired
                ],
            }
        )
    else:
        rows = [
            (p.code, "damage" if p.is_damage else "-", p.message, p.where) for p in found.problems
        ]
        if rows:
            table(("code", "", "what", "where"), rows)
        say(f"{found.files:,} files ({size(found.bytes)}) read, {len(found.damage):,} damaged")
        for done in repaired:
            say(f"{done.branch}:{done.commit.number} left out {'; '.join(done.left_out)}")
    return 6 if after.damage else 0


def expire(
    store: StoreRef,
    keep: Annotated[int, typer.Option("--keep", min=1, help="Newest versions to keep.")] = 100,
    json: Json = False,
) -> None:
    from pipeline.store.store import open_store, parse_ref

    url, branch = parse_ref(store)
    opened = open_store(url)
    before = max(1, opened.version(branch).number - keep + 1)
    version = opened.expire(branch, before=before)
    if json:
        emit({"version": version.id, "number": version.number, "kept_from": before})
    else:
        say(f"{branch}: versions before {before} are let go; gc deletes what only they needed")


def remove(
    store: StoreRef,
    where: Annotated[str, typer.Option("--where", metavar="FILTER", help="What to hide.")],
    json: Json = False,
) -> None:
    from pipeline.store.store import open_store, parse_ref

    url, branch = parse_ref(store)
    version = open_store(url).remove(where, branch)
    if json:
        emit({"version": version.id, "number": version.number, "episodes": len(version)})
    else:
        say(f"{version.branch}:{version.number}: {len(version):,} episodes are left")


def erase(
    store: StoreArg,
    ids: Annotated[str, typer.Option("--ids", metavar="FILE", help="Episode ids, one a line.")],
    json: Json = False,
) -> None:
    from pipeline.curation.select import read_exclusions
    from pipeline.store.store import open_store

    opened = open_store(store)
    names = read_exclusions(ids)
    held = opened.linked_places(names)
    count = opened.erase(names)
    if json:
        emit({"episodes": count, "linked_sources": held})
        return
    say(f"{count:,} episodes erased; `penstock gc {store} --erase` rewrites their files")
    for where in held:
        note(f"{where} still holds some of them: they were linked, and the file is yours.")


def time_span(text: str) -> dt.timedelta:
    """Parses `24h`, `30m`, `90s` or `7d`."""
    import datetime as dt

    from schemas.errors import UsageError

    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    number, unit = text[:-1], text[-1:]
    if not number.isdigit() or unit not in units:
        raise UsageError(f"Expected a time such as 24h, 30m or 7d, came {text!r}.")
    return dt.timedelta(seconds=int(number) * units[unit])
