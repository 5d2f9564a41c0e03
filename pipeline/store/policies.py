"""Policies that learners publish for actors: the newest weights of each run, kept beside the data.

A policy is one safetensors file, `policies/<run>/<step>.safetensors`, created exclusively and never
changed. Its header says in JSON what it is; nothing in it can be run. Only the newest few of a run
are kept: whoever acted by an older one has stamped its rollouts with run and step.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from pipeline.store import layout
from pipeline.store.catalog import Catalog
from schemas.errors import NameTakenError, NotFoundError, TooLargeError, UntrustedError, suggest

MAX_BYTES = 256 << 20
HEADER_BYTES = 1 << 20
KEPT = 5
"""Policies of a run that stay."""
_FILE = re.compile(r"\A(\d{12})\.safetensors\Z")


@dataclass(frozen=True)
class Policy:
    """One published policy."""

    run: str
    step: int
    """Updates that made it."""
    data: bytes
    """The safetensors file."""

    @property
    def sha256(self) -> str:
        """Of the file, as hex."""
        return hashlib.sha256(self.data).hexdigest()


def publish(catalog: Catalog, run: str, step: int, data: bytes, kept: int = KEPT) -> None:
    """Publishes a policy, and lets go of those that are older than the newest few.

    Args:
        catalog: the store.
        run: name of the run.
        step: updates that made it.
        data: a safetensors file whose metadata holds a JSON object under `penstock`.
        kept: how many of the run stay.

    Raises:
        TooLargeError, UntrustedError: if it is no such file.
        NameTakenError: if the run has published something else under this step.
    """
    layout.check_name(run, "run")
    read_header(data)
    key = layout.policy(run, step)
    if not catalog.objects.put_if_absent(key, data) and catalog.objects.read(key) != data:
        raise NameTakenError(
            f"Expected the policy that run {run!r} published at step {step}, came another one; "
            f"begin a new run.",
            where=key,
        )
    for old in steps(catalog, run)[:-kept]:
        catalog.objects.delete(layout.policy(run, old))


def steps(catalog: Catalog, run: str) -> list[int]:
    """Returns the steps whose policies a run has there, the newest last."""
    names = catalog.objects.names(f"{layout.POLICIES}/{layout.check_name(run, 'run')}")
    return sorted(int(found[1]) for found in map(_FILE.match, names) if found)


def runs(catalog: Catalog) -> list[str]:
    """Returns the names of the runs that published policies."""
    return sorted(name for name in catalog.objects.names(layout.POLICIES) if layout.is_name(name))


def newest(catalog: Catalog, run: str, after: int = -1) -> Policy | None:
    """Returns a run's newest policy; None if it has none that is newer than a step.

    Raises:
        NotFoundError: if the run never published any, naming the nearest.
    """
    while True:
        known = steps(catalog, run)
        if not known:
            raise NotFoundError(
                f"Expected a run that publishes policies, came {run!r}; "
                f"{suggest(run, runs(catalog))}",
                where=catalog.url,
            )
        if known[-1] <= after:
            return None
        try:
            return Policy(run, known[-1], catalog.objects.read(layout.policy(run, known[-1])))
        except FileNotFoundError:  # newer ones came meanwhile
            continue


def read_header(data: bytes) -> dict[str, Any]:
    """Returns the document in a policy's header; no tensor is read.

    Raises:
        TooLargeError: for a file or header that is too long.
        UntrustedError: if it is no such file.
    """
    if len(data) > MAX_BYTES:
        raise TooLargeError(
            f"Expected a policy of at most {MAX_BYTES:,} bytes, came {len(data):,}."
        )
    size = int.from_bytes(data[:8], "little")
    if HEADER_BYTES < size <= len(data) - 8:
        raise TooLargeError(
            f"Expected a policy's header of at most {HEADER_BYTES:,} bytes, came {size:,}."
        )
    try:
        document = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["penstock"])
    except (ValueError, KeyError, TypeError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise UntrustedError(
            "Expected a safetensors file with a JSON object under `penstock` in its metadata, came "
            "something else."
        )
    return document
