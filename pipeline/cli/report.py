"""`penstock report`: a version as a page to look at."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli.look import Where
from pipeline.cli.output import Json, StoreRef, emit, say
from pipeline.cli.reaching import TlsCa


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(
        "report",
        help="Write a version as one HTML page: plots, episodes, tables.\n\n"
        "Example: penstock report ./store@clean --out ./report --against main",
    )(report)


def report(
    store: StoreRef,
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="Where index.html goes.")],
    where: Where = None,
    against: Annotated[
        str | None, typer.Option("--against", metavar="REF", help="Compare with this version.")
    ] = None,
    tls_ca: TlsCa = None,
    json: Json = False,
) -> None:
    from pipeline.cli.progress import count_bar
    from pipeline.jobs.report_page import write_report
    from pipeline.store.store import open_store, parse_ref

    url, ref = parse_ref(store)
    with count_bar("report", 100, quiet=json) as advance:
        written = write_report(
            open_store(url), ref, out, where=where, against=against, progress=advance
        )
    if json:
        emit({"out": written.out, "files": written.files, "episodes": written.episodes})
    else:
        say(f"{written.out}/{written.files[0]}: {written.episodes:,} episodes")
