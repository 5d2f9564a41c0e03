"""Learners at the control port: heartbeats, the limit for what is pushed, policies for actors."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.numpy import load

from pipeline.service.client.control import ControlClient
from pipeline.service.client.settings import ClientSettings
from pipeline.service.learners import MAX_LEARNERS, Learners
from pipeline.service.metrics import ServiceMetrics
from pipeline.service.seal import Sealed
from schemas.errors import (
    BusyError,
    ConfigError,
    ForbiddenError,
    IdConflictError,
    NotFoundError,
    TooLargeError,
    TransientError,
    UnauthenticatedError,
    UsageError,
)
from schemas.online import Heartbeat
from schemas.puts import puts_of
from schemas.version import VersionRef
from tests.service.ports import Port, episode, service_in
from tests.service.proxy import Proxy, Weather
from tests.service.publishing import OCTETS, policy

HEAD = "0" * 32


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Port]:
    with service_in(tmp_path_factory.mktemp("service")) as found:
        yield found


def client(port: Port, who: str = "admin") -> ControlClient:
    return ControlClient(port.url, port.texts[who])


# -- policies ------------------------------------------------------------------------------------


def test_a_policy_goes_from_learner_to_actor(port: Port) -> None:
    learner, actor = client(port, "curate"), client(port, "push")
    learner.publish("iql-1", 10, policy(10))
    learner.publish("iql-1", 20, policy(20, 1_000_000))  # longer than other bodies may be
    found = actor.policy("iql-1")
    assert found is not None
    assert found.step == 20
    assert load(found.data)["policy"][0] == 20
    assert actor.policy("iql-1", after=20) is None
    assert actor.policies() == {"iql-1": 20}
    with pytest.raises(NotFoundError, match="iql-1"):
        actor.policy("iql-2")


def test_who_may_publish(port: Port) -> None:
    for who in ("push", "pull"):
        with pytest.raises(ForbiddenError):
            client(port, who).publish("iql-1", 30, policy(30))
    with pytest.raises(UnauthenticatedError):
        ControlClient(port.url, "no token").policies()
    answer = port.ask("PUT", "/v1/policies/iql-1/30", "curate", content=b"{}")
    assert answer.json()["error"]["kind"] == "usage"


@pytest.mark.parametrize("data", [b"\x80\x04.", b"", b"{}"])
def test_what_is_no_policy_is_refused(port: Port, data: bytes) -> None:
    answer = port.ask("PUT", "/v1/policies/iql-9/1", "curate", content=data, headers=OCTETS)
    assert (answer.status_code, answer.json()["error"]["kind"]) == (422, "untrusted")


# -- heartbeats ----------------------------------------------------------------------------------


def test_a_heartbeat_is_seen_in_the_metrics(port: Port) -> None:
    beat = Heartbeat(
        step=5, version=HEAD, versions_behind=3, samples=640, inserted=160, pull_wait_seconds=0.7
    )
    told = client(port, "pull").beat("iql-1", beat)
    assert told["server"] == port.state.log.server
    text = port.ask("GET", "/metrics", "pull").text
    assert "penstock_learner_staleness_versions 3.0" in text
    assert "penstock_sample_insert_ratio 4.0" in text
    assert "penstock_pull_wait_seconds_count 1.0" in text
    assert port.ask("GET", "/v1/learners", "pull").json()["learners"]["iql-1"]["step"] == 5
    with pytest.raises(ForbiddenError):
        client(port, "push").beat("iql-1", beat)
    wrong = {**beat.model_dump(), "step": "5"}
    assert port.ask("POST", "/v1/learners/iql-1", "pull", json=wrong).status_code == 400


def test_heartbeats_are_forgotten_and_bounded() -> None:
    now = [0.0]
    known = Learners(ServiceMetrics(), clock=lambda: now[0])
    for number in range(MAX_LEARNERS):
        known.beat(f"r{number}", Heartbeat(step=1, version=HEAD, versions_behind=number))
    with pytest.raises(TooLargeError):
        known.beat("one-more", Heartbeat(step=1, version=HEAD))
    known.beat("r0", Heartbeat(step=2, version=HEAD, valid_seconds=100))
    assert known.staleness() == MAX_LEARNERS - 1
    now[0] = 31.0
    assert list(known.told()) == ["r0"]
    assert known.staleness() == 0
    assert known.ratio() == 0.0


# -- the limit for what is pushed ----------------------------------------------------------------


def test_room_is_used_up_by_what_was_pushed_since() -> None:
    known = Learners(ServiceMetrics())
    known.check(lambda: pytest.fail("nobody asked for a limit"))
    known.sealed(_sealed(7, 100))
    known.sealed(_sealed(8, 50))
    known.beat("r", Heartbeat(step=1, version=HEAD, insert_room=120, room_since=7))
    known.check(lambda: 69)
    with pytest.raises(BusyError, match="120 steps"):
        known.check(lambda: 70)
    known.sealed(_sealed(9, 70))  # what waited is in a version now: as much as before
    with pytest.raises(BusyError):
        known.check(lambda: 0)
    known.beat("r", Heartbeat(step=2, version=HEAD, insert_room=10, room_since=9))
    known.check(lambda: 9)
    known.beat("s", Heartbeat(step=2, version=HEAD, insert_room=0, room_since=9))
    with pytest.raises(BusyError) as told:
        known.check(lambda: 0)
    assert told.value.where == "s"
    assert told.value.retry_after > 0


def test_actors_wait_with_their_next_episode_and_not_with_this_one(tmp_path: Path) -> None:
    with service_in(tmp_path) as port:
        log, number = port.state.log, port.store.version("main").number
        begun = list(puts_of(episode("begun", 1), producer="a", epoch=1, put_bytes=128))
        log.put(begun[0].header, begun[0].rows)
        learner = client(port, "pull")
        learner.beat("r", Heartbeat(step=1, version=HEAD, insert_room=1, room_since=number))
        (other,) = puts_of(episode("other", 2), producer="b", epoch=1)
        with pytest.raises(BusyError):
            log.put(other.header, other.rows)
        log.push(begun[1:])
        log.seal()
        with pytest.raises(BusyError):
            log.put(other.header, other.rows)
        now = port.store.version("main").number
        learner.beat("r", Heartbeat(step=2, version=HEAD, insert_room=1, room_since=now))
        log.push([other])
        beat = Heartbeat(step=3, version=HEAD, insert_room=0, room_since=now, valid_seconds=0.05)
        learner.beat("r", beat)
        time.sleep(0.1)  # a learner that died holds nobody up
        (third,) = puts_of(episode("third", 3), producer="c", epoch=1)
        log.push([third])


def _sealed(number: int, steps: int) -> Sealed:
    ref = VersionRef(id=HEAD, branch="main", number=number)
    return Sealed(ref, 0, 1, steps, 0)


# -- the client ----------------------------------------------------------------------------------


def test_a_service_that_is_away_is_said() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(TransientError, match="Expected a service that answers"):
            ControlClient(url).status()
    with pytest.raises(ConfigError):
        ControlClient("file:///etc/passwd")


def test_newest_versions_and_ports(port: Port) -> None:
    pulls = client(port, "pull")
    assert pulls.head("main")["version"] == port.store.version("main").id
    assert pulls.status()["store"] == port.store.id
    with pytest.raises(NotFoundError):
        pulls.head("nothing")
    with pytest.raises(UsageError):
        pulls.head("../up")
    with pytest.raises(TransientError, match="data port"):
        pulls.addresses()  # this service has none


# -- episodes over HTTP --------------------------------------------------------------------------


def test_an_episode_goes_over_http_alone_and_is_kept_once(port: Port) -> None:
    actor, sent = client(port, "push"), episode("by-http", 5)
    first, second = actor.push(sent), actor.push(sent)
    assert first.server == second.server == port.state.log.server
    port.state.log.seal()
    ids = port.store.version("main").episodes()["episode_id"].to_pylist()
    assert ids.count("by-http") == 1
    with pytest.raises(IdConflictError, match="by-http"):
        actor.push(episode("by-http", 6))
    with pytest.raises(ForbiddenError):
        client(port, "pull").push(sent)


def test_an_episode_is_sent_again_over_http_until_it_is_answered(port: Port) -> None:
    weather = Weather(cut=0.5, seed=1)
    settings = ClientSettings(backoff_seconds=0.01, max_backoff_seconds=0.05, producer="http:a")
    with Proxy(int(port.url.rpartition(":")[2]), weather).running() as place:
        line = place.replace("grpc://", "http://")
        actor = ControlClient(line, port.texts["push"], settings)
        offsets = [actor.push(episode(f"bad-line-{number}", 5)) for number in range(8)]
    assert weather.count["cut"] >= 4
    assert max(offsets) <= port.state.log.status()["durable_offset"]
    port.state.log.seal()
    ids = port.store.version("main").episodes()["episode_id"].to_pylist()
    assert [ids.count(f"bad-line-{number}") for number in range(8)] == [1] * 8


def test_a_service_that_stays_away_is_told_of(port: Port) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        settings = ClientSettings(retry_seconds=0.1, backoff_seconds=0.02)
        with pytest.raises(TransientError):
            ControlClient(address, settings=settings).push(episode("nowhere", 5))
