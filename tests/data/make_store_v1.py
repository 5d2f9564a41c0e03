"""Makes `store-v1`: a small store of format 1 that every later release must open.

Run once when the format number was new, `python -m tests.data.make_store_v1`; the folder is never
made again, for its sense is to be old. A later format gets a script and a folder of its own.
"""

from __future__ import annotations

import datetime as dt
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.store import blocks, layout
from pipeline.store.catalog import parquet_bytes
from pipeline.store.commit import Draft
from pipeline.store.store import Store, open_store
from schemas.episode import Episode
from schemas.identity import digest, hash64
from schemas.metrics import MeasureConfig, MetricValue, ScoreSet
from schemas.version import Measure, MetricRecord, Overlay

HERE = Path(__file__).parent
STORE = HERE / "store-v1"
EXPECTED = HERE / "store-v1.json"


def episodes() -> list[Episode]:
    """Every ending, dtype family, nested space, extra, null and odd name there is."""
    ends = [
        {"terminated": True},
        {"truncated": True, "final_observation": "missing"},
        {"truncated": True, "final_observation": "copied"},
        {"actions": None},
        {"rewards": None, "actions": None},
    ]
    made = []
    for number, end in enumerate(ends):
        rows = 4 + (end.get("final_observation") != "missing")
        arguments = {
            "observations": {
                "state": np.arange(rows * 3, dtype=np.float32).reshape(rows, 3) + number,
                "hand": (np.full(rows, number, np.int16), np.full((rows, 2), 0.5)),
                "a/b": np.arange(rows, dtype=np.uint8),
            },
            "actions": {"arm": np.full((4, 2), number / 8), "grip": np.arange(4) % 2 == 0},
            "rewards": np.array([1, -0.0, np.inf, np.nan], np.float32),
            **end,
        }
        made.append(
            Episode(
                f"frozen/v0/{number}",
                task=["push", "reach", "täsk 🤖", None, ""][number],
                kind=["demonstration", "rollout", "synthetic"][number % 3],
                policy="scripted",
                policy_version="3",
                seed=number - 2,
                success=[True, False, None, True, None][number],
                collected_at=dt.datetime(2025, 1, 1 + number, 12, tzinfo=dt.UTC),
                fps=20.0,
                columns={"sigma": number / 4, "operator": "ann", "kind": "policy"},
                labels={"split": "train" if number < 3 else "test"},
                extras={"qpos": np.arange(5.0), "contact": np.zeros((4, 2), bool)},
                source="frozen",
                source_key=f"frozen#{number}",
                **arguments,
            )
        )
    return made


def long_episode() -> Episode:
    """Long enough for a shard."""
    steps = 4500
    return Episode(
        "frozen/v0/long",
        {
            "state": np.zeros((steps + 1, 2), np.float32),
            "camera": np.zeros((steps + 1, 2, 2, 3), np.uint8),
        },
        np.ones((steps, 1), np.float32),
        np.arange(steps) % 10 / 10,
        truncated=True,
        task="push",
    )


def make(root: Path) -> dict[str, dict[str, str]]:
    """Writes the store; returns the digests of the episodes of its versions by reference."""
    store = open_store(root, create=True)
    given = episodes()
    store.append(given[:3], message="first")
    store.append(given[3:], message="second")
    store.append([given[0].replace(seed=99)], message="refused")
    store.append([long_episode()], branch="images")
    _score(store, {"frozen/v0/0": 0.25, "frozen/v0/1": 0.75, "frozen/v0/2": 0.5})
    chosen = store.version().where("action_divergence < 0.6 and success", unscored="drop")
    chosen.commit(branch="clean", message="the good ones")
    store.tag("paper-v1", "main:2")
    store.branch("old", "main:1")
    store.delete_branch("old")
    erased = json.dumps({"id_hashes": [f"{hash64('frozen/v0/4'):016x}"]}).encode()
    store.catalog.objects.put({layout.erasure(1): erased})
    kept = {one.episode_id: digest(one) for one in given[:4]}
    return {
        "main": kept,
        "main:1": {one.episode_id: digest(one) for one in given[:3]},
        "paper-v1": kept,
        "clean": {given[0].episode_id: digest(given[0])},
        "images": {"frozen/v0/long": digest(long_episode())},
    }


def _score(store: Store, scores: dict[str, float]) -> None:
    names, values = list(scores), list(scores.values())
    data = parquet_bytes(pa.table({"episode_id": names, "action_divergence": values}))
    key, model = layout.overlay(layout.new_id()), layout.reference_model(layout.new_id())
    store.catalog.objects.put({key: data, model: b"model"})
    score_set = ScoreSet(
        id="0" * 31 + "1",
        metrics={"action_divergence": "1"},
        reference=store.version("main:1").id,
        config=MeasureConfig(),
        model=blocks.data_file(model, b"model"),
    )
    overlay = Overlay(
        file=blocks.data_file(key, data),
        score_set=score_set.id,
        columns=("action_divergence",),
        episodes=len(names),
    )
    value = MetricValue(value=0.5, standard_error=0.1, episodes=3, coverage=0.6)
    record = MetricRecord(score_set=score_set.id, value=value)
    operation = Measure(
        score_set=score_set, overlays=(overlay,), metrics={"action_divergence": record}
    )
    store.catalog.refs.publish(
        "main", lambda _head, _state: Draft((operation,)), message="measure", run_id="frozen-run"
    )


if __name__ == "__main__":
    shutil.rmtree(STORE, ignore_errors=True)
    expected = make(STORE)
    EXPECTED.write_text(json.dumps(expected, indent=1) + "\n")
