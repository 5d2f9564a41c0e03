"""Who asks for `ack="store"` is told of a version, or of the reason why there is none."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.service.client.client import RolloutClient
from pipeline.service.client.control import ControlClient
from pipeline.service.client.settings import ClientSettings
from pipeline.service.flight import data_port
from pipeline.service.refused import FOLDER, read_refused
from schemas.episode import Episode
from schemas.errors import EpisodeError, SpecMismatchError
from schemas.identity import digest
from tests.service.ports import Port, episode, service_in


def wide(name: str) -> Episode:
    return episode(name).replace(observations={"observations": np.zeros((13, 7), np.float32)})


def until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


def sealing(port: Port, told: Future[Any]) -> Callable[[], bool]:
    """Seals what is durable by now, again and again, until somebody is told."""

    def is_told() -> bool:
        port.state.log.seal()
        return told.done()

    return is_told


def test_a_client_is_told_what_another_writer_kept_out(tmp_path: Path) -> None:
    with (
        service_in(tmp_path, is_filled=False, no_token=True, port=0) as port,
        data_port(port.state) as (_, url),
        RolloutClient(url, ack="store") as client,
    ):
        refused = client.push_async(episode("e0"))
        until(lambda: port.state.log.status()["unsealed_episodes"] == 1)
        kept = client.push_async(wide("w1"))
        with pytest.raises(SpecMismatchError, match="send what the branch holds"):
            kept.result(60)
        port.store.append([wide("w0")])
        until(sealing(port, refused))
        with pytest.raises(SpecMismatchError, match="It is in quarantine") as caught:
            refused.result(60)
        assert str(tmp_path) not in caught.value.message
        again = client.push_async(wide("w1"))
        until(sealing(port, again))
        assert again.result(60) >= 0
        assert port.store.version().episodes()["episode_id"].to_pylist() == ["w0", "w1"]
        with pytest.raises(SpecMismatchError):
            client.flush()
    (path,) = (tmp_path / "wal" / FOLDER).iterdir()
    assert digest(read_refused(path)) == digest(episode("e0"))


@pytest.mark.parametrize("is_flight", [True, False])
def test_values_that_no_version_holds_are_refused_at_once(is_flight: bool, tmp_path: Path) -> None:
    broken = episode("nan").replace(observations={"observations": np.full((13, 4), np.nan)})
    with (
        service_in(tmp_path, is_filled=False, no_token=True, port=0) as port,
        data_port(port.state) as (_, url),
        RolloutClient(url, ack="store") as client,
    ):
        push = client.push if is_flight else control(port).push
        with pytest.raises(EpisodeError, match="Expected finite observations"):
            push(broken)
        assert port.state.log.status()["unsealed_episodes"] == 0


def control(port: Port) -> ControlClient:
    return ControlClient(port.url, settings=ClientSettings(ack="store"))
