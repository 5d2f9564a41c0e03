"""Looking at a store: `log`, `show`, `diff`, `episodes`, `query`, `stats`, `quarantine`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.output import Json, StoreArg, StoreRef, emit, say, size, table
from pipeline.cli.reaching import TlsCa

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.store.store import Version

Where = Annotated[str | None, typer.Option("--where", metavar="FILTER", help="Which episodes.")]
Unscored = Annotated[
    str | None, typer.Option("--unscored", help="keep or drop episodes that have no score.")
]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("log", help="History, newest first.\n\nExample: penstock log ./store")(log)
    app.command("show", help="One version.\n\nExample: penstock show ./store@paper-v1")(show)
    app.command(
        "diff", help="What changed between two.\n\nExample: penstock diff ./store main:1 main"
    )(diff)
    app.command(
        "episodes",
        help="Episode rows with their metrics.\n\n"
        "Example: penstock episodes ./store --where 'success and length < 200' --limit 20",
    )(episodes)
    app.command(
        "query",
        help="Read-only SQL.\n\n"
        "Example: penstock query ./store 'SELECT task, count(*) FROM episodes GROUP BY task'",
    )(query)
    app.command("stats", help="Statistics per field.\n\nExample: penstock stats ./store")(stats)
    app.command("quarantine", help="Refused episodes.\n\nExample: penstock quarantine ./store")(
        quarantine
    )


def log(
    store: StoreRef,
    limit: Annotated[int, typer.Option("--limit", min=1)] = 50,
    tls_ca: TlsCa = None,
    json: Json = False,
) -> None:
    from pipeline.store.store import open_store, parse_ref

    url, ref = parse_ref(store)
    opened = open_store(url)
    names: dict[str, list[str]] = {}
    for name, target in opened.tags().items():
        names.setdefault(target.id, []).append(name)
    versions = opened.log(ref)[:limit]
    if json:
        emit({"versions": [_brief(version, names) for version in versions]})
        return
    table(
        ("version", "id", "when", "episodes", "steps", "tags", "message"),
        [
            (
                f"{v.branch}:{v.number}",
                v.id[:8],
                v.created_at,
                v.commit.totals.episodes,
                v.commit.totals.steps,
                " ".join(names.get(v.id, [])),
                v.message,
            )
            for v in versions
        ],
    )


def show(store: StoreRef, tls_ca: TlsCa = None, json: Json = False) -> None:
    from pipeline.curation.select import describe as describe_curation
    from pipeline.jobs.summary import describe
    from pipeline.store.store import open_store, parse_ref
    from schemas.version import Derivation

    url, ref = parse_ref(store)
    opened = open_store(url)
    facts = {**describe(opened, opened.version(ref)), "single_writer": opened.single_writer}
    if json:
        emit(facts)
        return
    say(f"{facts['branch']}:{facts['number']}  {facts['version']}  {facts['created_at']}")
    say(f"{facts['message']}")
    say(f"{facts['episodes']:,} episodes, {facts['steps']:,} steps, {size(facts['bytes'])}")
    if facts["linked"]["episodes"]:
        held = facts["linked"]
        places = ", ".join(f"{s['where']} ({size(s['bytes'])})" for s in held["sources"][:3])
        more = len(held["sources"]) - 3
        say(
            f"linked: {held['episodes']:,} episodes, {held['steps']:,} steps stay in {places}"
            + f" and {more:,} more" * (more > 0)
        )
    if facts["tags"]:
        say(f"tags: {', '.join(facts['tags'])}")
    if facts["single_writer"]:
        say("single writer: its storage lacks conditional writes; one process writes at a time")
    if facts["derivation"]:
        base = facts["derivation"]["base"]
        how = describe_curation(Derivation.model_validate(facts["derivation"]))
        say(f"curated from {base['branch']}:{base['number']}: {how}")
    for name, spec in facts["specs"].items():
        rows = [(n, f["dtype"], str(f["shape"]), f["encoding"]) for n, f in spec["fields"].items()]
        table((f"field ({name})", "dtype", "shape", "encoding"), rows)
    if facts["metrics"]:
        table(
            ("metric", "value", "se", "coverage", "score set"),
            [
                (n, m["value"], m["standard_error"], m["coverage"], m["score_set"][:8])
                for n, m in facts["metrics"].items()
            ],
        )
    table(("source", "format"), [(s["where"], s["format"]) for s in facts["sources"]])


def diff(store: StoreArg, ref1: str, ref2: str, tls_ca: TlsCa = None, json: Json = False) -> None:
    from pipeline.store.store import open_store

    changes = open_store(store).diff(ref1, ref2)
    if json:
        emit(changes)
        return
    for sign, ids in (
        ("+", changes.added),
        ("-", changes.removed),
        ("!", changes.replaced),
        ("~", changes.rescored),
        ("#", changes.relabelled),
    ):
        for name in ids[:20]:
            say(f"{sign} {name}")
        if len(ids) > 20:
            say(f"{sign} ... {len(ids) - 20:,} more")
    say(
        f"{len(changes.added):,} added, {len(changes.removed):,} removed, "
        f"{len(changes.replaced):,} replaced, {len(changes.rescored):,} scored anew, "
        f"{len(changes.relabelled):,} labelled anew"
    )


def episodes(
    store: StoreRef,
    where: Where = None,
    columns: Annotated[str | None, typer.Option("--columns", help="Names, a,b,c.")] = None,
    sort: Annotated[str | None, typer.Option("--sort", help="A column; -NAME descends.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1)] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    unscored: Unscored = None,
    tls_ca: TlsCa = None,
    json: Json = False,
) -> None:
    from pipeline.curation.select import check_unscored
    from pipeline.store.store import open_version
    from pipeline.store.tables import pick_columns

    version = open_version(store)
    found = version.episodes(where, unscored=check_unscored(unscored))
    if sort is not None:
        name = sort.removeprefix("-")
        pick_columns(found, [name])
        found = found.sort_by([(name, "descending" if sort.startswith("-") else "ascending")])
    found = pick_columns(found, columns.split(",") if columns else None)
    shown = found if limit is None else found.slice(0, limit)
    if json:
        emit({"episodes": shown.to_pylist()})
    elif csv:
        _write_csv(shown)
    else:
        known = found.column_names
        names = known if columns else [name for name in _SHOWN if name in known]
        rows = shown.select(names).slice(0, limit or 40)
        table(names, [tuple(row.values()) for row in rows.to_pylist()])
        say(f"{rows.num_rows:,} of {found.num_rows:,} episodes")


_SHOWN = (
    "episode_id",
    "task",
    "kind",
    "length",
    "episode_return",
    "success",
    "terminated",
    "truncated",
    "action_divergence",
    "transition_diversity",
)


def query(store: StoreRef, sql: str, tls_ca: TlsCa = None, json: Json = False) -> None:
    from pipeline.store.store import open_version

    result = open_version(store).query(sql)
    if json:
        emit({"rows": result.to_pylist()})
    else:
        table(result.column_names, [tuple(row.values()) for row in result.to_pylist()])


def stats(store: StoreRef, tls_ca: TlsCa = None, json: Json = False) -> None:
    from pipeline.jobs.summary import field_stats
    from pipeline.store.store import open_version

    fields = field_stats(open_version(store))
    if json:
        emit({"fields": fields})
        return
    rows = [
        (name, i, *(values[k][i] for k in ("mean", "std", "min", "q50", "max")))
        for name, values in fields.items()
        for i in range(min(len(values.get("mean", [])), 24))
    ]
    table(("field", "dim", "mean", "std", "min", "median", "max"), rows)
    held = [(n, v["encoding"], v["count"], v["bytes"]) for n, v in fields.items() if "bytes" in v]
    if held:
        table(("field", "encoding", "rows", "bytes"), held)


def quarantine(store: StoreRef, tls_ca: TlsCa = None, json: Json = False) -> None:
    from pipeline.store.store import open_store, parse_ref

    url, ref = parse_ref(store)
    refused = open_store(url).quarantine(ref).to_pylist()
    if json:
        emit({"episodes": refused})
    else:
        rows = [(r["source_key"], r["code"], r["message"]) for r in refused]
        table(("episode", "code", "why"), rows)
        say(f"{len(refused):,} refused")


def _brief(version: Version, names: dict[str, list[str]]) -> dict[str, Any]:
    return {
        "version": version.id,
        "number": version.number,
        "branch": version.branch,
        "parent": version.parent.id if version.parent else None,
        "message": version.message,
        "created_at": version.created_at,
        "episodes": version.commit.totals.episodes,
        "steps": version.commit.totals.steps,
        "tags": names.get(version.id, []),
    }


def _write_csv(rows: pa.Table) -> None:
    from pyarrow import csv

    csv.write_csv(rows, sys.stdout.buffer)
