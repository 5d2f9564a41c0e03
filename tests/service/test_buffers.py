"""Who records into arrays that are used again pushes what they held then."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.service.client.client import RolloutClient
from pipeline.service.flight import data_port
from schemas.episode import Episode
from tests.service.ports import service_in


def test_arrays_may_be_used_again_once_they_are_pushed(tmp_path: Path) -> None:
    observations = np.zeros((65, 24), np.float32)
    actions = np.zeros((64, 6), np.float32)
    with (
        service_in(tmp_path, no_token=True, port=0, new_spec="buffers") as port,
        data_port(port.state) as (_, url),
        RolloutClient(url) as client,
    ):
        for number in range(20):
            observations[:], actions[:] = number, number
            client.push_async(Episode(f"reused-{number}", observations, actions, truncated=True))
            observations[:], actions[:] = -1, -1
        client.flush(30)
        found = [one.episode for one in client.tail()]
    assert len(found) == 20
    for number, one in enumerate(found):
        assert set(np.asarray(one.observations["observations"]).flat) == {number}
        assert set(one.flat_actions["actions"].flat) == {number}


def test_arrays_may_be_used_again_once_they_are_added(tmp_path: Path) -> None:
    seen = {"at": np.zeros(3, np.float32), "near": (np.zeros(2, np.uint8),)}
    action, mark = np.zeros(2, np.float32), np.zeros(1)
    with (
        service_in(tmp_path, no_token=True, port=0, new_spec="buffers") as port,
        data_port(port.state) as (_, url),
        RolloutClient(url, put_bytes=200) as client,
    ):
        with client.episode("reused") as going:
            for step in range(31):
                for array in (seen["at"], seen["near"][0], action, mark):
                    array[:] = step
                if step < 30:
                    going.add(seen, action, reward=float(step), mark=mark)
            end = going.end(seen, truncated=True)
        end.result(30)
        (one,) = [found.episode for found in client.tail()]
    expected = list(range(31))
    assert one.observations["observations/at"][:, 0].tolist() == expected
    assert one.observations["observations/near/0"][:, 0].tolist() == expected
    assert one.flat_actions["actions"][:, 1].tolist() == expected[:-1]
    assert np.asarray(one.extras["mark"])[:, 0].tolist() == expected[:-1]
