"""Ingest with --link: nothing is copied, everything works as if it were, and changes are told."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from connectors.registry import FORMATS
from pipeline.jobs import engines
from pipeline.jobs.export import export_version
from pipeline.jobs.measure import measure_version
from pipeline.jobs.report import IngestReport
from pipeline.jobs.summary import describe, field_stats
from pipeline.store.layout import new_id
from pipeline.store.store import Store, open_store
from pipeline.stream.loader import Stream
from schemas.errors import ConfigError, LinkedSourceChangedError, SourceError, UsageError
from schemas.identity import digest
from schemas.jobs import EngineConfig, IngestJob
from schemas.metrics import MeasureConfig
from tests.episodes import episode, write_d4rl

ENDINGS = {"d4rl": ".hdf5", "robomimic": ".hdf5", "ogbench": ".npz"}


def ingest(store: Path, *sources: Path | str, **options: Any) -> IngestReport:
    engine = options.pop("engine", None)
    job = IngestJob(sources=tuple(map(str, sources)), into=str(store), run_id=new_id(), **options)
    return engines.run(job, engine)


def digests(store: Path | Store) -> list[str]:
    opened = store if isinstance(store, Store) else open_store(store)
    return [digest(one) for one in opened.version().iter_episodes()]


def array_bytes(store: Path) -> int:
    """Bytes of everything in a store that could hold arrays."""
    found = [f for name in ("shards", "tails", "media") for f in (store / name).rglob("*")]
    return sum(file.stat().st_size for file in found if file.is_file())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same four episodes in every format that is written."""
    root = tmp_path_factory.mktemp("made")
    store = open_store(root / "s", create=True)
    store.append([episode(f"e{number}", length=5 + number, task="hop") for number in range(4)])
    places = {}
    for name, row in FORMATS.items():
        if row.is_written:
            places[name] = root / f"{name}{ENDINGS.get(name, '')}"
            export_version(store.version(), name, str(places[name]))
    return places


WRITTEN = [name for name, row in FORMATS.items() if row.is_written]


@pytest.mark.parametrize("name", WRITTEN)
def test_every_format_is_linked_and_materialised(
    made: dict[str, Path], name: str, tmp_path: Path
) -> None:
    source = f"{name}:{made[name]}"
    linked = ingest(tmp_path / "linked", source, link=True)
    ingest(tmp_path / "copied", source)
    assert linked.episodes_added == 4
    assert array_bytes(tmp_path / "linked") == 0
    store, copied = open_store(tmp_path / "linked"), open_store(tmp_path / "copied")
    assert {part.kind for part in store.version().state.parts} == {"linked"}
    hidden = ["source", "spec"]
    rows = store.version().episodes().drop_columns(hidden)
    assert rows.equals(copied.version().episodes().drop_columns(hidden))
    assert digests(store) == digests(copied)
    assert store.doctor().problems == []
    done = store.materialise()
    assert (done.episodes, done.commit.number) == (4, 2)
    assert {part.kind for part in store.version().state.parts} == {"stored"}
    assert digests(store) == digests(copied)
    assert store.version().episodes().drop_columns(hidden).equals(rows)
    assert ingest(tmp_path / "linked", source, link=True, backfill=True).episodes_added == 0
    if made[name].is_dir():
        assert store.doctor().problems == []


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("hopper-medium/d4rl.hdf5", 8),
        ("hopper-medium/robomimic.hdf5", 8),
        ("metaworld/parquet", 4),
        ("metaworld/replay_buffer.zarr", 4),
        ("lerobot/metaworld_images_video", 2),
        ("lerobot/metaworld_images_png", 2),
        ("lerobot/hopper_medium", 4),
    ],
)
def test_real_files(shared_data: Path, tmp_path: Path, name: str, limit: int) -> None:
    source = shared_data / name
    linked = ingest(tmp_path / "linked", source, link=True, max_episodes=limit)
    ingest(tmp_path / "copied", source, max_episodes=limit)
    assert linked.episodes_added == limit
    assert array_bytes(tmp_path / "linked") == 0
    assert digests(tmp_path / "linked") == digests(tmp_path / "copied")
    open_store(tmp_path / "linked").materialise()
    assert array_bytes(tmp_path / "linked") > 0
    assert digests(tmp_path / "linked") == digests(tmp_path / "copied")


# -- everything works as if it were copied ---------------------------------------------------------


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Store, Store]:
    """One D4RL file, linked and copied."""
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))
    source = write_d4rl(tmp_path / "a.hdf5", [30] * 20)
    ingest(tmp_path / "linked", source, link=True)
    ingest(tmp_path / "copied", source)
    return open_store(tmp_path / "linked"), open_store(tmp_path / "copied")


def test_scores_curation_statistics_and_export(pair: tuple[Store, Store], tmp_path: Path) -> None:
    config = MeasureConfig(metrics=("action_divergence", "transition_diversity"), bootstrap=0)
    scores = []
    for store in pair:
        measure_version(store, "main", config)
        kept = (
            store.version()
            .where("action_divergence <= quantile(action_divergence, 0.5)")
            .commit("half")
        )
        scores.append(store.version().episodes(columns=["action_divergence"]))
        assert len(kept) == 10
        out = tmp_path / f"{Path(store.url).name}.out"
        assert export_version(kept, "parquet", str(out)) == 10
    assert scores[0].equals(scores[1])
    linked, copied = pair
    ours, theirs = linked.version("half"), copied.version("half")
    assert [digest(e) for e in ours.iter_episodes()] == [digest(e) for e in theirs.iter_episodes()]
    np.testing.assert_array_equal(
        ours.field("actions").compute(), theirs.field("actions").compute()
    )
    assert json.dumps(field_stats(ours)) == json.dumps(field_stats(theirs))
    assert linked.diff("main", "half") == copied.diff("main", "half")
    # Scores and selections stay when the data come in.
    done = linked.materialise("half")
    assert done.episodes == 10
    assert linked.version("half").episodes().equals(ours.episodes())
    assert linked.version("half").state.metrics == ours.state.metrics
    assert {part.kind for part in linked.version().state.parts} == {"linked"}


def test_streams_are_the_same(pair: tuple[Store, Store]) -> None:
    batches = [
        next(iter(Stream(f"{store.url}@main", framework="numpy", batch_size=64, seed=3)))
        for store in pair
    ]
    for name, rows in batches[1].items():
        np.testing.assert_array_equal(batches[0][name], rows)


def test_what_is_known_is_not_added_again(tmp_path: Path) -> None:
    source = write_d4rl(tmp_path / "a.hdf5", [5, 6])
    assert ingest(tmp_path / "s", source, link=True).episodes_added == 2
    for options in ({"link": True}, {"link": True, "backfill": True}, {}, {"backfill": True}):
        again = ingest(tmp_path / "s", source, **options)
        assert (again.episodes_added, again.episodes_known) == (0, 2), options
    # A copy of a copied one, linked: known by content too.
    assert ingest(tmp_path / "t", source).episodes_added == 2
    assert ingest(tmp_path / "t", source, link=True).episodes_added == 0


def test_commits_of_some_episodes_each(tmp_path: Path) -> None:
    source = write_d4rl(tmp_path / "a.hdf5", [5, 6, 7, 8, 9])
    report = ingest(tmp_path / "s", source, link=True, commit_every=2)
    assert report.episodes_added == 5
    store = open_store(tmp_path / "s")
    assert [part.episodes for part in store.version().state.parts] == [2, 2, 1]
    assert digests(store) == digests(_copied(tmp_path, source))
    lists = {b.sources for part in store.version().state.parts for b in part.blocks}
    assert len(lists) == 1, "blocks of one source share its list of files"


def _copied(tmp_path: Path, source: Path) -> Path:
    ingest(tmp_path / "copied", source)
    return tmp_path / "copied"


def test_engines_link_too(tmp_path: Path) -> None:
    source = write_d4rl(tmp_path / "a.hdf5", [5, 6, 7])
    ingest(tmp_path / "s", source, link=True, engine=EngineConfig(engine="in-process", workers=2))
    assert digests(tmp_path / "s") == digests(_copied(tmp_path, source))


def test_a_relative_path_is_kept_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_d4rl(tmp_path / "a.hdf5", [5, 6])
    monkeypatch.chdir(tmp_path)
    ingest(Path("s"), "a.hdf5", link=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(digests(tmp_path / "s")) == 2


def test_urls(tmp_path: Path) -> None:
    source = write_d4rl(tmp_path / "a.hdf5", [5, 6])
    ingest(tmp_path / "s", f"file://{source}", link=True)
    assert digests(tmp_path / "s") == digests(_copied(tmp_path, source))


def test_urls_of_other_places(tmp_path: Path) -> None:
    import fsspec

    source = write_d4rl(tmp_path / "a.hdf5", [5, 6])
    memory = fsspec.filesystem("memory")
    memory.pipe("/link/a.hdf5", source.read_bytes())
    ingest(tmp_path / "s", "memory://link/a.hdf5", link=True)
    assert digests(tmp_path / "s") == digests(_copied(tmp_path, source))
    memory.pipe("/link/a.hdf5", write_d4rl(tmp_path / "b", [5, 6], seed=1).read_bytes())
    with pytest.raises(LinkedSourceChangedError, match=r"memory://link/a\.hdf5"):
        digests(tmp_path / "s")
    memory.rm("/link/a.hdf5")
    with pytest.raises(LinkedSourceChangedError, match="no file"):
        digests(tmp_path / "s")


def test_what_cannot_be_linked_is_refused(tmp_path: Path) -> None:
    source = write_d4rl(tmp_path / "a.hdf5", [5])
    with pytest.raises(ConfigError, match="dtype"):
        ingest(tmp_path / "s", source, link=True, dtype="float16")
    with pytest.raises(SourceError, match="--link"):
        ingest(tmp_path / "s", "gymnasium:Pendulum-v1?episodes=1", link=True)
    assert not (tmp_path / "s").exists()


def test_a_replaced_episode_comes_from_its_new_place(tmp_path: Path) -> None:
    from tests.jobs.test_changes_and_specs import minari_of

    first = minari_of(tmp_path / "m", [0, 1, 2])
    ingest(tmp_path / "s", first, link=True)
    # The dataset is written anew elsewhere; the old one stays.
    shutil.copytree(first, tmp_path / "kept")
    second = minari_of(tmp_path / "n" / "m", [0, 7, 2])
    report = ingest(tmp_path / "s", second, link=True, on_change="replace")
    assert (report.episodes_added, report.episodes_replaced) == (0, 1)
    expected = np.random.default_rng(7).normal(size=(6, 3)).astype(np.float32)
    found = [
        e.observations["observations"] for e in open_store(tmp_path / "s").version().iter_episodes()
    ]
    assert sum(np.array_equal(rows, expected) for rows in found) == 1
    assert len(found) == 3


# -- what may happen to a source -------------------------------------------------------------------


def _rewrite(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file["actions"][3] = 99.0


def _flip_unseen(path: Path) -> None:
    """Changes a value and puts the time of writing back."""
    before = path.stat()
    _rewrite(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def _redirect(path: Path) -> None:
    other = path.with_name("other.hdf5")
    path.rename(other)
    path.symlink_to(other)


CHANGES = {
    "rewritten": (_rewrite, "written since"),
    "flipped unseen": (_flip_unseen, "other content"),
    "gone": (Path.unlink, "no file"),
    "truncated": (_truncate, "bytes in place of"),
    "redirected": (_redirect, "symbolic link"),
    "emptied": (lambda path: path.write_bytes(b""), "0 bytes in place of"),
    "another": (lambda path: write_d4rl(path, [9, 3], seed=8), "written since"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_file_is_a_typed_error(tmp_path: Path, change: str) -> None:
    source = write_d4rl(tmp_path / "a.hdf5", [5, 6])
    ingest(tmp_path / "s", source, link=True)
    store = open_store(tmp_path / "s")
    if change != "flipped unseen":  # rows that are kept in memory are of the file as it was
        assert len(digests(store)) == 2
    act, says = CHANGES[change]
    act(source)
    with pytest.raises(LinkedSourceChangedError, match=says) as caught:
        digests(store)
    assert caught.value.where == str(source)
    assert (caught.value.kind, caught.value.exit_code) == ("linked_source_changed", 6)
    assert "ingest it again" in caught.value.message
    with pytest.raises(LinkedSourceChangedError):
        store.materialise()
    assert store.version().number == 1
    (damage,) = store.doctor().damage
    assert (damage.code, damage.where) == ("changed_source", str(source))
    # The table of episodes is the store's own.
    assert store.version().episodes().num_rows == 2


def test_touching_moving_back_and_growing_are_no_changes(tmp_path: Path) -> None:
    source = write_d4rl(tmp_path / "a.hdf5", [5, 6])
    ingest(tmp_path / "s", source, link=True)
    before = digests(tmp_path / "s")
    os.utime(source)
    assert digests(tmp_path / "s") == before
    source.rename(tmp_path / "b.hdf5")
    with pytest.raises(LinkedSourceChangedError, match="no file"):
        digests(tmp_path / "s")
    (tmp_path / "b.hdf5").rename(source)
    assert digests(tmp_path / "s") == before
    with h5py.File(source, "a") as file:
        file.create_dataset("metadata/note", data="more")
    assert digests(tmp_path / "s") == before
    assert open_store(tmp_path / "s").doctor().damage == []


def test_one_file_of_a_folder(made: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(made["lerobot"], folder)
    ingest(tmp_path / "s", folder, link=True)
    (folder / "NOTES.txt").write_text("beside the data")
    assert len(digests(tmp_path / "s")) == 4
    data = next(folder.rglob("data/**/*.parquet"))
    data.rename(tmp_path / "away.parquet")
    with pytest.raises(LinkedSourceChangedError) as caught:
        digests(tmp_path / "s")
    assert caught.value.where == str(data)
    data.symlink_to(tmp_path / "away.parquet")
    with pytest.raises(LinkedSourceChangedError, match="symbolic link"):
        digests(tmp_path / "s")


def test_a_video_that_changes_after_its_rows_were_read(shared_data: Path, tmp_path: Path) -> None:
    shutil.copytree(shared_data / "lerobot/metaworld_images_video", tmp_path / "data")
    ingest(tmp_path / "s", tmp_path / "data", link=True, max_episodes=1)
    (one,) = open_store(tmp_path / "s").version().iter_episodes()
    (video,) = [rows for rows in one.observations.values() if hasattr(rows, "media")][:1]
    assert len(video.media[0].load()) == video.media[0].size
    for file in (tmp_path / "data").rglob("*.mp4"):
        file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(LinkedSourceChangedError, match=r"\.mp4"):
        video.media[0].load()


def test_repair_leaves_out_what_is_gone(tmp_path: Path) -> None:
    first, second = (write_d4rl(tmp_path / f"{n}.hdf5", [5, 6], seed=n) for n in (0, 1))
    ingest(tmp_path / "s", first, second, link=True)
    first.unlink()
    store = open_store(tmp_path / "s")
    (repaired,) = store.repair()
    assert "2 of 4 episodes" in repaired.left_out[0]
    assert len(digests(store)) == 2
    assert store.doctor().damage == []
    write_d4rl(first, [5, 6], seed=0)
    assert ingest(tmp_path / "s", first, link=True, backfill=True).episodes_added == 2


# -- other processes -------------------------------------------------------------------------------


def test_a_process_that_knows_nothing_reads_links(tmp_path: Path) -> None:
    source = write_d4rl(tmp_path / "a.hdf5", [5, 6])
    ingest(tmp_path / "s", source, link=True)
    code = (
        "import penstock; from schemas.identity import digest\n"
        f"v = penstock.open_store({str(tmp_path / 's')!r}).version()\n"
        "print(*[digest(e) for e in v.iter_episodes()])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == digests(tmp_path / "s")


@pytest.mark.slow
def test_two_processes_link_one_source_once(tmp_path: Path) -> None:
    source = write_d4rl(tmp_path / "a.hdf5", [5, 6, 7])
    command = [sys.executable, "-m", "penstock", "ingest", str(source), "--link"]
    command += ["--into", str(tmp_path / "s")]
    racing = [
        subprocess.Popen([*command, "--name", f"job{n}", "--json"], stdout=subprocess.PIPE)
        for n in range(2)
    ]
    reports = [json.loads(one.communicate(timeout=120)[0]) for one in racing]
    assert sorted(report["episodes_added"] for report in reports) == [0, 3]
    assert len(digests(tmp_path / "s")) == 3


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline.cli.main import main

    source = write_d4rl(tmp_path / "a.hdf5", [5, 6])
    store = str(tmp_path / "s")
    assert main(["ingest", str(source), "--into", store, "--link"]) == 0
    assert main(["show", store]) == 0
    assert f"linked: 2 episodes, 11 steps stay in {source}" in capsys.readouterr().out
    version = open_store(store).version()
    size = source.stat().st_size
    assert describe(open_store(store), version)["linked"] == {
        "episodes": 2,
        "steps": 11,
        "sources": [{"where": str(source), "bytes": size}],
    }
    assert main(["materialise", f"{store}@main:1", "--branch", "whole", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["branch"], told["number"], told["episodes"], told["steps"]) == ("whole", 1, 2, 11)
    assert main(["materialise", f"{store}@whole"]) == 0
    assert "nothing is linked" in capsys.readouterr().out
    assert main(["materialise", f"{store}@main:1", "--branch", "whole"]) == 2
    assert main(["materialise", store]) == 0
    source.unlink()
    for ref in ("main", "whole"):
        assert len(list(open_store(store).version(ref).iter_episodes())) == 2
    assert main(["doctor", store]) == 6, "main:1 is kept, and still links"
    assert "changed_source" in capsys.readouterr().out


def test_an_older_version_is_materialised_on_a_branch_only(tmp_path: Path) -> None:
    for seed in (0, 1):
        ingest(tmp_path / "s", write_d4rl(tmp_path / f"{seed}.hdf5", [5], seed=seed), link=True)
    with pytest.raises(UsageError, match="--branch"):
        open_store(tmp_path / "s").materialise("main:1")
