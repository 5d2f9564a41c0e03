"""Published policies: whole files, the newest few, and nothing that is no policy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from pipeline.store import policies
from pipeline.store.store import open_store
from schemas.errors import NameTakenError, NotFoundError, TooLargeError, UntrustedError
from tests.store.makers import episode


def made(step: int) -> bytes:
    header = {"penstock": json.dumps({"step": step})}
    return save({"w": np.full(4, step, np.float32)}, header)


def test_the_newest_few_stay(tmp_path: Path) -> None:
    catalog = open_store(tmp_path / "s", create=True).catalog
    for step in (0, 10, 200, 3000, 40_000, 500_000, 6_000_000):
        policies.publish(catalog, "iql-1", step, made(step), kept=3)
    policies.publish(catalog, "other", 7, made(7))
    assert policies.steps(catalog, "iql-1") == [40_000, 500_000, 6_000_000]
    found = policies.newest(catalog, "iql-1")
    assert found is not None
    assert (found.step, found.data) == (6_000_000, made(6_000_000))
    assert policies.newest(catalog, "iql-1", after=6_000_000) is None
    policies.publish(catalog, "iql-1", 6_000_000, made(6_000_000))  # once more is no harm
    with pytest.raises(NameTakenError):
        policies.publish(catalog, "iql-1", 6_000_000, made(1))
    with pytest.raises(NotFoundError, match="did you mean 'iql-1'"):
        policies.newest(catalog, "iql-2")


def test_collection_and_doctor_leave_them(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", create=True)
    store.append([episode("e0", 5)])
    policies.publish(store.catalog, "run", 3, made(3))
    store.gc()
    assert policies.steps(store.catalog, "run") == [3]
    assert store.doctor().problems == []


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", UntrustedError),
        (b"\x80\x04K\x01.", UntrustedError),
        ((2**40).to_bytes(8, "little") + b"{}", UntrustedError),
        ((2**21).to_bytes(8, "little") + b"{" * 2**21, TooLargeError),
        (save({"w": np.zeros(1)}), UntrustedError),
        (save({"w": np.zeros(1)}, {"penstock": "[1]"}), UntrustedError),
        ((200_000).to_bytes(8, "little") + b"[" * 200_000, UntrustedError),
    ],
    ids=["nothing", "pickle", "cut short", "long header", "no header", "no object", "deep"],
)
def test_what_is_no_policy_is_refused(tmp_path: Path, data: bytes, error: type[Exception]) -> None:
    catalog = open_store(tmp_path / "s", create=True).catalog
    with pytest.raises(error):
        policies.publish(catalog, "run", 1, data)
    assert policies.steps(catalog, "run") == []
    with pytest.raises(Exception, match="run name"):
        policies.publish(catalog, "../up", 1, made(1))
