"""The report: one page that says what is there, what is missing, and runs nothing of the data's."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from pipeline.jobs.measure import measure_version
from pipeline.jobs.report_data import MAX_LISTED, gather
from pipeline.jobs.report_page import MARK, write_report
from pipeline.jobs.report_plots import MAX_POINTS, Plots
from pipeline.store.store import open_store
from schemas.episode import Episode
from schemas.errors import FilterError, MissingExtraError, NotFoundError, UsageError
from schemas.metrics import MeasureConfig
from schemas.packed import Packed
from schemas.thumbnails import side_by_side, thumbnail
from tests.encoded import PICTURE, camera_episode
from tests.episodes import episode

HOSTILE = (
    "<script>document.title='run'</script><img src=x onerror=\"document.title='run'\">'\"&$\\x$"
)


class Page(HTMLParser):
    """Elements, ids, texts and tables of a page; unclosed elements fail."""

    VOID = ("meta", "img", "link", "br", "wbr", "hr", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))

    def values(self, name: str, tag: str | None = None) -> list[str]:
        return [v for t, n, v in self.attributes if n == name and tag in (None, t)]


def policy_episode(number: int, **facts) -> Episode:
    """An episode whose actions follow the state, with noise that its number decides."""
    rng = np.random.default_rng(number)
    states = np.cumsum(rng.normal(size=(41, 3)), axis=0).astype(np.float32)
    noise = 0.05 + 0.4 * (number % 3)
    actions = (-0.3 * states[:-1, :2] + noise * rng.normal(size=(40, 2))).astype(np.float32)
    rewards = -np.abs(states[1:, 0])
    told = {"truncated": True, "task": f"task-{number % 2}", "success": bool(number % 2), **facts}
    return Episode(f"try-{number}", {"state": states}, actions, rewards, **told)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Thirty episodes and a copy, measured twice: as main:2 and, with ten more, as main:4."""
    store = open_store(tmp_path_factory.mktemp("report") / "s", create=True)
    config = MeasureConfig(bootstrap=20)
    store.append([policy_episode(number) for number in range(20)], "first tries")
    measure_version(store, "main", config)
    more = [policy_episode(number) for number in range(20, 30)]
    store.append([*more, policy_episode(3).replace(episode_id="again-3")], "more tries")
    measure_version(store, "main", config)
    return store


@pytest.fixture(scope="module")
def page(measured, tmp_path_factory):
    """The page of the measured version against its first."""
    out = tmp_path_factory.mktemp("out") / "report"
    heard: list[int] = []
    written = write_report(measured, "main", out, against="main:2", progress=heard.append)
    assert (written.files, written.episodes) == (["index.html"], 31)
    assert heard == sorted(heard)
    assert heard[-1] == 100
    assert [path.name for path in out.iterdir()] == ["index.html"]
    return Page((out / "index.html").read_text(encoding="utf-8"))


def made(store, tmp_path: Path, ref: str = "main", **options) -> Page:
    write_report(store, ref, tmp_path / "out", **options)
    return Page((tmp_path / "out" / "index.html").read_text(encoding="utf-8"))


def test_what_a_measured_version_s_page_holds(page, measured):
    for said in (
        *("31", "1,240", "action_divergence", "task-0", "task-1", "again-3", "first tries"),
        "1 episodes are copies",
        "Against main:2 with 20 episodes: 11 added, 0 removed, 0 replaced",
        "A classifier tells the versions apart with an AUC of",
        "penstock drift",
        "highest action_divergence, place 1",
        "lowest episode_return, place 4",
        "penstock curate",
    ):
        assert said in page.text
    assert "Not measured" not in page.text
    assert page.tags.count("article") == len({v for v in page.values("id") if _is_section(v)})
    shown = measured.version("main").state.metrics["action_divergence"].value
    assert f"{shown.value:.4g}" in page.text
    assert f"{shown.standard_error:.4g}" in page.text


def _is_section(name: str) -> bool:
    return re.fullmatch(r"episode-\d+", name) is not None


def test_a_page_is_well_formed_and_needs_nothing_from_elsewhere(page):
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(page.tags)
    assert all(v.startswith("data:image/png;base64,") for v in page.values("src"))
    targets = [*page.values("href"), *page.values("xlink:href")]
    assert targets
    assert {target.removeprefix("#") for target in targets} <= set(ids)
    assert "default-src 'none'" in " ".join(page.values("content", "meta"))
    inline = [v for v in page.values("style") if "url(" in v]
    assert all(re.search(r"url\(#plot\d+-", v) for v in inline)


def test_every_picture_and_plot_has_words_and_every_column_a_head(page):
    assert page.tags.count("svg") == len(page.values("aria-label", "svg")) > 10
    assert all(page.values("aria-label", "svg"))
    assert page.tags.count("table") == page.tags.count("caption")
    assert set(page.values("scope", "th")) == {"col", "row"}
    assert page.values("lang", "html") == ["en"]


def test_the_scatter_plot_links_to_the_sections_of_episodes(page):
    links = {v for v in page.values("xlink:href", "a") if _is_section(v.removeprefix("#"))}
    assert len(links) == page.tags.count("article")


def test_picks_are_the_ends_of_the_orders(measured, tmp_path):
    _, data = gather(measured, "main", None, None, "out")
    scores = data.table.select(["episode_id", "action_divergence"]).to_pylist()
    worst = max(scores, key=lambda row: row["action_divergence"])["episode_id"]
    pick = next(p for p in data.picks if "highest action_divergence, place 1" in p.why)
    assert pick.episode_id == worst
    grouped = data.groups[0]
    assert grouped.by == "task"
    assert {row[0]: row[1] for row in grouped.rows} == {"task-0": 15, "task-1": 16}
    successes = grouped.columns.index("success rate") + 1
    assert {row[0]: row[successes] for row in grouped.rows} == {"task-0": 0.0, "task-1": 1.0}


def test_a_comparison_sees_what_moved(tmp_path):
    store = open_store(tmp_path / "s", create=True)
    store.append([policy_episode(n).replace(rewards=np.full(40, 1.0 + n)) for n in range(8)])
    store.append([policy_episode(n).replace(rewards=np.full(40, 99.0 + n)) for n in range(8, 12)])
    store.version("main").where("episode_return > 3000").commit(branch="high")
    _, data = gather(store, "high", None, "main:1", "out")
    found = {one.name: one for one in data.comparison.differences}
    assert found["episode_return"].distance == 1.0
    assert found["episode_return"].shift > 10
    assert found["length"].shift is None  # all are of one length
    assert (found["length"].distance, data.comparison.added, data.comparison.removed) == (0, 4, 8)


def test_versions_without_actions_are_compared_by_their_columns_alone(tmp_path):
    store = open_store(tmp_path / "s", create=True)
    store.append([episode(f"e{n}").replace(actions=None) for n in range(4)])
    page = made(store, tmp_path, against="main:1", where="length < 99")
    assert "States and actions are not compared: Expected episodes of states" in page.text


def test_a_filter_narrows_the_report_and_is_checked(measured, tmp_path):
    page = made(measured, tmp_path, where="task == 'task-1'")
    assert "Only the 16 of 31 episodes" in page.text
    assert "task-0" not in page.text
    with pytest.raises(FilterError):
        write_report(measured, "main", tmp_path / "out", where="task ==")
    with pytest.raises(NotFoundError):
        write_report(measured, "main", tmp_path / "out", against="nowhere")


def test_an_unmeasured_version_says_what_is_missing_and_the_command(tmp_path):
    store = open_store(tmp_path / "s", create=True)
    store.append([episode("one", length=1)])
    page = made(store, tmp_path)
    assert "Nothing is measured yet" in page.text
    assert f"penstock measure {tmp_path}/s@main" in page.text
    assert "Copies are not measured." in page.text
    assert "Very short: 1 episodes" in page.text
    assert page.tags.count("article") == 1


def test_episodes_without_rewards_actions_or_tasks(tmp_path):
    store = open_store(tmp_path / "s", create=True)
    bare = [episode(f"e{n}").replace(actions=None, rewards=None) for n in range(20)]
    store.append(bare)
    page = made(store, tmp_path)
    assert "one of some evenly spaced episodes" in page.text
    assert page.tags.count("article") == 8
    assert "No episode states a task or a policy." in page.text
    assert "No actions are known" in page.text


def test_an_empty_choice_still_makes_a_page(measured, tmp_path):
    page = made(measured, tmp_path, where="length > 1000")
    assert "There are no episodes." in page.text
    assert "article" not in page.tags


def test_pictures_texts_and_ragged_rows(tmp_path):
    store = open_store(tmp_path / "s", create=True)
    store.append([camera_episode(f"c{n}", seed=n) for n in range(3)])
    page = made(store, tmp_path)
    images = page.values("src", "img")
    assert len(images) == 2 * page.tags.count("article") > 0  # front and wrist
    assert all("pictures of observations/" in alt for alt in page.values("alt", "img"))
    assert "extras/instruction: “grüße 🙂 1”" in page.text


def test_a_picture_that_does_not_decode_is_said_in_its_place(tmp_path):
    store = open_store(tmp_path / "s", create=True)
    broken = Packed.of(PICTURE, [b"\x89PNG no picture"] * 6)
    good = camera_episode("c")
    store.append([good.replace(observations={**good.observations, "observations/front": broken})])
    page = made(store, tmp_path)
    assert "Pictures of observations/front: Expected a PNG or JPEG picture" in page.text
    assert len(page.values("src", "img")) == 1


def test_numbers_that_no_plot_can_hold(tmp_path):
    store = open_store(tmp_path / "s", create=True)
    wild = np.array([np.finfo(float).max, -np.finfo(float).max, 1e-300, 0.0])
    store.append(
        [
            Episode("a", {"state": np.zeros((5, 2))}, np.stack([wild, wild], 1), wild),
            Episode("b", {"state": np.zeros((5, 2))}, np.zeros((4, 2)), np.full(4, 1e307)),
        ]
    )
    assert made(store, tmp_path).tags.count("article") == 2


@pytest.fixture
def hostile(tmp_path):
    """A store whose every text is hostile."""
    store = open_store(tmp_path / "s", create=True)
    facts = {"task": HOSTILE, "policy": HOSTILE, "source_key": HOSTILE, "columns": {HOSTILE: "x"}}
    store.append(
        [
            episode(f"{HOSTILE}-{n}", length=4, **facts).replace(
                observations={HOSTILE: np.zeros((5, 2)), "wide": np.zeros((5, 3))},
                extras={"say": Packed.texts([HOSTILE] * 4)},
            )
            for n in range(3)
        ],
        message=HOSTILE,
        source=HOSTILE,
    )
    return store


def test_hostile_texts_stay_texts(hostile, tmp_path):
    page = made(hostile, tmp_path)
    assert "script" not in page.tags
    assert "onerror" not in {name for _, name, _ in page.attributes}
    assert page.text.count("<script>document.title='run'</script>") > 5


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium on this machine")
def test_a_browser_runs_nothing_of_a_hostile_page(hostile, tmp_path):
    write_report(hostile, "main", tmp_path / "out")
    with tempfile.TemporaryDirectory() as profile:
        arguments = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}")
        where = (tmp_path / "out" / "index.html").as_uri()
        shown = subprocess.run(
            ["chromium", *arguments, "--virtual-time-budget=2000", "--dump-dom", where],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        ).stdout
    assert "<title>Penstock report: main:1 of" in shown
    assert "</html>" in shown
    assert "<script" not in shown


def test_many_episodes_are_sampled_and_the_page_says_so(tmp_path):
    store = open_store(tmp_path / "s", create=True)
    count = 2 * MAX_POINTS + 100
    rng = np.random.default_rng(0)

    def short(number: int) -> Episode:
        length = 1 + number % 3
        rewards = rng.normal(size=length)
        return Episode(f"e{number}", {"x": np.zeros((length + 1, 1))}, None, rewards)

    store.append(short(number) for number in range(count))
    page = made(store, tmp_path)
    assert f"about {MAX_POINTS:,} evenly spaced ones are drawn" in page.text
    assert f"No stated end: {count:,} episodes" in page.text
    assert f"The first {MAX_LISTED} are listed" in page.text
    assert (tmp_path / "out" / "index.html").stat().st_size < 3_000_000


def test_a_report_replaces_its_own_page_and_nobody_else_s(measured, tmp_path):
    out = tmp_path / "out"
    made(measured, tmp_path, where="length > 1000")
    before = (out / "index.html").read_text()
    assert MARK in before
    made(measured, tmp_path, where="length > 999")
    assert (out / "index.html").read_text() != before
    (out / "index.html").write_text("<p>mine</p>")
    with pytest.raises(UsageError, match="index"):
        write_report(measured, "main", out)
    assert (out / "index.html").read_text() == "<p>mine</p>"
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="folder"):
        write_report(measured, "main", tmp_path / "file")


def test_a_link_in_the_place_of_the_page_is_not_followed(measured, tmp_path):
    target = tmp_path / "target.html"
    target.write_text(MARK)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "index.html").symlink_to(target)
    with pytest.raises(UsageError, match="somebody else"):
        write_report(measured, "main", tmp_path / "out")


def test_thumbnails_are_bounded_and_keep_their_brightness():
    big = np.full((480, 640, 4), 200, np.uint8)
    assert thumbnail(big).shape == (80, 106, 3)
    assert (thumbnail(big) == 200).all()
    assert thumbnail(np.zeros((16, 24), np.uint8)).shape == (32, 48, 3)
    depth = np.array([[1000, 3000]], np.uint16)
    assert sorted(set(thumbnail(depth).ravel().tolist())) == [0, 255]
    assert thumbnail(np.zeros((1, 50_000, 3), np.uint8)).shape[1] <= 112
    row = side_by_side([np.zeros((4, 6, 3), np.uint8), np.ones((8, 5, 3), np.uint8)])
    assert row.shape == (8, 15, 3)


def test_plots_of_nothing_are_nothing():
    plots = Plots()
    assert plots.histogram(np.array([np.nan]), "x") == ""
    assert plots.histogram(np.full(5, 2.0), "x") == ""
    assert plots.strips(None, None, False, "x") == ""
    assert plots.strips(np.zeros((0, 2)), np.zeros(0), False, "x") == ""
    assert 'aria-label="a &quot;b&quot;"' in plots.histogram(np.arange(9.0), 'a "b"')


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_package_is_named(measured, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"penstock\[report\]"):
        write_report(measured, "main", tmp_path / "out")
    assert not (tmp_path / "out").exists()
