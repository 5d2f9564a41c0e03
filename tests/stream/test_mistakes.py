"""What people get wrong when they make a stream, and what they are told."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import penstock
from pipeline.store.objects import LocalObjects
from pipeline.store.reader import Version
from pipeline.store.store import Store
from pipeline.stream.mixture import Mixture
from schemas.errors import AccessDeniedError, ConfigError, NotFoundError, PenstockError, UsageError
from tests.store.disks import FailingDisk, store_on

SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"batch_size": 0}, "Expected batch_size to be greater than or equal to 1, came 0."),
    ({"seed": None}, "Expected seed to be an integer, came None."),
    ({"framework": "jax"}, "Expected framework to be 'torch' or 'numpy', came 'jax'."),
    ({"fields": "actions"}, "Expected fields to be a tuple, came 'actions'."),
    ({"dtype": torch.float32}, "or 'keep', came torch.float32."),
    ({"normalize": "standard"}, "Expected normalize to be a dictionary, came 'standard'."),
    ({"normalize": {"actions": "minmax"}}, "'standard' or 'range', came 'minmax'."),
    ({"images": {"rgb": {"rezise": (4, 4)}}}, "came 'images.rgb.rezise'; did you mean 'resize'?"),
    ({"images": {"rgb": {"crop": (0, 4)}}}, "images.rgb: crop to 0 pixels."),
    ({"goals": {"futur": 1}}, "no goals 'futur'; did you mean 'future'?"),
    ({"batchsize": 3}, "came 'batchsize'; did you mean 'batch_size'?"),
    ({"shuffle": True}, "came 'shuffle'; say sampler='shuffle' for epochs."),
    ({"num_workers": 2}, "as_iterable_dataset()."),
    ({"gamma": 0.9}, "say discount=."),
]


@pytest.mark.parametrize(("settings", "told"), SETTINGS, ids=[told for _, told in SETTINGS])
def test_a_setting_that_does_not_fit_is_named_with_what_came(
    store: Store, settings: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        penstock.Stream(store.url, **settings)
    assert str(caught.value).endswith(told)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("data", [None, "", 3, "store"])
def test_what_is_no_version_is_told(store: Store, data: Any) -> None:
    with pytest.raises(UsageError, match=r"store\.version\('main'\)"):
        penstock.Stream(store if data == "store" else data)


def test_a_device_of_torch_is_taken(store: Store) -> None:
    batch = next(penstock.Stream(store.url, batch_size=4, device=torch.device("cpu")))
    assert batch["actions"].device.type == "cpu"


def test_a_traceback_shows_where(store: Store) -> None:
    missing = f"{store.url}-elsewhere"
    with pytest.raises(NotFoundError) as caught:
        penstock.Stream(missing)
    assert missing not in str(caught.value)
    assert f"[{missing}]" in "".join(traceback.format_exception(caught.value))
    said = PenstockError(f"Nothing at {missing}.", where=missing)
    assert "".join(traceback.format_exception(said)).count(missing) == 1


def test_a_branch_to_follow_that_is_not_there_is_told_at_once(store: Store) -> None:
    with pytest.raises(NotFoundError, match="came 'mian'; did you mean 'main'"):
        penstock.Stream(store.url, run="r", follow="mian")
    penstock.Stream(store.url, run="r", follow="main")  # nothing was decided


def test_a_store_that_may_only_be_read(store: Store) -> None:
    def denied() -> Version:
        disk = FailingDisk(0, errno.EACCES)  # the first write fails
        return store_on(LocalObjects(Path(store.url), disk), create=False).version("main")

    plain = penstock.Stream(denied(), batch_size=4)
    ran = penstock.Stream(denied(), batch_size=4, run="r")
    assert (next(ran)["indices"] == next(plain)["indices"]).all()
    with pytest.raises(AccessDeniedError, match="leave out follow="):
        penstock.Stream(denied(), batch_size=4, run="r", follow="main")


STATES: list[Callable[[dict[str, Any]], Any]] = [
    lambda state: None,
    lambda state: [state],
    lambda state: {**state, "step": "five"},
    lambda state: {**state, "step": -5},
    lambda state: {**state, "versions": 5},
]


@pytest.mark.parametrize("change", STATES)
def test_a_state_that_is_none_is_told(
    store: Store, change: Callable[[dict[str, Any]], Any]
) -> None:
    stream = penstock.Stream(store.url, batch_size=4)
    next(stream)
    with pytest.raises(ConfigError, match=r"state_dict\(\) returned"):
        stream.load_state_dict(change(stream.state_dict()))
    assert stream.step == 1


def test_numbers_of_batches_that_cannot_be(store: Store) -> None:
    stream = penstock.Stream(store.url, batch_size=4)
    for stride, first in ((0, 0), (-1, 0), (1, -1)):
        with pytest.raises(UsageError, match="at least 1"):
            stream.every(stride, first)
    with pytest.raises(UsageError, match="from 0 on, came -1"):
        stream.as_iterable_dataset().state_dict(-1)


def test_mixtures_are_of_pairs(store: Store) -> None:
    one = penstock.Stream(store.url, batch_size=4)
    for wrong in (one, [one, one], [(one,)], [(store.url, 1)], [(one, 1), "ab"], 5):
        with pytest.raises(UsageError, match="pairs of a stream and its weight"):
            Mixture(wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"anneal=\(steps, start, end\)"):
        Mixture([(one, 1), (one, 1)], anneal=(10, 0.5))  # type: ignore[arg-type]
    mixture = penstock.Mixture(iter([(one, 1), (one, 1)]), batch_size=4)
    for source in (2, -3):
        with pytest.raises(UsageError, match=f"one of 2 sources, counted from 0, came {source}"):
            mixture.follow("main", source)


def test_streams_that_differ_name_a_field_that_can_be_left_out(
    store: Store, make_store: Callable[..., Store]
) -> None:
    other = make_store([wide_episode()])
    streams = [(penstock.Stream(one.url, batch_size=4), 1) for one in (store, other)]
    with pytest.raises(UsageError, match="came 'observations' as"):
        Mixture(streams)
    fields = ["actions", "rewards"]
    narrow = [(penstock.Stream(one.url, batch_size=4, fields=fields), 1) for one in (store, other)]
    assert sorted(next(Mixture(narrow, batch_size=4)))[0] == "actions"


def wide_episode() -> penstock.Episode:
    """An episode whose observations have other shapes than those of the store."""
    return penstock.Episode(
        episode_id="wide",
        observations=np.zeros((6, 7)),
        actions=np.zeros((5, 2), np.float32),
        rewards=np.zeros(5),
        terminated=True,
    )
