"""`penstock drift`: says whether two versions, or two kinds of episodes, differ."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.output import Json, Observations, StoreRef, comma_names, emit, say, table
from pipeline.cli.reaching import TlsCa

if TYPE_CHECKING:
    from pipeline.jobs.compare import Compared

COLUMNS_SHOWN = 8


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(
        "drift",
        help="Say whether two versions, or two kinds of episodes of one, differ.\n\n"
        "Example: penstock drift ./store main:3 main\n\n"
        "Example: penstock drift ./store@main --kind demonstration,rollout",
    )(drift)


def drift(
    store: StoreRef,
    first: Annotated[
        str | None, typer.Argument(metavar="REF1", help="The reference; by default that of STORE.")
    ] = None,
    second: Annotated[str | None, typer.Argument(metavar="REF2", help="The other.")] = None,
    kind: Annotated[
        str | None,
        typer.Option("--kind", metavar="A,B", help="Compare these kinds of episodes of REF1."),
    ] = None,
    observations: Observations = None,
    tls_ca: TlsCa = None,
    json: Json = False,
) -> None:
    from pipeline.cli.progress import steps_bar
    from pipeline.jobs.compare import compare_versions
    from pipeline.store.store import open_store, parse_ref
    from schemas.episode import KINDS
    from schemas.errors import UsageError
    from schemas.metrics import FeatureSpec, MeasureConfig

    kinds = kind.split(",") if kind else []
    if (second is None) != (len(kinds) == 2) or not set(kinds) <= set(KINDS):
        raise UsageError(
            f"Expected a second version, or --kind A,B with A and B out of {', '.join(KINDS)}, "
            f"came {f'--kind {kind}' if kind else 'neither' if second is None else 'both'}."
        )
    url, ref = parse_ref(store)
    first = first or ref
    opened = open_store(url)
    names = (first, second if second is not None else first)
    one, two = (opened.version(name) for name in names)
    config = MeasureConfig(features=FeatureSpec(observations=comma_names(observations) or None))
    filters: list[str | None] = [f"kind == '{name}'" for name in kinds] or [None, None]
    with steps_bar("drift", quiet=json) as listener:
        found = compare_versions(
            one,
            two,
            config,
            first_where=filters[0],
            second_where=filters[1],
            listener=listener,
        )
    sets = kinds or list(names)
    if json:
        emit(
            {
                "sets": sets,
                "versions": [one.id, two.id],
                "verdict": found.verdict,
                "only_first": found.only_first,
                "only_second": found.only_second,
                "layouts": [
                    {**asdict(each), "verdict": each.drift.verdict} for each in found.layouts
                ],
            }
        )
        return
    for each in found.layouts:
        _show(each, sets)
    if not found.layouts:
        say(f"{sets[0]} and {sets[1]} have no fields in common.")
    for name, count in zip(sets, (found.only_first, found.only_second), strict=True):
        if count:
            say(f"{count:,} episodes of {name} have fields that the other has not.")


def _show(each: Compared, sets: list[str]) -> None:
    found = each.drift
    rows = [
        ("episodes", *found.episodes),
        ("steps", *found.rows),
    ]
    table(("", *sets), rows)
    inside = found.mmd_within
    within = f"between halves of {sets[0]}: {inside:.2g}" if inside is not None else ""
    readings = [
        ("AUC", found.auc, _said(found.auc_interval)),
        ("MMD^2", found.mmd, within),
        ("Frechet^2", found.frechet, "" if found.frechet is not None else "too few steps"),
        ("effective share", found.effective_share, f"of {sets[0]} weighted to be {sets[1]}"),
    ]
    table(("reading", "value", ""), readings)
    moved = [(c.column, c.shift, c.distance) for c in found.columns[:COLUMNS_SHOWN]]
    table(("column", "shift of the mean (std)", "KS distance"), moved)
    say(_sentence(each, sets))


def _said(interval: tuple[float, float] | None) -> str:
    return f"95 %: {interval[0]:.3f} to {interval[1]:.3f}" if interval else ""


def _sentence(each: Compared, sets: list[str]) -> str:
    found = each.drift
    if found.verdict == "unknown":
        return f"{sets[0]} and {sets[1]}: too few episodes to tell whether they differ."
    if found.verdict == "alike":
        return f"{sets[0]} and {sets[1]} are alike: a classifier can hardly tell them apart."
    most = f", most of all in {found.columns[0].column}" if found.columns else ""
    return (
        f"{sets[0]} and {sets[1]} {found.verdict}{most}: of a step of each, a classifier tells "
        f"which is which {found.auc:.0%} of the time."
    )
