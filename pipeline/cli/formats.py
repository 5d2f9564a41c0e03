"""Formats: `formats`, `validate`, `export`."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli.output import Json, StoreRef, emit, note, say, table


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("formats", help="What can be read and written.\n\nExample: penstock formats")(
        formats
    )
    app.command(
        "validate", help="Read a source, write nothing.\n\nExample: penstock validate demos.hdf5"
    )(validate)
    app.command(
        "export",
        help="Write a version in another format.\n\n"
        "Example: penstock export ./store@clean --format minari ./datasets/clean-v0",
    )(export)


def formats(json: Json = False) -> None:
    from connectors import registry

    found = registry.formats()
    if json:
        emit(
            {
                "formats": {
                    f.name: {"read": f.is_read, "written": f.is_written, "extra": f.extra}
                    for f in found.values()
                }
            }
        )
    else:
        rows = [(f.name, f.is_read, f.is_written, f.extra, f.about) for f in found.values()]
        table(("format", "reads", "writes", "extra", "about"), rows)


def validate(
    source: str,
    format: Annotated[str | None, typer.Option("--format")] = None,
    json: Json = False,
) -> int:
    from pipeline.jobs.validate import problems_of

    listing, problems = problems_of(source, format)
    if json:
        emit({"source": listing, "problems": problems})
    else:
        say(f"{listing['format']}: {listing['episodes']:,} episodes, {listing['steps']:,} steps")
        table(
            ("episode", "code", "problem"),
            [(p["where"], p["code"], p["message"]) for p in problems],
        )
        for guess in listing["guesses"]:
            note(f"guessed: {guess}")
        say(f"{len(problems):,} problems")
    return 3 if problems else 0


def export(
    store: StoreRef,
    out: str,
    format: Annotated[str, typer.Option("--format", help="`penstock formats` lists them.")],
    where: Annotated[str | None, typer.Option("--where", metavar="FILTER")] = None,
    json: Json = False,
) -> None:
    from connectors import registry
    from pipeline.jobs.export import export_version
    from pipeline.store.store import open_version

    for loss in registry.sink(format).losses():
        note(f"{format} cannot hold {loss.aspect}: {loss.says}")
    count = export_version(open_version(store), format, out, where)
    if json:
        emit({"format": format, "out": out, "episodes": count})
    else:
        say(f"{count:,} episodes written to {out}")
