"""Formats: `formats`, `validate`, `export`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.output import Json, StoreRef, emit, note, say, table
from pipeline.cli.reaching import TlsCa

if TYPE_CHECKING:
    from pipeline.jobs.validate import Report


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("formats", help="What can be read and written.\n\nExample: penstock formats")(
        formats
    )
    app.command(
        "validate",
        help="Read sources, write nothing; list every problem and what to do.\n\n"
        "Example: penstock validate demos.hdf5",
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
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE...", help="Files, folders, URLs or FORMAT:WHERE.")
    ],
    format: Annotated[str | None, typer.Option("--format")] = None,
    json: Json = False,
) -> int:
    from pipeline.cli.progress import steps_bar
    from pipeline.jobs import validate as job

    with steps_bar("validate", quiet=json) as listener:
        report = job.validate(sources, format, listener)
    if json:
        emit(_as_json(report))
    else:
        _tell(report)
    if report.is_untrusted:
        return 6
    return 3 if report.problems else 0


def _as_json(report: Report) -> dict[str, Any]:
    listed = [
        {
            "format": listing.format,
            "where": listing.where,
            "identity": listing.identity,
            "episodes": listing.episodes,
            "steps": listing.steps,
            "guesses": listing.guesses,
        }
        for listing in report.listings
    ]
    problems = [
        {
            "source": problem.source,
            "where": problem.where,
            "code": problem.code,
            "message": problem.message,
            "advice": problem.advice,
        }
        for problem in report.problems
    ]
    return {"source": listed[0] if listed else None, "sources": listed, "problems": problems}


def _tell(report: Report) -> None:
    for listing in report.listings:
        place = f" ({listing.where})" if len(report.listings) > 1 else ""
        say(f"{listing.format}: {listing.episodes:,} episodes, {listing.steps:,} steps{place}")
        for guess in listing.guesses:
            note(f"guessed: {guess}")
    if report.problems:
        rows = [(p.where, p.code, p.message) for p in report.problems]
        table(("episode", "code", "problem"), rows)
        for code, advice in sorted({p.code: p.advice for p in report.problems}.items()):
            say(f"{code}: {advice}")
    say(f"{len(report.problems):,} problems")


def export(
    store: StoreRef,
    out: Annotated[str, typer.Argument(metavar="OUT", help="Path of the new dataset.")],
    format: Annotated[
        str,
        typer.Option("--format", help="What to write; `penstock formats` lists the names."),
    ],
    where: Annotated[
        str | None, typer.Option("--where", metavar="FILTER", help="Write matching episodes only.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option", metavar="NAME=VALUE", help="How to write; docs/formats.md lists them."
        ),
    ] = None,
    tls_ca: TlsCa = None,
    json: Json = False,
) -> None:
    from connectors import registry
    from pipeline.jobs.export import export_version, parse_options
    from pipeline.store.store import open_version

    options = parse_options(format, option or [])
    for loss in registry.sink(format).losses():
        if not loss.refused:  # a refusal says itself what it is about
            note(f"{format} cannot hold {loss.aspect}: {loss.says}")
    count = export_version(open_version(store), format, out, where, options)
    if json:
        emit({"format": format, "out": out, "episodes": count})
    else:
        say(f"{count:,} episodes written to {out}")
