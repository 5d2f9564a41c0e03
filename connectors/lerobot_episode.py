"""What the columns and tables of a LeRobot dataset say about one episode: order, ends, task, facts.

`connectors.lerobot` states the rules.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from connectors.facts import episode_facts
from connectors.lerobot_layout import FACTS_COLUMN, EpisodeRow
from schemas.errors import EpisodeError
from schemas.packed import Packed, Rows

Splits = list[tuple[str, int, int]]
"""Name, first episode and one past the last."""
TIME_SLACK = 1e-4
"""Seconds by which LeRobot itself lets a timestamp miss its place."""


def check_order(
    columns: Mapping[str, Rows],
    row: EpisodeRow,
    table: pa.Table,
    span: tuple[int, int],
    fps: float,
) -> None:
    """Refuses rows that are not the steps 0..T-1 of this episode at their times."""
    counted = np.arange(row.length)
    where = f"episode_{row.index}"
    owner = table.column("episode_index").slice(span[0], row.length).to_numpy()
    for name, came, expected in (
        ("episode_index", owner, np.full(row.length, row.index)),
        ("frame_index", columns["frame_index"], counted),
        ("index", columns["index"], counted + row.first),
    ):
        wrong = np.flatnonzero(np.asarray(came) != expected)
        if len(wrong):
            at = int(wrong[0])
            raise EpisodeError(
                f"Expected {name} {expected[at]} in row {at} of {where}, came "
                f"{np.asarray(came)[at]}: rows are missing or out of order.",
                code="gap",
                where=where,
            )
    times = np.asarray(columns["timestamp"], np.float64)
    slack = TIME_SLACK + np.spacing(np.abs(times).astype(np.float32))
    fits = np.abs(times - counted / fps) <= slack
    if not fits.all() or (np.diff(times) <= 0).any():
        at = int(np.argmin(fits)) if not fits.all() else int(np.argmax(np.diff(times) <= 0)) + 1
        raise EpisodeError(
            f"Expected the timestamp {at / fps:.4f} s in row {at} of {where} ({fps:g} steps per "
            f"second), came {times[at]:.4f}.",
            code="bad_timestamp",
            where=where,
        )


def task_of(columns: Mapping[str, Rows], tasks: Mapping[int, str], key: str) -> str | Packed | None:
    """Returns the task, a text per step where it changes, or None where there is none."""
    if "task_index" not in columns or not len(columns["task_index"]):
        return None
    numbers = np.asarray(columns["task_index"])
    if numbers.dtype.kind not in "iu":
        raise EpisodeError(
            f"Expected task_index as whole numbers in {key}, came {numbers.dtype}.",
            code="bad_dtype",
            where=key,
        )
    kinds, rows = np.unique(numbers, return_inverse=True)
    unknown = [int(n) for n in kinds if int(n) not in tasks]
    if unknown and tasks:
        raise EpisodeError(
            f"Expected task_index among {len(tasks)} tasks in {key}, came {unknown[0]}.",
            code="unreadable",
            where=key,
        )
    if not tasks:
        return None
    texts = [tasks[int(n)] for n in kinds]
    return (texts[0] or None) if len(texts) == 1 else Packed.texts(texts[at] for at in rows)


def _flag(columns: Mapping[str, Rows], name: str, key: str) -> np.ndarray | None:
    if name not in columns:
        return None
    flags = np.asarray(columns[name])
    if flags.dtype.kind != "b" and not np.isin(flags, (0, 1)).all():
        raise EpisodeError(
            f"Expected {name} of 0 and 1 only in {key}, came other values.",
            code="bad_dtype",
            where=key,
        )
    return flags.astype(bool)


def end_flags(columns: Mapping[str, Rows], steps: int, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns terminated and truncated, (T,) bool; the module's docstring states the rule."""
    done, cut, ended = (
        _flag(columns, f"next.{n}", key) for n in ("done", "truncated", "terminated")
    )
    truncated = cut if cut is not None else np.zeros(steps, bool)
    if ended is not None:
        return ended, truncated
    return (done if done is not None else np.zeros(steps, bool)) & ~truncated, truncated


def success_of(columns: Mapping[str, Rows], key: str) -> tuple[bool | None, np.ndarray | None]:
    """Returns the success, and its rows where they say more."""
    flags = _flag(columns, "next.success", key)
    if flags is None or not len(flags):
        return None, None
    says_more = bool(flags[:-1].any())
    return bool(flags.any()), flags if says_more else None


def stated_facts(row: EpisodeRow, splits: Splits) -> dict[str, Any]:
    """Facts of the table of episodes: our own sink's, or any further columns of others."""
    ours = row.facts.get(FACTS_COLUMN)
    if ours is None:
        named = [name for name, start, stop in splits if start <= row.index < stop]
        labels = {"split": named[0]} if named else {}
        facts = {n: v for n, v in row.facts.items() if v is not None and n != FACTS_COLUMN}
        return {**episode_facts(_plain(facts, row)), "labels": labels}
    try:
        stated = json.loads(ours)
        facts, columns, labels = (dict(stated[n]) for n in ("facts", "columns", "labels"))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise EpisodeError(
            f"Expected JSON of facts, columns and labels in {FACTS_COLUMN} of episode "
            f"{row.index}, came {str(ours)[:80]!r}.",
            code="unreadable",
            where=f"episode_{row.index}",
        ) from error
    return {"success": None, **episode_facts(facts), "columns": columns, "labels": labels}


def _plain(facts: Mapping[str, Any], row: EpisodeRow) -> dict[str, Any]:
    try:
        return {name: json.loads(json.dumps(value)) for name, value in facts.items()}
    except (TypeError, ValueError) as error:
        raise EpisodeError(
            f"Expected plain values in the table of episodes, row {row.index}: {error}.",
            code="unreadable",
            where=f"episode_{row.index}",
        ) from error


def splits_of(info: Mapping[str, Any]) -> Splits:
    """Returns `(name, first, last + 1)` of each split `"first:last + 1"`; others are left out."""
    stated = info.get("splits")
    found = []
    for name, span in (stated if isinstance(stated, dict) else {}).items():
        start, _, stop = str(span).partition(":")
        if start.isdecimal() and stop.isdecimal():
            found.append((name, int(start), int(stop)))
    return found
