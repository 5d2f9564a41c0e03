"""What a client says of what it is given, and what both sides say of what is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.service.client.client import RolloutClient
from pipeline.service.client.control import ControlClient
from pipeline.service.client.settings import ClientSettings
from pipeline.service.flight import data_port
from pipeline.service.logs import log_to
from pipeline.service.token_book import TokenRequest
from pipeline.service.tokens import Quota
from schemas.errors import (
    ConfigError,
    DiskFullError,
    IdConflictError,
    OutOfTimeError,
    PutError,
    UsageError,
)
from tests.service.ports import ARROW, body_of, episode, service_in

NOBODY = "grpc://127.0.0.1:1"
STEP: dict[str, Any] = {
    "observation": np.zeros(3, np.float32),
    "action": np.zeros(2, np.float32),
    "reward": 1.0,
}
F32 = np.float32(0.5)


@pytest.mark.parametrize("name", ["", "e" * 5000])
def test_an_id_that_cannot_be_sent_is_refused_at_once(name: str) -> None:
    client = RolloutClient(NOBODY, retry_seconds=None)
    one = episode("e").replace(episode_id=name)
    for push in (client.push, client.push_async, ControlClient("http://127.0.0.1:1").push):
        with pytest.raises(PutError, match=r"id of 1 to 1,024 characters"):
            push(one)
    with pytest.raises(PutError):
        client.episode(name)
    client.close(5)


def test_what_is_no_episode_and_no_fact_is_refused_at_once() -> None:
    client = RolloutClient(NOBODY)
    for push in (client.push, client.push_async, ControlClient("http://127.0.0.1:1").push):
        with pytest.raises(UsageError, match=r"Expected a penstock\.Episode to push, came dict"):
            push({})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="did you mean 'policy'"):
        client.episode("e", polisy="sac")
    with client.episode("e", policy="sac") as going:
        going.add(**STEP)
        with pytest.raises(UsageError, match="came 'bogus'"):
            going.end(STEP["observation"], bogus=1)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ack": "disk"}, "Expected ack as one of received, durable, store, came 'disk'"),
        ({"producer": "a b"}, "Expected a producer of"),
        ({"buffer_bytes": 1000}, "put_bytes=262144 and buffer_bytes=1000"),
        ({"tls_root_certs": "nowhere.pem"}, "Expected a file of certificates"),
    ],
)
def test_settings_that_are_none_are_told_by_name(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        RolloutClient(NOBODY, **settings)


def test_a_service_that_holds_a_stream_back_is_told(tmp_path: Path) -> None:
    """A client that sends too fast is slowed down: who waits less long than that hears why."""
    slow = TokenRequest(name="slow", scopes=("push",), quota=Quota(bytes_per_second=100))
    with (
        service_in(tmp_path, is_filled=False, port=0) as port,
        data_port(port.state) as (_, url),
    ):
        assert port.state.book is not None
        client = RolloutClient(url, port.state.book.create(slow)[1])
        for number in range(2):  # the second is more than the token may send now
            client.push_async(episode(f"e{number}"))
        with pytest.raises(OutOfTimeError, match="may hold the stream back"):
            client.push(episode("e2"), timeout=0.2)
        with pytest.raises(OutOfTimeError, match=r"acknowledged within 0\.01 s"):
            client.close(0.01)


def test_rewards_of_steps_have_one_dtype(tmp_path: Path) -> None:
    """Whatever numbers are given, in one put or in several: the branch has float64."""
    seen = STEP["observation"]
    given: dict[str, list[Any]] = {
        "whole": [1, 2],
        "flags": [True, False],
        "mixed": [0] * 60 + [0.5],
        "single": [F32],
    }
    with (
        service_in(tmp_path, is_filled=False, no_token=True, port=0) as port,
        data_port(port.state) as (_, url),
        RolloutClient(url, put_bytes=256) as client,
    ):
        client.push(episode("first").replace(rewards=np.zeros(12), observations={
            "observations": np.zeros((13, 3), np.float32)}))  # fmt: skip
        for name, rewards in given.items():
            with client.episode(name) as going:
                for reward in rewards:
                    going.add(seen, STEP["action"], reward)
                going.end(seen, terminated=True, success=1).result(60)
        port.state.log.seal()
        for name, rewards in given.items():
            found = port.store.version().episode(name)
            assert found.rewards is not None
            assert found.rewards.dtype == np.float64
            assert found.rewards.tolist() == rewards
            assert found.success is True
            assert found.is_terminated


def test_a_push_over_http_may_say_how_long_and_how_safe(tmp_path: Path) -> None:
    full = {"is_filled": False, "no_token": True, "disk_reserve_bytes": 1 << 60}
    with service_in(tmp_path / "full", **full) as port:  # type: ignore[arg-type]
        control = ControlClient(port.url, settings=ClientSettings(retry_seconds=None))
        with pytest.raises(DiskFullError):
            control.push(episode("e"), timeout=0.0)
        assert port.ask("GET", "/v1/status", None).json()["log"]["refusals"] == 1
    with service_in(tmp_path / "free", is_filled=False, no_token=True, seal_every=0.05) as port:
        ControlClient(port.url).push(episode("e"), ack="store")
        assert port.store.version().episodes()["episode_id"].to_pylist() == ["e"]


@pytest.mark.parametrize(
    ("body", "full", "kind", "said"),
    [
        (b"not a stream at all", False, "bad_put", "came a body that is none"),
        (None, True, "disk_full", "free bytes on the log's disk"),
    ],
)
def test_what_the_control_port_refuses_is_in_the_log(
    body: bytes | None, full: bool, kind: str, said: str, tmp_path: Path, restored_logs: None
) -> None:
    stream = io.StringIO()
    reserve: dict[str, Any] = {"disk_reserve_bytes": 1 << 60} if full else {}
    with service_in(tmp_path, no_token=True, **reserve) as port:
        log_to(stream)
        sent = body_of(episode("e")) if body is None else body
        answer = port.ask("POST", "/v1/rollouts", None, content=sent, headers=ARROW)
    assert said in answer.json()["error"]["message"]
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [one["kind"] for one in lines if one["event"] == "request"] == [kind]


def test_what_the_data_port_refuses_is_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with (
        service_in(tmp_path, no_token=True, port=0) as port,
        data_port(port.state) as (_, url),
        RolloutClient(url) as client,
        pytest.raises(IdConflictError),
    ):
        client.push(episode("e0", seed=77))
    (line,) = [vars(one) for one in caplog.records if one.message == "puts refused"]
    assert (line["kind"], line["episode_id"]) == ("id_conflict", "e0")
