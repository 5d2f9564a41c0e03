"""Where everything lives in a store: the only file that spells keys.

Keys are relative, `/`-joined, and made of our own words, numbers and uuids; names that people
choose (branches, tags, runs) are checked here before they become part of one.
"""

from __future__ import annotations

import re
import uuid

from schemas.errors import UsageError

STORE = "penstock.json"
BRANCHES = "refs/branches"
TAGS = "refs/tags"
ERASURES = "refs/erasures"
RUNS = "refs/runs"
POLICIES = "policies"
LEASES = "leases"
MARKS = "gc"
PROBES = "probes"
SINGLE_WRITER = "single-writer.json"
DATA = (
    "shards",
    "tails",
    "media",
    "episodes",
    "overlays",
    "selections",
    "steps",
    "sources",
    "quarantine",
    "links",
)
"""Folders of immutable files that only commits make visible."""

_NAME = re.compile(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
_UUID = re.compile(r"\A[0-9a-f]{32}\Z")


def new_id() -> str:
    """Returns a fresh uuid as 32 hex digits."""
    return uuid.uuid4().hex


def is_name(text: str) -> bool:
    """True if a text could be a branch or tag name."""
    return bool(_NAME.match(text)) and not _UUID.match(text)


def check_name(name: str, what: str) -> str:
    """Returns a branch or tag name that is fit to be part of a key.

    Raises:
        UsageError: if it is not.
    """
    if not _NAME.match(name):
        raise UsageError(
            f"Expected a {what} name of letters, digits, '.', '_' and '-' that starts with a "
            f"letter or digit (at most 128), came {name!r}.",
            where=name,
        )
    if _UUID.match(name):
        raise UsageError(f"Expected a {what} name that is not a version id, came {name!r}.")
    return name


def branch(name: str) -> str:
    """Folder of a branch's commits."""
    return f"{BRANCHES}/{name}"


def commit(branch_name: str, number: int) -> str:
    """Key of one commit."""
    return f"{BRANCHES}/{branch_name}/{number:012d}.json"


def head_hint(branch_name: str) -> str:
    """Key of the advisory number of a recent commit; never trusted."""
    return f"{BRANCHES}/{branch_name}/_head"


def tag(name: str) -> str:
    """Key of a tag."""
    return f"{TAGS}/{name}.json"


def erasure(number: int) -> str:
    """Key of one list of erased episodes."""
    return f"{ERASURES}/{number:012d}.json"


def shard(block: str) -> str:
    """Folder of a shard's Zarr group."""
    return f"shards/{block}"


def shard_files(block: str) -> str:
    """Key of a shard's list of files."""
    return f"shards/{block}/files.json"


def tail(block: str) -> str:
    """Key of a tail."""
    return f"tails/{block}.arrow"


def link(block: str) -> str:
    """Key of a linked block's description."""
    return f"links/{block}.json"


def source_files(name: str) -> str:
    """Key of a list of a source's files, which linked blocks share."""
    return f"links/{name}.files.json"


def media(sha256: str, again: str = "") -> str:
    """Key of a media file; `again` tells apart files of equal content."""
    return f"media/{sha256}-{again}" if again else f"media/{sha256}"


def sha256_of(key: str) -> str:
    """Returns the SHA-256 that a media file's key states."""
    return key.removeprefix("media/").partition("-")[0]


def episode_rows(part: str) -> str:
    """Key of a part's episode rows."""
    return f"episodes/{part}.parquet"


def id_index(part: str) -> str:
    """Key of a sorted id index."""
    return f"episodes/{part}.ids"


def overlay(name: str) -> str:
    """Key of an overlay's columns."""
    return f"overlays/{name}.parquet"


def reference_model(name: str) -> str:
    """Key of a score set's frozen reference model."""
    return f"overlays/{name}.npz"


def lease(name: str) -> str:
    """Key of a job's lease."""
    return f"{LEASES}/{name}.json"


def turn(role: str, number: int) -> str:
    """Key of one turn at a role that only one process has at a time."""
    return f"{LEASES}/{role}/{number:012d}.json"


def mark(name: str) -> str:
    """Key of a list of files to be deleted."""
    return f"{MARKS}/{name}.json"


def selection(name: str) -> str:
    """Key of a selection."""
    return f"selections/{name}.parquet"


def quarantine(name: str) -> str:
    """Key of a list of refused episodes."""
    return f"quarantine/{name}.parquet"


def run_reference(run: str, step: int) -> str:
    """Key of what a learner's run reads from a step on."""
    return f"{RUNS}/{run}/{step:012d}.json"


def policy(run: str, step: int) -> str:
    """Key of a policy that a run published after some updates."""
    return f"{POLICIES}/{run}/{step:012d}.safetensors"


def run_record(run_id: str) -> str:
    """Key of the record of one job's run."""
    return f"runs/{check_run_id(run_id)}.json"


def check_run_id(run_id: str) -> str:
    """Returns a run id that is fit to be part of a key.

    Raises:
        UsageError: if it is not.
    """
    if not _NAME.match(run_id):
        raise UsageError(
            f"Expected a run id of letters, digits, '.', '_' and '-', came {run_id!r}."
        )
    return run_id
