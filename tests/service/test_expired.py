"""Versions that expire while a service serves them: whoever asks is told, and goes on."""

from __future__ import annotations

import datetime as dt
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.flight as fl
import pytest

from pipeline.service.client.faults import fault_in
from pipeline.service.recent import sealed_since
from pipeline.store import runs
from pipeline.store.store import Store, open_store
from pipeline.stream.loader import Stream
from schemas.errors import FilesExpiredError
from schemas.pulls import BlockTicket, ObjectTicket
from tests.service.logs import Actor, open_log, rollout, store_at
from tests.service.ports import episode
from tests.service.servers import Server, serving

SETTINGS: dict[str, Any] = {"batch_size": 4, "seed": 3, "framework": "numpy"}
NAMES = [f"e{k}" for k in range(6)]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Store, Server]]:
    """A store of three versions, two episodes in each."""
    store = open_store(tmp_path / "store", create=True)
    for k in range(0, 6, 2):
        store.append([episode(name, length=20) for name in NAMES[k : k + 2]])
    with serving(tmp_path / "store", "--no-token", "--seal-every", "1h") as server:
        yield store, server
    assert "Traceback" not in (tmp_path / "server.log").read_text()


def expire_all_but_the_last(store: Store) -> None:
    """Joins all parts, lets go of the versions before and collects their files."""
    store.compact(everything=True)
    store.expire(before=store.version().number)
    for _ in range(3):
        store.gc(dt.timedelta(0))


def test_whoever_pulls_what_expired_is_told(served: tuple[Store, Server]) -> None:
    store, server = served
    old, far = store.version("main:2").id, open_store(server.data)
    key = store.version("main:1").state.parts[0].rows.key
    (block,) = store.version("main:1").state.parts[0].blocks
    with server.client() as client:
        going = client.pull_blocks("main:3")
        next(going)
        held = far.version("main:2")
        expire_all_but_the_last(store)
        with pytest.raises(FilesExpiredError):
            list(going)
        for ref in ("main:1", "main:2", old):
            with pytest.raises(FilesExpiredError, match="have expired"):
                list(client.pull_version(ref))
            with pytest.raises(FilesExpiredError):
                client.pull_episode("e0", ref)
            with pytest.raises(FilesExpiredError):
                list(far.version(ref).iter_episodes())
        with pytest.raises(FilesExpiredError):
            list(held.iter_episodes())
        assert [one.episode_id for one in client.pull_version()] == NAMES
        assert len(client.versions()) == store.version().number
    with fl.FlightClient(server.data) as raw:
        for ticket, kind in (
            (BlockTicket(ref=old, block=block.id), "files_expired"),
            (ObjectTicket(key=key), "not_found"),
        ):
            with pytest.raises(fl.FlightServerError) as caught:
                raw.do_get(fl.Ticket(ticket.encoded())).read_all()
            fault = fault_in(caught.value)
            assert fault is not None
            assert fault.kind == kind


def test_the_control_port_says_so_too(served: tuple[Store, Server]) -> None:
    store, server = served
    expire_all_but_the_last(store)
    for ref in ("main:1", "main:2", store.version("main:2").id):
        status, kind = asked(server, f"/v1/versions/{ref}/episodes")
        assert (status, kind) == (410, "files_expired")
        wanted = {"ref": ref, "where": "length > 1", "preview": True}
        assert asked(server, "/v1/curate", wanted) == (410, "files_expired")
        for path in (f"/v1/versions/{ref}", f"/v1/versions?ref={ref}", f"/v1/quarantine?ref={ref}"):
            assert asked(server, path) in ((200, None), (410, "files_expired"))
    assert asked(server, "/v1/versions/main/episodes")[0] == 200


def asked(server: Server, path: str, body: Any = None) -> tuple[int, str | None]:
    """The status of an answer, and the kind of its error."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(server.control + path, data, headers)
        ) as answer:
            return answer.status, None
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)["error"]["kind"]


def test_a_follower_goes_on_with_the_newest_version(
    served: tuple[Store, Server], tmp_path: Path
) -> None:
    store, server = served
    far = open_store(server.data)
    made = Stream(
        far.version("main:3"),
        follow="main",
        follow_every=5,
        service=server.data,
        run="follower",
        cache_dir=tmp_path / "one",
        **SETTINGS,
    )
    plain = Stream(far.version("main:3"), cache_dir=tmp_path / "two", **SETTINGS)
    drawn, other = iter(made), iter(plain)
    for _ in range(3):
        next(drawn), next(other)
    store.append([episode("newer", length=20)])
    runs.forget(store.catalog, "follower")
    expire_all_but_the_last(store)
    newest = store.version().id
    for _ in range(2000):  # what is drawn next was decided before
        next(drawn), next(other)
        if made.state_dict()["versions"][-1][1] == newest:
            break
    assert made.state_dict()["versions"][-1][1] == newest
    plain.follow("main")
    next(other)
    assert plain.state_dict()["versions"][-1][1] == newest


def test_a_learner_that_pinned_it_is_told_in_one_sentence(
    served: tuple[Store, Server], tmp_path: Path
) -> None:
    store, server = served
    pinned = open_store(server.data).version("main:2")
    state = Stream(pinned, cache_dir=tmp_path / "one", **SETTINGS).state_dict()
    expire_all_but_the_last(store)
    newest = open_store(server.data).version()
    for begin in (
        lambda: next(iter(Stream(pinned, cache_dir=tmp_path / "two", **SETTINGS))),
        lambda: resumed(Stream(newest, cache_dir=tmp_path / "three", **SETTINGS), state),
    ):
        with pytest.raises(FilesExpiredError) as caught:
            begin()
        assert f"version {pinned.id[:12]}" in caught.value.message
        assert "penstock log" in caught.value.message


def resumed(stream: Stream, state: dict[str, Any]) -> Any:
    """The first batch of a stream that goes on at a state."""
    stream.load_state_dict(state)
    return next(iter(stream))


def test_a_tail_from_before_what_expired_has_everything(tmp_path: Path) -> None:
    """Its episodes are in the newest version, though the rows of their seals are gone."""
    with open_log(tmp_path) as log:
        actor, store = Actor(log), store_at(tmp_path)
        for k in range(4):
            actor.push(rollout(f"e{k}"))
            log.seal()
        store.append([episode("from elsewhere")])
        expire_all_but_the_last(store)
        actor.push(rollout("e4"))
        log.seal()
        with log.tail() as tail:
            head = tail.version
        assert head is not None
        store = store_at(tmp_path)  # one that remembers no rows
        found = list(sealed_since(store, head, log.server, -1))
        assert [one.episode_id for _, one in found] == [f"e{k}" for k in range(5)]
        offsets = [offset for offset, _ in found]
        assert offsets == sorted(offsets)
        rest = [one.episode_id for _, one in sealed_since(store, head, log.server, offsets[-1])]
        assert rest == ["e4"]
