"""Fixtures of tests against object stores; each test has a bucket and a proxy of its own."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest

from tests.store import servers
from tests.store.servers import Proxy

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/nowhere",
    "AWS_SHARED_CREDENTIALS_FILE": "/nowhere",
}


@dataclass(frozen=True)
class Bucket:
    """A fresh bucket behind a proxy."""

    name: str
    proxy: Proxy

    @property
    def url(self) -> str:
        """A place for a store in it."""
        return f"s3://{self.name}/robots"


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    with servers.moto() as url:
        yield url


@pytest.fixture
def bucket(moto: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    made = f"b-{uuid.uuid4().hex}"
    boto3.client("s3", endpoint_url=moto).create_bucket(Bucket=made)
    with servers.proxy(moto) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield Bucket(made, proxy)


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a store could be, on each kind of storage that many may write to."""
    if request.param == "disk":
        return str(tmp_path / "robots")
    made: Bucket = request.getfixturevalue("bucket")
    return made.url
