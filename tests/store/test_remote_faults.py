"""S3 on a bad day: replies that are lost, refusals, slow answers, and people who may not write."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable

import pytest

from pipeline.store import s3, writers
from pipeline.store.answers import NEEDS
from pipeline.store.catalog import Catalog
from pipeline.store.patience import Patience
from pipeline.store.places import open_objects
from pipeline.store.s3 import S3Objects
from pipeline.store.store import Store, open_store
from schemas.errors import (
    AccessDeniedError,
    ConditionalWritesError,
    NotFoundError,
    TransientError,
    UsageError,
)
from tests.episodes import episode
from tests.store.remote_fixtures import Bucket
from tests.store.servers import Request, Trouble, once
from tests.store.test_remote_contract import ids

QUICK = Patience(tries=4, first=0.01, longest=0.02)


def impatient(bucket: Bucket, *, create: bool = False) -> Store:
    """A store that gives up soon."""
    return Store(Catalog(S3Objects(bucket.url, patience=QUICK), create=create))


@pytest.fixture
def store(bucket: Bucket) -> Store:
    """A store of one episode; what was asked to make it is not counted."""
    made = open_store(bucket.url, create=True)
    made.append([episode("a")])
    bucket.proxy.requests.clear()
    return made


def is_data(request: Request) -> bool:
    return request.method == "PUT" and "/refs/" not in request.path


# -- requests ------------------------------------------------------------------------------------


def test_a_commit_is_one_conditional_request(bucket: Bucket, store: Store) -> None:
    store.append([episode("b")])
    (commit,) = [request for request in bucket.proxy.requests if request.is_commit]
    assert commit.headers["If-None-Match"] == "*"
    assert "uploadId" not in commit.path
    assert not any("If-Match" in request.headers for request in bucket.proxy.requests)
    assert bucket.proxy.count("POST") == 0


def test_an_append_asks_six_times(bucket: Bucket, store: Store) -> None:
    store.append([episode("b")])
    assert len(bucket.proxy.requests) == 6
    assert bucket.proxy.count("PUT") == 4


def test_one_probe_per_process_and_bucket_and_none_for_readers(bucket: Bucket) -> None:
    def probes() -> int:
        return sum("/probes/" in request.path for request in bucket.proxy.requests)

    open_store(bucket.url, create=True).append([episode("a")])
    assert probes() == 4  # created, refused, looked at, deleted
    open_store(bucket.url).append([episode("b")])
    open_store(f"s3://{bucket.name}/other", create=True)
    assert probes() == 4
    bucket.proxy.requests.clear()
    writers._PROVEN.clear()  # as in another process
    reader = open_store(bucket.url)
    assert len(reader.version().episodes()) == 2
    assert len(reader.version().field("rewards").compute()) == 40
    assert reader.log()
    assert bucket.proxy.count("PUT", "POST", "DELETE") == 0
    assert list(open_objects(bucket.url).entries("probes")) == []


def test_no_checksums_of_newer_clients_for_endpoints_that_may_not_know_them(
    bucket: Bucket, store: Store
) -> None:
    store.append([episode("b")])
    names = {name.lower() for request in bucket.proxy.requests for name in request.headers}
    assert not any(name.startswith(("x-amz-checksum", "x-amz-sdk-checksum")) for name in names)
    assert "x-amz-trailer" not in names


@pytest.mark.parametrize(
    ("endpoint", "wanted"),
    [
        ("https://s3.eu-west-1.amazonaws.com", True),
        ("https://bucket.s3.cn-north-1.amazonaws.com.cn", True),
        ("https://s3.us-east-1.api.aws", True),
        ("https://storage.googleapis.com", False),
        ("https://amazonaws.com.example.org", False),
        ("https://notamazonaws.com", False),
        ("http://127.0.0.1:9000", False),
    ],
)
def test_amazons_endpoints_are_known(endpoint: str, wanted: bool) -> None:
    assert s3.is_aws(endpoint) is wanted


def test_large_data_files_go_in_parts(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
    data = bytes(range(256)) * (11 << 12)
    objects = open_objects(bucket.url)
    objects.put({"shards/x/c.0": data, "tails/y": b"small"})
    assert objects.read("shards/x/c.0") == data
    started = [r for r in bucket.proxy.requests if r.method == "POST" and "uploads" in r.path]
    assert len(started) == 1
    assert objects.put_if_absent("refs/large", data)  # never a commit, however large
    assert bucket.proxy.requests[-1].method == "PUT"
    assert "uploadId" not in bucket.proxy.requests[-1].path


# -- lost replies --------------------------------------------------------------------------------


def test_a_commit_whose_reply_is_lost_counts_once(bucket: Bucket, store: Store) -> None:
    bucket.proxy.trouble = once(lambda request: request.is_commit, Trouble(lose=True))
    version = store.append([episode("b")])
    assert version.number == 2
    fresh = open_store(bucket.url)
    assert ids(fresh) == ["a", "b"]
    assert fresh.version().id == version.id
    assert len(fresh.log()) == 2


@pytest.mark.parametrize("nth", range(12))
def test_any_lost_reply_is_survived(bucket: Bucket, nth: int) -> None:
    """Making a store, appending, tagging: the reply to one request after another is lost."""
    seen = itertools.count()
    bucket.proxy.trouble = lambda _: Trouble(lose=True) if next(seen) == nth else None
    store = open_store(bucket.url, create=True)
    store.append([episode("a")])
    store.tag("v1")
    bucket.proxy.trouble = lambda _: None
    fresh = open_store(bucket.url)
    assert fresh.id == store.id
    assert ids(fresh, "v1") == ["a"]
    assert len(fresh.log()) == 1


def test_a_lost_reply_and_a_lost_race_are_told_apart(bucket: Bucket, store: Store) -> None:
    """Another writer's commit lands while ours is retried: it must not be taken for ours."""
    other = open_store(bucket.url)
    done: list[int] = []

    def trouble(request: Request) -> Trouble | None:
        if request.is_commit and not done:
            done.append(1)
            other.append([episode("other")])
            return Trouble(answer=(503, "SlowDown"))
        return None

    bucket.proxy.trouble = trouble
    assert store.append([episode("b")]).number == 3
    assert ids(open_store(bucket.url)) == ["a", "other", "b"]


# -- refusals that pass --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (409, "ConditionalRequestConflict"),
        (500, "InternalError"),
        (503, "SlowDown"),
        (503, "ServiceUnavailable"),
        (400, "RequestTimeout"),
    ],
)
def test_passing_refusals_are_met_with_patience(
    bucket: Bucket, store: Store, status: int, code: str
) -> None:
    writing = once(lambda r: r.method == "PUT", Trouble(answer=(status, code)), times=3)
    bucket.proxy.trouble = writing
    assert impatient(bucket).append([episode("b")]).number == 2
    reading = once(lambda r: r.method != "PUT", Trouble(answer=(status, code)), times=3)
    bucket.proxy.trouble = reading
    assert ids(impatient(bucket)) == ["a", "b"]


def test_a_conflict_under_way_is_no_proof_that_the_object_exists(bucket: Bucket) -> None:
    objects = S3Objects(bucket.url, patience=QUICK)
    busy = Trouble(answer=(409, "ConditionalRequestConflict"))
    objects.writers()
    bucket.proxy.trouble = once(lambda r: r.method == "PUT", busy, times=2)
    assert objects.put_if_absent("refs/x", b"1")
    bucket.proxy.trouble = lambda _: busy
    with pytest.raises(TransientError, match="4 tries"):
        objects.put_if_absent("refs/y", b"1")


def test_an_endpoint_that_never_answers_is_given_up(bucket: Bucket, store: Store) -> None:
    tired = impatient(bucket)
    bucket.proxy.trouble = lambda _: Trouble(answer=(503, "SlowDown"))
    with pytest.raises(TransientError, match=r"4 tries .*503"):
        tired.append([episode("b")])
    with pytest.raises(TransientError):
        tired.version()
    bucket.proxy.trouble = lambda _: None
    assert tired.append([episode("b")]).number == 2


def test_an_endpoint_that_is_not_there_is_given_up(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(TransientError):
        impatient(bucket)


def test_slow_answers_are_asked_for_again(bucket: Bucket, store: Store) -> None:
    hasty = {"config_kwargs": {"read_timeout": 0.4}}
    for is_slow in (is_data, lambda request: request.is_commit):
        bucket.proxy.trouble = once(is_slow, Trouble(delay=1.0))
        number = len(store.log())
        version = open_store(bucket.url, storage_options=hasty).append([episode(f"e{number}")])
        assert version.number == number + 1
    assert ids(open_store(bucket.url)) == ["a", "e1", "e2"]


def test_a_body_that_is_cut_is_read_again(bucket: Bucket, store: Store) -> None:
    bucket.proxy.trouble = once(lambda r: ".arrow" in r.path, Trouble(cut=True), times=2)
    assert len(open_store(bucket.url).version().field("rewards").compute()) == 20


# -- permissions ---------------------------------------------------------------------------------


def test_without_leave_to_list_no_head_is_believed_in(bucket: Bucket, store: Store) -> None:
    """There, S3 answers 403 for what does not exist: that must not read as an empty branch."""
    bucket.proxy.trouble = lambda _: Trouble(hide=True)
    reader = open_store(bucket.url)
    with pytest.raises(AccessDeniedError, match="s3:ListBucket") as caught:
        reader.version()
    assert caught.value.kind == "no_permission"
    assert caught.value.exit_code == 2
    with pytest.raises(AccessDeniedError, match="s3:ListBucket"):
        store.append([episode("b")])
    with pytest.raises(AccessDeniedError, match="s3:ListBucket"):
        open_store(f"s3://{bucket.name}/none")


@pytest.mark.parametrize(
    ("method", "request_name"),
    [("PUT", "put_object"), ("DELETE", "delete_object")],
)
def test_a_missing_permission_is_named(
    bucket: Bucket, store: Store, method: str, request_name: str
) -> None:
    denied = Trouble(answer=(403, "AccessDenied"))
    bucket.proxy.trouble = lambda request: denied if request.method == method else None
    store.tag("v1") if method == "DELETE" else None
    act: Callable[[], object] = {
        "PUT": lambda: store.append([episode("b")]),
        "DELETE": lambda: store.delete_tag("v1"),
    }[method]
    with pytest.raises(AccessDeniedError, match=re.escape(NEEDS[request_name])):
        act()
    bucket.proxy.trouble = lambda _: None
    assert ids(open_store(bucket.url)) == ["a"]


def test_whoever_may_only_read_reads(bucket: Bucket, store: Store) -> None:
    denied = Trouble(answer=(403, "AccessDenied"))
    bucket.proxy.trouble = lambda r: denied if r.method in ("PUT", "DELETE", "POST") else None
    writers._PROVEN.clear()
    assert ids(open_store(bucket.url)) == ["a"]
    assert bucket.proxy.count("PUT", "DELETE", "POST") == 0
    with pytest.raises(AccessDeniedError, match="s3:PutObject"):
        open_store(bucket.url).append([episode("b")])


@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"])
def test_wrong_credentials_are_said_to_be_wrong(bucket: Bucket, code: str) -> None:
    bucket.proxy.trouble = lambda _: Trouble(answer=(403, code))
    with pytest.raises(AccessDeniedError, match="check the credentials"):
        open_store(bucket.url)


def test_missing_credentials_are_asked_for(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(AccessDeniedError, match="AWS_ACCESS_KEY_ID"):
        open_store(bucket.url)
    options = {"key": "key", "secret": "secret"}
    assert open_store(bucket.url, create=True, storage_options=options).url == bucket.url


def test_a_profile_that_is_not_there_is_refused(bucket: Bucket) -> None:
    with pytest.raises(UsageError, match="nobody"):
        open_store(bucket.url, storage_options={"profile": "nobody"})


def test_a_bucket_that_is_not_there_is_no_empty_store(bucket: Bucket) -> None:
    with pytest.raises(NotFoundError, match="bucket"):
        open_store(f"s3://{bucket.name}-none/robots", create=True)
    with pytest.raises(NotFoundError, match="Expected a store here"):
        open_store(bucket.url)


def test_an_endpoint_without_conditional_writes_is_refused(bucket: Bucket) -> None:
    unknown = Trouble(answer=(501, "NotImplemented"))
    bucket.proxy.trouble = lambda r: unknown if "If-None-Match" in r.headers else None
    with pytest.raises(ConditionalWritesError, match="501 NotImplemented") as caught:
        open_store(bucket.url, create=True)
    assert caught.value.kind == "no_conditional_writes"
    assert caught.value.exit_code == 6
    store = open_store(bucket.url, create=True, single_writer=True)
    store.append([episode("a")])
    assert ids(open_store(bucket.url)) == ["a"]
