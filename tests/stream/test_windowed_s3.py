"""A window of blocks over a store in S3: the batches of a local one, whatever the network does."""

from __future__ import annotations

from concurrent.futures import wait
from pathlib import Path
from typing import Any

import boto3
import pytest

from pipeline.store.catalog import Catalog
from pipeline.store.patience import Patience
from pipeline.store.s3 import S3Objects
from pipeline.store.store import Store, open_store
from pipeline.stream.loader import Stream
from schemas.errors import DamagedStoreError, TransientError
from tests.store.remote_fixtures import Bucket, bucket, moto  # noqa: F401
from tests.store.servers import Request, Trouble, once
from tests.stream.conftest import made_episode, made_episodes
from tests.stream.test_residency import sha_of

FORM: dict[str, Any] = {"sampler": "shuffle", "shuffle_window": 2, "batch_size": 40}
QUICK = Patience(tries=3, first=0.01, longest=0.02)


def fill(store: Store) -> Store:
    """Adds eight blocks, the last of them a shard, the others tails."""
    for start in range(0, 70, 10):
        store.append(made_episodes(range(start, start + 10), seed=start))
    store.append([made_episode(99, 5_000)])
    return store


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return fill(open_store(tmp_path_factory.mktemp("local") / "store", create=True))


@pytest.fixture
def remote(local: Store, bucket: Bucket, moto: str, cache_dir: Path) -> Store:  # noqa: F811
    """The same store, put into a bucket file by file."""
    client = boto3.client("s3", endpoint_url=moto)
    root = Path(local.url)
    for file in filter(Path.is_file, root.rglob("*")):
        key = f"robots/{file.relative_to(root)}"
        client.put_object(Bucket=bucket.name, Key=key, Body=file.read_bytes())
    return open_store(bucket.url)


def stream(store: Store, **settings: Any) -> Stream:
    return Stream(store.version(), framework="numpy", **{**FORM, **settings})


def is_block(request: Request) -> bool:
    return request.method == "GET" and ("/shards/" in request.path or "/tails/" in request.path)


def all_fetched(opened: Stream) -> int:
    """Waits until nothing is being fetched, and returns how many blocks the buffer holds."""
    records = opened.feed.at(0).windowed
    assert records is not None
    wait([fetched for _, fetched in records._held.values()])
    return records.slots


def test_batches_are_those_of_a_local_store(
    local: Store,
    remote: Store,
    bucket: Bucket,  # noqa: F811
) -> None:
    mapped = stream(local, residency="mmap")
    steps = mapped.transitions // 40 * 2
    whole = sha_of([mapped], steps)
    bucket.proxy.trouble = once(is_block, Trouble(answer=(503, "SlowDown")), 5)  # type: ignore[assignment]
    assert sha_of([stream(remote, residency="windowed")], steps) == whole
    bucket.proxy.trouble = once(is_block, Trouble(cut=True), 2)  # type: ignore[assignment]
    ranks = [stream(remote, residency="windowed", rank=r, world_size=2) for r in range(2)]
    assert sha_of(ranks, steps) == whole


def test_no_more_is_read_than_there_is_room_for(remote: Store, bucket: Bucket) -> None:  # noqa: F811
    opened = stream(open_store(bucket.url), residency="windowed", shuffle_window=1, batch_size=1)
    bucket.proxy.requests.clear()
    next(opened)
    slots = all_fetched(opened)
    asked = {r.path.split("?")[0].split("/")[4] for r in bucket.proxy.requests if is_block(r)}
    assert len(asked) == slots == 2 < len(remote.version().index().data_ids)


def test_a_store_that_does_not_answer_is_told_and_asked_again(
    remote: Store,
    bucket: Bucket,  # noqa: F811
) -> None:
    hasty = Store(Catalog(S3Objects(bucket.url, patience=QUICK), create=False))
    opened = stream(hasty, residency="windowed")
    bucket.proxy.trouble = lambda request: (
        Trouble(answer=(503, "SlowDown")) if is_block(request) else None
    )
    with pytest.raises(TransientError, match="run it again later"):
        next(opened)
    all_fetched(opened)  # those asked for ahead have failed as well, with nobody waiting
    bucket.proxy.trouble = lambda _request: None
    expected = stream(remote, residency="mmap")
    assert sha_of([opened], 20) == sha_of([expected], 20)


def test_a_block_that_is_not_what_it_was_is_named(
    remote: Store,
    bucket: Bucket,  # noqa: F811
    moto: str,  # noqa: F811
) -> None:
    opened = stream(open_store(bucket.url), residency="windowed")
    client = boto3.client("s3", endpoint_url=moto)
    tails = client.list_objects_v2(Bucket=bucket.name, Prefix="robots/tails/")["Contents"]
    keys = [tail["Key"] for tail in tails]
    held = {k: client.get_object(Bucket=bucket.name, Key=k)["Body"].read() for k in keys}
    for damage in (None, lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: data[:-9]):
        for key in keys:
            if damage is None:
                client.delete_object(Bucket=bucket.name, Key=key)
            else:
                client.put_object(Bucket=bucket.name, Key=key, Body=damage(held[key]))
        with pytest.raises(DamagedStoreError, match="from a copy") as caught:
            sha_of([opened], opened.transitions // 40)
        assert any(key.removeprefix("robots/") in str(caught.value.where) for key in keys)
        for key in keys:
            client.put_object(Bucket=bucket.name, Key=key, Body=held[key])
        sha_of([opened], 5)  # copies are put back, and the stream goes on
