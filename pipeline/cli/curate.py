"""`penstock curate`: from a filter to a version that shares all data."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pipeline.cli.output import Json, StoreRef, emit, say, table


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(
        "curate",
        help="Make a version of some episodes, without a copy.\n\n"
        "Example: penstock curate ./store --where 'action_divergence < quantile("
        "action_divergence, 0.5)' --branch clean --tag clean-v1",
    )(curate)


def curate(
    store: StoreRef,
    where: Annotated[str | None, typer.Option("--where", metavar="FILTER")] = None,
    top: Annotated[int | None, typer.Option("--top", min=1, help="Keep the N best.")] = None,
    by: Annotated[
        str | None, typer.Option("--by", metavar="COLUMN", help="Of --top; -COLUMN: smallest.")
    ] = None,
    per: Annotated[
        str | None, typer.Option("--per", metavar="COLUMN", help="So many of each value.")
    ] = None,
    dedupe: Annotated[
        bool, typer.Option("--dedupe", help="Of several copies keep the first (duplicate_of).")
    ] = False,
    frames: Annotated[
        str | None,
        typer.Option("--frames", metavar="START:STOP", help="Only these steps of each episode."),
    ] = None,
    balance: Annotated[
        str | None, typer.Option("--balance", metavar="COLUMN", help="Equally many of each value.")
    ] = None,
    each: Annotated[
        int | None, typer.Option("--each", min=1, help="Of --balance: so many.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the draw that balances.")] = 0,
    exclude: Annotated[
        str | None, typer.Option("--exclude", metavar="FILE", help="Episode ids, one a line.")
    ] = None,
    branch: Annotated[str | None, typer.Option("--branch", help="Where the version goes.")] = None,
    tag: Annotated[str | None, typer.Option("--tag")] = None,
    preview: Annotated[bool, typer.Option("--preview", help="Show, commit nothing.")] = False,
    plot: Annotated[
        str | None,
        typer.Option("--plot", metavar="FILE", help="Of --preview: .png, .svg, .pdf or .html."),
    ] = None,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Apply a curated branch's filter to its base anew.")
    ] = False,
    unscored: Annotated[str | None, typer.Option("--unscored", help="keep or drop.")] = None,
    message: Annotated[str | None, typer.Option("--message", "-m")] = None,
    json: Json = False,
) -> None:
    from pipeline.curation.preview import write_plot
    from pipeline.curation.select import Curation, apply, describe, read_exclusions
    from pipeline.curation.select import refresh as refreshed
    from pipeline.store.store import open_store, parse_ref
    from schemas.errors import UsageError

    url, ref = parse_ref(store)
    opened = open_store(url)
    if refresh:
        selection, branch = refreshed(opened, ref), ref
    else:
        wanted = Curation(
            where=where,
            top=top,
            by=by,
            per=per,
            dedupe=dedupe,
            frames=frames,
            balance=balance,
            each=each,
            seed=seed,
            exclude=read_exclusions(exclude) if exclude else (),
            unscored=unscored,
        )
        selection = apply(opened.version(ref), wanted)
    if plot is not None:
        write_plot(selection, plot)
    if preview:
        _tell(selection, json)
        return
    if branch is None:
        raise UsageError("Expected --branch NAME for the curated version, or --preview.")
    base = selection.version
    said = f"curate {base.branch}:{base.number}: {describe(selection.derivation)}"
    version = selection.commit(branch=branch, message=message or said)
    if tag is not None:
        opened.tag(tag, version)
    if json:
        emit(
            {
                "version": version.id,
                "number": version.number,
                "branch": version.branch,
                "tag": tag,
                "episodes": len(version),
                "steps": version.commit.totals.steps,
                "derivation": selection.derivation,
            }
        )
    else:
        d = selection.derivation
        say(
            f"{version.branch}:{version.number}: {len(version):,} of {d.episodes_before:,} episodes"
        )
        if d.resolved and d.resolved != d.where:
            say(f"  {d.resolved}")
        for text, groups in d.thresholds.items():
            say(f"  {text}: {', '.join(f'{name} {value}' for name, value in groups.items())}")


def _tell(selection: Any, json: bool) -> None:
    from pipeline.curation.preview import preview

    told = preview(selection)
    if json:
        emit(told)
        return
    if told["dropped"]:
        table(("step", "left out"), list(told["dropped"].items()))
    if len(told["clauses"]) > 1:
        rows = [tuple(row.values()) for row in told["clauses"]]
        table(("part of the filter", "left out", "alone"), rows)
    table(("task", "kept", "of"), [tuple(row.values()) for row in told["tasks"]])
    table(
        ("column", "kept mean", "left out mean", "kept min", "kept max"),
        [tuple(row.values()) for row in told["preview"]],
    )
    say(
        f"{told['episodes']:,} of {told['of']:,} episodes, {told['steps']:,} of "
        f"{told['of_steps']:,} steps; nothing committed"
    )
