"""A look at a selection before it is committed: what it keeps, of what, and what each step cost."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.store.choose import choose
from pipeline.store.selection import Selection
from schemas import filter as filters
from schemas.errors import UsageError, missing_extra
from schemas.filter_ast import And

PLOT_COLUMNS = 11
FORMATS = (".png", ".svg", ".pdf", ".html")


def preview(selection: Selection) -> dict[str, Any]:
    """Returns counts of a selection: all, by task, by step, by part of its filter, by column."""
    table = selection.version.episodes(columns=["task", "length"])
    lengths, mask = table["length"].to_numpy(), selection.mask
    steps = int(lengths[mask].sum())
    if selection.labels is not None:
        steps = int(
            (
                selection.labels["keep_stop"].to_numpy() - selection.labels["keep_start"].to_numpy()
            ).sum()
        )
    return {
        "episodes": len(selection),
        "of": len(mask),
        "steps": steps,
        "of_steps": int(lengths.sum()),
        "dropped": dict(selection.derivation.dropped),
        "clauses": clause_rows(selection),
        "tasks": task_rows(selection),
        "preview": column_rows(selection),
    }


def task_rows(selection: Selection) -> list[dict[str, Any]]:
    """Returns how many episodes of each task are kept, the most frequent first."""
    tasks = selection.version.episodes(columns=["task"])["task"].to_pylist()
    found: dict[str | None, list[int]] = {}
    for task, is_kept in zip(tasks, selection.mask, strict=True):
        counts = found.setdefault(task, [0, 0])
        counts[0] += int(is_kept)
        counts[1] += 1
    ordered = sorted(found.items(), key=lambda item: (-item[1][1], str(item[0])))
    return [{"task": task, "kept": kept, "of": count} for task, (kept, count) in ordered]


def clause_rows(selection: Selection) -> list[dict[str, Any]]:
    """Returns, for each part of the filter that `and` joins, what it leaves out.

    `dropped` counts the episodes that fail it, `alone` those that fail no other part: what would
    come back without it.
    """
    where = selection.derivation.where
    if where is None:
        return []
    tree = filters.parse(where)
    parts = tree.operands if isinstance(tree, And) else (tree,)
    table = selection.version.episodes()
    unscored = selection.derivation.unscored or "drop"
    failed = np.stack([~choose(table, str(part), unscored=unscored).mask for part in parts])
    alone = failed & (failed.sum(axis=0) == 1)
    return [
        {"clause": str(part), "dropped": int(one.sum()), "alone": int(only.sum())}
        for part, one, only in zip(parts, failed, alone, strict=True)
    ]


def column_rows(selection: Selection) -> list[dict[str, Any]]:
    """Returns, for each numeric column, how the kept episodes differ from those left out."""
    rows = []
    for name, values in _numbers(selection).items():
        kept = values[selection.mask & np.isfinite(values)]
        left = values[~selection.mask & np.isfinite(values)]
        if len(kept):
            rows.append(
                {
                    "column": name,
                    "kept_mean": float(kept.mean()),
                    "left_out_mean": float(left.mean()) if len(left) else None,
                    "kept_min": float(kept.min()),
                    "kept_max": float(kept.max()),
                }
            )
    return rows


def figure(selection: Selection) -> Any:
    """Returns a matplotlib figure: kept against left out, by task and by column."""
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - an optional extra
    except ImportError:
        raise missing_extra("plot", "matplotlib") from None
    columns = {
        name: values
        for name, values in _numbers(selection).items()
        if len(np.unique(values[np.isfinite(values)])) > 1
    }
    scored = selection.version.state.metrics
    shown = sorted(columns, key=lambda name: name not in scored)[:PLOT_COLUMNS]
    rows = -(-(len(shown) + 1) // 3)
    made = Figure(figsize=(12, 3 * rows), layout="constrained")
    axes = made.subplots(rows, 3, squeeze=False).reshape(-1)
    tasks = task_rows(selection)[:12]
    places = np.arange(len(tasks))
    axes[0].barh(places, [row["of"] for row in tasks], color="0.8", label="left out")
    axes[0].barh(places, [row["kept"] for row in tasks], color="C0", label="kept")
    axes[0].set_yticks(places, [str(row["task"])[:24] for row in tasks])
    axes[0].set(title="episodes by task")
    axes[0].legend()
    for at, name in zip(axes[1:], shown, strict=False):
        values = columns[name]
        finite = np.isfinite(values)
        bins = np.histogram_bin_edges(values[finite], bins=30)
        groups = [values[finite & selection.mask], values[finite & ~selection.mask]]
        at.hist(groups, bins=bins, stacked=True, color=["C0", "0.8"], label=["kept", "left out"])
        at.set(title=name, ylabel="episodes")
    for unused in axes[len(shown) + 1 :]:
        unused.set_axis_off()
    made.suptitle(f"{len(selection):,} of {len(selection.mask):,} episodes")
    return made


def write_plot(selection: Selection, path: str) -> None:
    """Writes `figure` as a picture, or as a page of its own with the counts.

    Raises:
        UsageError: if the file's name does not say which.
    """
    file = Path(path)
    if file.suffix not in FORMATS or not file.parent.is_dir():
        raise UsageError(
            f"Expected a file that ends in {', '.join(FORMATS)}, in a folder that exists, came "
            f"{path!r}."
        )
    sink = io.BytesIO()
    is_page = file.suffix == ".html"
    figure(selection).savefig(sink, format="png" if is_page else file.suffix[1:])
    file.write_bytes(_page(selection, sink.getvalue()) if is_page else sink.getvalue())


def _page(selection: Selection, picture: bytes) -> bytes:
    told = preview(selection)
    tables = [
        _table(("step", "left out"), told["dropped"].items()),
        _table(("part of the filter", "left out", "alone"), map(dict.values, told["clauses"])),
        _table(("task", "kept", "of"), map(dict.values, told["tasks"])),
    ]
    title = f"{told['episodes']:,} of {told['of']:,} episodes"
    image = base64.b64encode(picture).decode()
    return (
        f"<!doctype html><meta charset=utf-8><title>{title}</title>"
        f"<style>body{{font-family:sans-serif}}td,th{{padding:2px 12px;text-align:left}}</style>"
        f"<h1>{title}</h1><img alt='' src='data:image/png;base64,{image}'>{''.join(tables)}"
    ).encode()


def _table(columns: tuple[str, ...], rows: Any) -> str:
    head = "".join(f"<th>{html.escape(name)}" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}" for cell in row) for row in rows
    )
    return f"<table><tr>{head}{body}</table>" if body else ""


def _numbers(selection: Selection) -> dict[str, np.ndarray]:
    """The numeric columns as float64, null as NaN."""
    table = selection.version.episodes()
    return {
        field.name: table[field.name].cast(pa.float64()).to_numpy()
        for field in table.schema
        if pa.types.is_floating(field.type) or pa.types.is_integer(field.type)
    }
