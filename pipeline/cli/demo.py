"""`penstock demo`: the main job, end to end, on demonstrations it makes itself."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli.output import Json, emit, say


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(
        "demo",
        help="The whole way on MuJoCo episodes of known quality: collect, ingest, score, curate, "
        "train offline, fine-tune online, evaluate, report.\n\n"
        "Example: penstock demo --dir ./demo --quick",
    )(demo)


def demo(
    dir: Annotated[str, typer.Option("--dir", help="Folder of everything it makes.")] = "demo",
    quick: Annotated[bool, typer.Option("--quick", help="Less of everything, for CI.")] = False,
    json: Json = False,
) -> None:
    from pathlib import Path

    from pipeline.cli.demo_report import tell, write_report
    from pipeline.cli.demo_stages import FULL, QUICK, run

    report = run(Path(dir), QUICK if quick else FULL, quiet=json)
    write_report(report, Path(dir))
    if json:
        emit(report)
    else:
        tell(report)
        say(f"\nreport and plots: {Path(dir) / 'report.json'}")
