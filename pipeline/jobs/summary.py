"""One version in numbers: what `penstock show` and `penstock stats` tell."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.quality.registry import DERIVED, METRICS
from pipeline.store.store import Store, Version
from schemas.errors import UsageError
from schemas.packed import Packed, Rows, Video
from schemas.rows import FLAGS
from schemas.spec import FieldSpec
from schemas.version import spec_document

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
MAX_QUANTILE_ROWS = 1_000_000
"""Quantiles of larger fields are of every k-th row."""


def describe(store: Store, version: Version) -> dict[str, Any]:
    """Returns the facts of one version, as `penstock show --json` prints them."""
    state = version.state
    table = version.episodes()
    return {
        "version": version.id,
        "number": version.number,
        "branch": version.branch,
        "tags": [name for name, ref in store.tags().items() if ref.id == version.id],
        "parent": version.parent.id if version.parent else None,
        "message": version.message,
        "created_at": version.created_at.isoformat(),
        "episodes": table.num_rows,
        "steps": int(np.sum(table["length"].to_numpy())) if table.num_rows else 0,
        "bytes": version.commit.totals.bytes,
        "linked": linked_share(version),
        "specs": {n: spec_document(spec).model_dump() for n, spec in version.specs.items()},
        "sources": [
            {
                "where": source.where,
                "format": source.format,
                "identity": source.identity,
                "guesses": list(source.guesses),
            }
            for source in state.sources.values()
        ],
        "metrics": metric_values(version, table),
        "derivation": state.derivation.model_dump() if state.derivation else None,
    }


def linked_share(version: Version) -> dict[str, Any]:
    """Returns how much of a version is linked: episodes, steps, and sources with their bytes."""
    parts = [part for part in version.state.parts if part.kind == "linked"]
    lists = {b.sources.key: b.sources for part in parts for b in part.blocks if b.sources}
    sizes: dict[str, int] = {}
    for file in lists.values():
        listed = version.store.source_files(file)
        sizes[listed.where] = sum(one.bytes for one in listed.files)
    return {
        "episodes": sum(part.episodes for part in parts),
        "steps": sum(part.steps for part in parts),
        "sources": [{"where": where, "bytes": size} for where, size in sizes.items()],
    }


def metric_values(version: Version, table: pa.Table) -> dict[str, dict[str, Any]]:
    """Returns each shown metric's value over the version's own episodes, with its coverage.

    The value that was measured holds for the episodes measured then. Where a version has others
    (it was curated, or has grown), the mean of its scored episodes is shown, over steps or over
    episodes as the metric says; nothing for a value that is no mean.
    """
    found = {}
    for name, record in version.state.metrics.items():
        column = table[DERIVED[name].source if name in DERIVED else name]
        if name in METRICS and METRICS[name].is_text:  # the share of episodes that have a text
            column = pc.is_valid(column)
        values = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
        scored = np.isfinite(values)
        lengths = table["length"].to_numpy().astype(float)
        by_steps = METRICS[name].weight == "steps" if name in METRICS else True
        weights = (lengths if by_steps else np.ones(len(values)))[scored]
        same = int(scored.sum()) == record.value.episodes and scored.all()
        mean = float(np.average(values[scored], weights=weights)) if weights.sum() else None
        is_mean = name not in DERIVED and name != "unique_share"
        found[name] = {
            "value": record.value.value if same else mean if is_mean else None,
            "standard_error": record.value.standard_error if same else None,
            "score_set": record.score_set,
            "coverage": float(scored.mean()) if len(scored) else 0.0,
            "episodes": int(scored.sum()),
        }
    return found


def field_stats(version: Version) -> dict[str, dict[str, Any]]:
    """Returns count, mean, std, min, max and quantiles of every field, one value per dimension.

    Fields of more than 64 dims (images) are described as one dimension. A field that the version's
    specs do not share is described for each spec that has it, as `SPEC:FIELD`. Encoded fields are
    described by their `encoding` and the `bytes` of all rows; nothing is decoded.
    """
    specs = version.specs
    names = [name for spec in specs.values() for name in spec.fields]
    found = {}
    for name in dict.fromkeys([*names, *FLAGS[:2]]):
        views: dict[str, str | None] = {name: None}
        if name not in FLAGS and len({spec.fields.get(name) for spec in specs.values()}) > 1:
            views = {f"{of}:{name}": of for of, spec in specs.items() if name in spec.fields}
        for said, of in views.items():
            mine = [spec.fields for key, spec in specs.items() if of in (None, key)]
            held = next((fields[name] for fields in mine if name in fields), None)
            try:
                if held is not None and held.encoding != "raw":
                    found[said] = _describe_encoded(version.iter_field(name, spec=of), held)
                    continue
                rows = np.asarray(version.field(name, spec=of))
            except UsageError:
                continue  # only some episodes have it
            flat = rows.reshape(len(rows), -1) if rows.size <= 64 * max(len(rows), 1) else None
            values = rows.reshape(-1, 1) if flat is None else flat
            found[said] = _describe(values.astype(np.float64, copy=False), len(rows))
    return found


def _describe_encoded(pieces: Iterable[Rows], field: FieldSpec) -> dict[str, Any]:
    """Sizes of encoded rows; those of a video are its media files', each counted once."""
    count, sizes, media = 0, [np.zeros(0, np.int64)], {}
    for rows in pieces:
        count += len(rows)
        if isinstance(rows, Packed):
            sizes.append(np.diff(rows.offsets))
        elif isinstance(rows, Video):
            media.update({one.sha256: one.size for one in rows.media})
    found: dict[str, Any] = {"count": count, "encoding": field.encoding}
    if field.encoding == "video":
        return {**found, "bytes": sum(media.values()), "media_files": len(media)}
    each = np.concatenate(sizes)
    found["bytes"] = int(each.sum())
    if len(each):
        spread = {"mean": float(each.mean()), "min": int(each.min()), "max": int(each.max())}
        found["row_bytes"] = spread
    return found


def _describe(values: np.ndarray, count: int) -> dict[str, Any]:
    if not len(values):
        return {"count": 0, "mean": [], "std": [], "min": [], "max": []}
    step = max(1, len(values) // MAX_QUANTILE_ROWS)
    quantiles = np.quantile(values[::step], list(QUANTILES.values()), axis=0)
    return {
        "count": count,
        "mean": values.mean(axis=0).tolist(),
        "std": values.std(axis=0).tolist(),
        "min": values.min(axis=0).tolist(),
        "max": values.max(axis=0).tolist(),
        **{name: row.tolist() for name, row in zip(QUANTILES, quantiles, strict=True)},
    }
