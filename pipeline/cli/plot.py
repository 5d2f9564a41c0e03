"""`penstock plot`: what runs wrote into their tables, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.output import Json, emit, say


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(
        "plot",
        help="Curves of runs: losses, evaluations with intervals over seeds, regret.\n\n"
        "Example: penstock plot runs/iql/seed-* runs/bc --out curves.svg",
    )(plot)


def plot(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Folders of runs, or of seeds.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="An .svg, .png or .pdf.")],
    json: Json = False,
) -> None:
    from learners.judge import find_runs
    from learners.plots import plot_runs
    from schemas.errors import UsageError

    found = find_runs(runs)
    files = [run for run in found if run.is_file()]
    if files:
        raise UsageError(
            "Expected folders of runs, came a checkpoint; its run's tables stand in the folder.",
            where=str(files[0]),
        )
    columns = plot_runs(found, out)
    if json:
        emit({"plot": str(out), "runs": [str(run) for run in found], "columns": list(columns)})
    else:
        say(f"{out}: {', '.join(columns)} of {len(found)} runs")
