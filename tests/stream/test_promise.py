"""The promise of a stream, held to its whole length: one order, however it is read.

World sizes 1, 2, 3, 4 and 8, resumed at 20 random steps, from every residency that serves the
sampler, through a `DataLoader` with 0, 1 and 4 workers: the digest of the rows is always the same.
With PENSTOCK_LONG=1 all of these combined, which takes minutes.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from torch.utils.data import DataLoader

from pipeline.store.reader import Version
from pipeline.store.store import open_store
from pipeline.stream.loader import Stream
from tests.stream.conftest import made_episodes
from tests.stream.references import take

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

LONG = os.environ.get("PENSTOCK_LONG") == "1"
WORLDS = (1, 2, 3, 4, 8)
SAMPLERS: dict[str, dict[str, Any]] = {
    "transition": {"sampler": "transition"},
    "shuffle": {"sampler": "shuffle", "shuffle_window": 2},
}
RESIDENCIES = [
    *(("transition", residency) for residency in ("mmap", "ram")),
    *(("shuffle", residency) for residency in ("mmap", "ram", "windowed")),
]
STEPS, AFTER = 200, 4
RESUMES = np.random.default_rng(11).integers(0, STEPS - AFTER - 2, 20).tolist()


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Version:
    """Nine blocks of episodes, of some of which a part is kept."""
    store = open_store(tmp_path_factory.mktemp("promise") / "store", create=True)
    for start in range(0, 90, 10):
        store.append(made_episodes(range(start, start + 10), seed=start))
    kept = {"episode_id": ["e3", "e50", "e77"], "keep_start": [1, 2, 0], "keep_stop": [5, 9, 1]}
    return store.version().annotate(pa.table(kept))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("promise-cache")


def digest(steps: Sequence[Sequence[Any]]) -> str:
    """Of the rows of global batches, each given by the shares of its ranks."""
    sha = hashlib.sha256()
    for shares in steps:
        sha.update(np.concatenate([np.asarray(share["indices"]) for share in shares]).tobytes())
    return sha.hexdigest()


def ranks(version: Version, cache: Path, sampler: str, residency: Any, world_size: int) -> Any:
    return [
        Stream(
            version,
            **SAMPLERS[sampler],
            batch_size=24,
            seed=9,
            residency=residency,
            rank=rank,
            world_size=world_size,
            cache_dir=cache,
        )
        for rank in range(world_size)
    ]


def transposed(found: Sequence[Sequence[Any]]) -> list[Any]:
    return list(zip(*found, strict=True))


@pytest.fixture(scope="module")
def meant(version: Version, cache: Path) -> dict[str, list[Any]]:
    """What one process reads of each sampler's order, one batch after the other."""
    return {
        name: [[batch] for batch in take(ranks(version, cache, name, "mmap", 1)[0], STEPS)]
        for name in SAMPLERS
    }


@pytest.mark.parametrize("world_size", WORLDS)
@pytest.mark.parametrize(("sampler", "residency"), RESIDENCIES)
def test_every_world_residency_and_resume_reads_one_order(
    version: Version,
    cache: Path,
    meant: dict[str, list[Any]],
    sampler: str,
    residency: str,
    world_size: int,
) -> None:
    known = meant[sampler]
    streams = ranks(version, cache, sampler, residency, world_size)
    start = streams[0].state_dict()
    whole = transposed([take(one, STEPS) for one in streams])
    assert digest(whole) == digest(known)
    for stop in RESUMES:
        for one in streams:
            one.load_state_dict({**start, "step": stop})
        found = transposed([take(one, AFTER) for one in streams])
        assert digest(found) == digest(known[stop : stop + AFTER])


WORKERS = (
    list(itertools.product(RESIDENCIES, WORLDS, (0, 1, 4), (20,)))
    if LONG
    else list(itertools.product(RESIDENCIES, (2,), (0, 1, 4), (2,)))
)


@pytest.mark.parametrize(("form", "world_size", "workers", "resumes"), WORKERS)
def test_any_number_of_workers_reads_one_order(
    version: Version,
    cache: Path,
    meant: dict[str, list[Any]],
    form: tuple[str, str],
    world_size: int,
    workers: int,
    resumes: int,
) -> None:
    datasets = [one.as_iterable_dataset() for one in ranks(version, cache, *form, world_size)]
    start = datasets[0].state_dict(0)
    for stop in RESUMES[:resumes]:
        found = []
        for dataset in datasets:
            dataset.load_state_dict({**start, "step": stop})
            loader = DataLoader(dataset, batch_size=None, num_workers=workers)
            found.append(take(loader, AFTER + 2))
        assert digest(transposed(found)) == digest(meant[form[0]][stop : stop + AFTER + 2])
