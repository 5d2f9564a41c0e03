"""A store that an old release wrote opens for ever, and shows what it showed then."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipeline.store.store import open_store
from schemas.identity import digest
from tests.data.make_store_v1 import EXPECTED, STORE, episodes, long_episode, make
from tests.store.makers import hashes, ids_of, quarantined
from tests.strategies import assert_same_episode

DIGESTS: dict[str, dict[str, str]] = json.loads(EXPECTED.read_text())


@pytest.mark.parametrize("ref", list(DIGESTS))
def test_every_version_shows_what_it_showed(ref: str) -> None:
    version = open_store(STORE).version(ref)
    table = version.episodes()
    named = dict(zip(table["episode_id"].to_pylist(), table["digest"].to_pylist(), strict=True))
    assert named == DIGESTS[ref]
    read = {one.episode_id: digest(one) for one in version.iter_episodes()}
    assert read == DIGESTS[ref]
    assert len(DIGESTS[ref]) == len(table)


def test_every_episode_is_what_went_in() -> None:
    store = open_store(STORE)
    made = {one.episode_id: one for one in [*episodes(), long_episode()]}
    for ref in ("main", "images"):
        for one in store.version(ref).iter_episodes():
            assert_same_episode(one, made[one.episode_id])


def test_history_names_scores_and_refusals() -> None:
    store = open_store(STORE)
    assert store.branches().keys() == {"main", "images", "clean"}
    assert store.tags().keys() == {"paper-v1"}
    messages = [version.message for version in store.log("clean")]
    assert messages[0] == "the good ones"
    assert messages[-2:] == ["second", "first"]
    main = store.version()
    scores = main.episodes()["action_divergence"].to_pylist()
    assert scores == [0.25, 0.75, 0.5, None]
    assert main.state.metrics["action_divergence"].value.standard_error == 0.1
    assert quarantined(store) == [("frozen/v0/0", "id_conflict")]
    derivation = store.version("clean").state.derivation
    assert derivation is not None
    assert derivation.where == "action_divergence < 0.6 and success"
    assert derivation.unscored == "drop"
    assert store.diff("main:1", "main").added == ("frozen/v0/3",)


def test_an_old_store_can_be_written_to(tmp_path: Path) -> None:
    root = Path(shutil.copytree(STORE, tmp_path / "s"))
    before = hashes(root)
    store = open_store(root)
    assert store.append(episodes()).number == store.version().number
    assert hashes(root) == before, "what it holds is known"
    store.append([long_episode().replace(episode_id="new")], branch="images")
    assert ids_of(store.version("images")) == ["frozen/v0/long", "new"]
    assert before.items() <= hashes(root).items()


def test_the_script_still_says_the_same(tmp_path: Path) -> None:
    assert make(tmp_path / "s") == DIGESTS
    assert sum(path.stat().st_size for path in STORE.rglob("*") if path.is_file()) < 200_000
