"""Pushes over a network that fails in every way: none lost, none twice, none in part."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from pathlib import Path

import pytest

from pipeline.service.client.client import RolloutClient
from pipeline.service.flight import data_port
from schemas.errors import PenstockError
from schemas.identity import digest
from tests.reliability.figures import tell
from tests.reliability.sizes import size
from tests.service.ports import episode, service_in
from tests.service.proxy import Proxy, Weather

EPISODES = size(25, 1000)
ACTORS = 3
LEAST = size(1, 500)
"""Faults of each kind that must have happened."""
WEATHERS = {
    "cuts": Weather(cut=0.05),
    "delays": Weather(delay=0.3),
    "repeats": Weather(repeat=0.05),
    "silences": Weather(silence=0.01),
    "all": Weather(cut=0.02, delay=0.1, repeat=0.02, silence=0.003),
}


@pytest.mark.timeout(size(300, 3600))
@pytest.mark.parametrize("name", WEATHERS)
def test_nothing_is_lost_or_doubled(name: str, tmp_path: Path) -> None:
    weather = WEATHERS[name]
    kinds = [one for one in ("cut", "delay", "repeat", "silence") if getattr(weather, one)]

    def is_enough(episodes: int) -> bool:
        return episodes >= EPISODES and all(weather.count.get(one, 0) >= LEAST for one in kinds)

    acked: list[list[str]] = [[] for _ in range(ACTORS)]
    errors: list[PenstockError] = []
    with service_in(tmp_path, no_token=True, port=0) as port, data_port(port.state) as (_, url):
        proxy = Proxy(int(url.rpartition(":")[2]), weather)
        with proxy.running() as address:

            def act(actor: int) -> None:
                settings = {"put_bytes": 300, "max_backoff_seconds": 0.2, "ack_seconds": 0.5}
                with RolloutClient(address, seed=actor, **settings) as client:
                    for k in itertools.takewhile(lambda k: not is_enough(k), itertools.count()):
                        try:
                            client.push(episode(f"{actor}-{k}", length=10 + k % 30))
                        except PenstockError as error:
                            errors.append(error)
                            return
                        acked[actor].append(f"{actor}-{k}")

            threads = [threading.Thread(target=act, args=(actor,)) for actor in range(ACTORS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            weather.is_over = True
        assert errors == []
        assert is_enough(min(map(len, acked))), weather.count
        tell(f"network: {name}", pushed=sum(map(len, acked)), **weather.count)
        port.state.log.seal()
        version = port.store.version()
        found = Counter(version.episodes()["episode_id"].to_pylist())
        assert set(found.values()) == {1}
        assert {one for mine in acked for one in mine} == {n for n in found if "-" in n}
        for actor in range(ACTORS):
            for one in version.iter_episodes(f"episode_id like '{actor}-%'"):
                k = int(one.episode_id.partition("-")[2])
                assert digest(one) == digest(episode(one.episode_id, length=10 + k % 30))


@pytest.mark.timeout(size(300, 3600))
def test_flipped_bits_do_no_harm_to_the_service(tmp_path: Path) -> None:
    """Without TLS nobody vouches for what arrives; it may be refused, but nothing may break."""
    weather = Weather(flip=0.3)
    kinds: list[str] = []
    with service_in(tmp_path, no_token=True, port=0) as port, data_port(port.state) as (_, url):
        with Proxy(int(url.rpartition(":")[2]), weather).running() as address:
            for k in itertools.count():
                if k >= size(20, 500) and weather.count.get("flip", 0) >= size(6, 500):
                    break  # on a busy machine not everybody gets as far as the network
                settings = {"retry_seconds": 0.3, "put_bytes": 300, "max_backoff_seconds": 0.05}
                try:
                    with RolloutClient(address, **settings) as client:
                        client.push(episode(f"e{k}", length=20))
                except PenstockError as error:
                    kinds.append(error.kind)
        assert "bug" not in kinds
        with RolloutClient(url) as client:
            client.push(episode("after"))
        port.state.log.seal()
        tell("network: flips", connections=k, refused=len(kinds), **weather.count)
        assert "after" in port.store.version().episodes()["episode_id"].to_pylist()
