"""The store's own benchmark: commits against the disk beneath them, queries and curation at size.

A commit is compared with what the disk itself takes: as many files created and synced, and as many
folders synced, timed in turns with the commits. Latency is looked at early and late in the history,
because it must not grow with it.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.store import blocks, ids, layout
from pipeline.store.catalog import parquet_bytes
from pipeline.store.commit import Draft
from pipeline.store.disk import Disk
from pipeline.store.store import Store, Version, open_store
from schemas.episode import Episode
from schemas.table import FACT_COLUMNS, PLACE_COLUMNS
from schemas.version import Append, Commit, Part, State

EARLY = slice(50, 150)
LATE = slice(900, 1000)
COMPACT_EVERY = 256


def bench_store(commits: int = 1_000, rows: int = 1_000_000) -> dict[str, Any]:
    """Measures commits, compaction, SQL and curation on the local disk.

    Args:
        commits: of one 200-step episode of 7 arrays each.
        rows: of the episode table that is queried; a tenth of them is curated.

    Returns:
        Milliseconds, bytes and ratios by name.
    """
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        root = Path(folder)
        result = _commits(root, commits)
        result |= _wide_query(root, rows)
        result |= _curation(root, max(rows // 10, 1_000))
    return result


def episode(number: int, rng: np.random.Generator, length: int = 200) -> Episode:
    """A 200-step episode whose rows hold 7 arrays, flags included."""
    return Episode(
        f"bench/{number}",
        {"observations": rng.normal(size=(length + 1, 11)).astype(np.float32)},
        rng.normal(size=(length, 3)).astype(np.float32),
        rng.normal(size=length).astype(np.float32),
        truncated=np.arange(length) == length - 1,
    )


def _commits(root: Path, commits: int) -> dict[str, Any]:
    store = open_store(root / "commits", create=True)
    rng = np.random.default_rng(0)
    wall, cpu, raw = [], [], []
    appended = rewritten = 0
    for number in range(commits):
        made = episode(number, rng)
        began, busy = time.perf_counter(), time.process_time()
        version = store.append([made])
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - busy)
        appended += _bytes(version.state.parts[-1])
        if number % 10 == 0:
            raw.append(_raw_syncs(root))
        if number % COMPACT_EVERY == COMPACT_EVERY - 1:
            for commit in store.compact().commits:
                rewritten += sum(_bytes(o.added) for o in commit.operations if o.op == "compact")
    milliseconds = np.array(wall) * 1e3
    found: dict[str, Any] = {
        "commits": commits,
        "commit_ms": float(np.median(milliseconds)),
        "commit_cpu_ms": float(np.median(cpu) * 1e3),
        "raw_syncs_ms": float(np.median(raw) * 1e3),
        "write_amplification": (appended + rewritten) / appended,
        "parts": len(store.version().state.parts),
    }
    if commits >= LATE.stop:
        early, late = (float(np.median(milliseconds[span])) for span in (EARLY, LATE))
        found |= {"early_ms": early, "late_ms": late, "late_to_early": late / early}
    return found


def _raw_syncs(root: Path) -> float:
    """Seconds that the disk takes for what a commit does: 4 files, 4 folders, a link."""
    disk = Disk()
    folder = root / "raw"
    disk.mkdir(folder)
    began = time.perf_counter()
    name = layout.new_id()
    for number in range(4):
        disk.create(folder / f"{name}-{number}", bytes(4_096))
    disk.link(folder / f"{name}-3", folder / f"{name}-link")
    for _ in range(4):
        disk.sync_dir(folder)
    return time.perf_counter() - began


def _bytes(part: Part) -> int:
    return part.rows.bytes + sum(block.bytes for block in part.blocks)


def _wide_query(root: Path, rows: int) -> dict[str, Any]:
    """Filter and group-by over an episode table of 40 columns, cold and warm."""
    store = open_store(root / "wide", create=True)
    _append_rows(store, rows, extra=22)
    sql = (
        "SELECT task, count(*), avg(episode_return) FROM episodes "
        "WHERE success AND q7 > 0.5 AND length > 200 GROUP BY task"
    )
    version = open_store(root / "wide").version()
    times = []
    for _ in range(6):
        began = time.perf_counter()
        version.query(sql)
        times.append((time.perf_counter() - began) * 1e3)
    return {
        "query_rows": rows,
        "query_columns": version.episodes().num_columns,
        "query_cold_ms": times[0],
        "query_warm_ms": float(np.median(times[1:])),
    }


def _curation(root: Path, rows: int) -> dict[str, Any]:
    """Curates half of many episodes and weighs what that wrote."""
    store = open_store(root / "curated", create=True)
    version = _append_rows(store, rows, extra=2)
    before = _weight(root / "curated")
    began = time.perf_counter()
    version.where("q1 < quantile(q1, 0.5)").commit(branch="half")
    seconds = time.perf_counter() - began
    return {
        "curated_of": rows,
        "curate_seconds": seconds,
        "curate_bytes": _weight(root / "curated") - before,
    }


def _weight(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _append_rows(store: Store, rows: int, *, extra: int, parts: int = 20) -> Version:
    """Commits episode rows without arrays: only the table is of interest."""
    rng = np.random.default_rng(0)
    operations = []
    for number in range(parts):
        count = rows // parts
        table = _table(number, count, extra, rng)
        pairs = zip(table["episode_id"].to_pylist(), table["digest"].to_pylist(), strict=True)
        name, data, index = layout.new_id(), parquet_bytes(table), ids.encode(ids.keys(pairs))
        files = {layout.episode_rows(name): data, layout.id_index(name): index}
        store.catalog.objects.put(files)
        part = Part(
            id=name,
            episodes=count,
            steps=int(np.sum(table["length"].to_numpy())),
            rows=blocks.data_file(layout.episode_rows(name), data),
            blocks=(),
        )
        operations.append(
            Append(parts=(part,), known=(blocks.data_file(layout.id_index(name), index),))
        )

    def plan(_head: Commit | None, _state: State) -> Draft:
        return Draft(tuple(operations))

    store.catalog.refs.publish("main", plan, message="rows", run_id=layout.new_id())
    return store.version()


def _table(part: int, count: int, extra: int, rng: np.random.Generator) -> pa.Table:
    texts = {"source": "bench", "kind": "rollout", "final_observation": "present"}
    made: dict[str, Any] = {
        "episode_id": [f"bench/{part}/{k}" for k in range(count)],
        "task": rng.choice(["push", "reach", "open"], count),
        "length": rng.integers(10, 1_000, count),
        "episode_return": rng.normal(size=count),
        "success": rng.random(count) < 0.5,
        "terminated": np.ones(count, bool),
        "truncated": np.zeros(count, bool),
        "digest": [f"{value:016x}" + "0" * 48 for value in rng.integers(0, 2**63, count)],
        "spec": ["default"] * count,
        **{name: [text] * count for name, text in texts.items()},
    }
    columns = [
        pa.array(made[field.name], field.type)
        if field.name in made
        else pa.nulls(count, field.type)
        for field in (*FACT_COLUMNS, *PLACE_COLUMNS)
    ]
    own = [pa.array(rng.random(count)) for _ in range(extra)]
    fields = [*FACT_COLUMNS, *PLACE_COLUMNS, *((f"q{k}", pa.float64()) for k in range(extra))]
    return pa.Table.from_arrays(
        [*columns, *own],
        schema=pa.schema([f if isinstance(f, pa.Field) else pa.field(*f) for f in fields]),
    )
