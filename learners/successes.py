"""Rollouts that succeeded, as a version beside all of them; what a growing run read at first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from learners.growing import Growing
from pipeline.store.reader import Version
from pipeline.store.store import Store


def succeeded(online: Version, branch: str) -> Version | None:
    """Returns the rollouts that say that they succeeded, as a version; None if none does.

    It is the newest of the branch `<branch>-successes`, which shares all data with the rollouts.
    """
    chosen = online.where("success")
    if not len(chosen):
        return None
    name = f"{branch}-successes"
    head = Store(online.store).branches().get(name)
    if head is not None and _ids(head.episodes(columns=["episode_id"])) == _ids(chosen.episodes()):
        return head
    return chosen.commit(name)


def _ids(episodes: pa.Table) -> list[str]:
    found: list[str] = episodes["episode_id"].to_pylist()
    return found


def growing_at_first(store: Store, document: Mapping[str, Any]) -> Growing:
    """Returns what a run's first batch was drawn from besides its offline versions.

    Args:
        store: that took the rollouts.
        document: of a checkpoint that holds the position of a stream.
    """
    config, offline = document["config"], len(document["data"])
    first = [history[0][1] for history in document["stream"]["versions"]]
    joins = len(first) > offline + 1
    has_successes = joins and first[-1] != first[offline]
    return Growing(
        online=store.version(first[offline]),
        offline_fraction=config["offline_fraction"],
        joins=joins,
        successes=store.version(first[-1]) if has_successes else None,
    )
