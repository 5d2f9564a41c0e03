"""`penstock annotate`: labels of episodes, from a file or by a rule, as a new version."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.output import Json, StoreRef, emit, note, say, table

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.store.reader import Version


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(
        "annotate",
        help="Add labels to episodes as columns of a new version; `revert` takes them back.\n\n"
        "Example: penstock annotate ./store --csv labels.csv\n\n"
        "penstock annotate ./store --split train=0.9,val=0.1 --seed 7\n\n"
        "penstock annotate ./store --weights quality --metric action_divergence",
    )(annotate)


def annotate(
    store: StoreRef,
    csv: Annotated[
        str | None, typer.Option("--csv", metavar="FILE", help="episode_id and columns to add.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option("--split", metavar="NAME=SHARE,...", help="Sides by a hash, for ever alike."),
    ] = None,
    by: Annotated[
        str, typer.Option("--by", metavar="COLUMN", help="Of --split: what stays together.")
    ] = "episode_id",
    seed: Annotated[int, typer.Option("--seed", help="Of --split.")] = 0,
    weights: Annotated[
        str | None,
        typer.Option("--weights", metavar="KIND", help="awr, returns, advantages or quality."),
    ] = None,
    temperature: Annotated[float, typer.Option("--temperature", help="Of --weights.")] = 0.1,
    metric: Annotated[
        str, typer.Option("--metric", metavar="COLUMN", help="That --weights quality ranks by.")
    ] = "action_divergence",
    name: Annotated[
        str | None, typer.Option("--name", help="The label's name: `split` or `weight`.")
    ] = None,
    branch: Annotated[str | None, typer.Option("--branch", help="Where the labels go.")] = None,
    message: Annotated[str | None, typer.Option("--message", "-m")] = None,
    json: Json = False,
) -> None:
    from pipeline.curation.label_file import read_labels
    from pipeline.curation.split import knows_copies, parse_split, split_labels
    from pipeline.store.store import open_version
    from schemas.errors import UsageError

    if sum(way is not None for way in (csv, split, weights)) != 1:
        raise UsageError("Expected one of --csv FILE, --split NAME=SHARE,... and --weights KIND.")
    version = open_version(store)
    name = name or ("split" if weights is None else "weight")
    if csv is not None:
        labels, how = read_labels(csv), f"csv {csv}"
    elif weights is not None:
        labels = _weights(version, weights, temperature, metric, name)
        how = f"weights {weights}"
    else:
        wanted = parse_split(split or "", by, seed)
        labels, how = split_labels(version, wanted, name), str(wanted)
        if not knows_copies(version):
            note(
                "penstock: copies are not known yet; `penstock measure --metrics duplicate_of` "
                "first keeps them on one side."
            )
    said = message or (how if csv is None else "")
    made = version.annotate(labels, branch=branch, message=said, how=how)
    columns = [one for one in labels.column_names if one != "episode_id"]
    counts: dict[str, int] = {}
    if split is not None:
        for side in labels[name].to_pylist():
            counts[side] = counts.get(side, 0) + 1
    if json:
        emit(
            {
                "version": made.id,
                "number": made.number,
                "branch": made.branch,
                "columns": columns,
                "episodes": labels.num_rows,
                "counts": counts,
            }
        )
        return
    if counts:
        table((name, "episodes"), sorted(counts.items()))
    say(f"{made.branch}:{made.number}: {', '.join(columns)} of {labels.num_rows:,} episodes")


def _weights(version: Version, kind: str, temperature: float, metric: str, name: str) -> pa.Table:
    """Labels of episode weights; says how many episodes they leave."""
    from pipeline.jobs.weights import episode_weights

    found = episode_weights(version, kind, temperature=temperature, metric=metric)
    note(
        f"penstock: {found.effective:,.1f} effective of {found.episodes:,} episodes, largest "
        f"share {found.largest_share:.1%}."
    )
    return found.table.rename_columns(["episode_id", name])
