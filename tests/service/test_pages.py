"""What pages say, to whom, and that texts of the data stay texts."""

from __future__ import annotations

import dataclasses
import io
import re
from urllib.parse import urlencode

import numpy as np
import pytest
from PIL import Image

from pipeline.service.metrics import ServiceMetrics
from pipeline.service.web import episode as episode_page
from pipeline.service.web import strips, svg
from pipeline.service.web.pages import short
from pipeline.service.web.rates import Watch
from pipeline.store import runs
from pipeline.store.store import open_store
from schemas.episode import Episode
from schemas.thumbnails import png
from tests.encoded import camera_episode
from tests.service.ports import Port, service_in
from tests.service.web import HOSTILE, Parsed, pages_in, seen

HTML = {"accept": "text/html"}
FORM = {"content-type": "application/x-www-form-urlencoded"}
EVERY = [
    "/",
    "/history/main",
    "/history/main?before=3",
    "/diff?one=main:1&two=main:4",
    "/versions/main",
    "/versions/main?x=length&y=smoothness&colour=kind&column=length&column=smoothness",
    "/versions/main/episodes",
    "/versions/main/episodes?where=length+%3E+30&sort=-length",
    "/versions/main/select",
    "/versions/main/select?where=success&top=3&by=-length&unscored=drop",
    "/versions/main/episode?at=0",
    "/versions/main/episode?" + urlencode({"id": HOSTILE}),
    "/live",
    "/live/figures",
    "/quarantine?ref=main:4",
    "/quarantine?ref=main:4&reason=id_conflict&source=nothing",
    "/tokens",
]
"""Pages, with what they can be asked."""


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    with pages_in(tmp_path_factory.mktemp("pages")) as found:
        yield found


def get(port: Port, path: str, who: str | None = "admin", status: int = 200) -> Parsed:
    answer = port.ask("GET", path, who, headers=HTML)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    return Parsed(answer.text)


@pytest.mark.parametrize("path", EVERY)
def test_pages_run_and_load_nothing_but_our_files(port: Port, path: str):
    answer = port.ask("GET", path, headers=HTML)
    assert answer.status_code == 200, answer.text
    page = Parsed(answer.text)
    if "figures" not in path:
        assert [one.get("src") for one in page.all("script")] == ["/static/penstock.js"]
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes), tag
        for name in ("src", "href", "action"):
            place = attributes.get(name)
            assert place is None or place.startswith(("/", "#", "?")), place
            assert place is None or not place.startswith("//")
    assert {one["src"] for one in page.all("img")} <= {
        one["src"] for one in page.all("img") if one["src"].startswith("/versions/")
    }
    policy = answer.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "default-src 'self'" in policy
    assert answer.headers["referrer-policy"] == "same-origin"
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_what_pages_load_is_there_and_small(port: Port):
    for name in ("penstock.css", "penstock.js", "icon.svg"):
        answer = port.ask("GET", f"/static/{name}", None)
        assert answer.status_code == 200
        assert 0 < len(answer.content) < 20_000
        assert b"://" not in answer.content.replace(b"http://www.w3.org/2000/svg", b"")
    for name in ("base.html", "..%2Fpages.py", "x" * 99):
        assert port.ask("GET", f"/static/{name}", None).status_code == 404


def test_the_store_s_page(port: Port):
    page = get(port, "/")
    assert "main:4 41 1,307" in page.text
    assert {"/history/main", "/versions/main:4"} <= set(page.links())
    assert page.all("svg")[0]["aria-label"] == "Steps in 4 versions of main"
    assert "/diff?one=main%3A1&two=main%3A2" in get(port, "/history/main").links()
    assert "main:3" not in get(port, "/history/main?before=3").text.split("Compare")[0]
    assert "added 1 " in get(port, "/diff?one=main:1&two=main:4").text


def test_a_store_without_versions(tmp_path):
    with service_in(tmp_path, is_filled=False) as port:
        assert "No version yet" in get(port, "/").text
        assert "has none yet" in get(port, "/live").text
        assert "came a store without any" in get(port, "/versions/main", status=404).text
        assert "came a store without any" in get(port, "/quarantine", status=404).text


def test_a_version_s_page(port: Port):
    page = get(port, "/versions/main:4?x=length&y=episode_return&column=length")
    assert "episodes 41 steps 1,307" in page.text
    marks = [one for one in page.all("g") if one.get("class", "").startswith("m k")]
    assert len([one for one in marks if "data-at" in one]) == 41
    assert "push 20 630 0.65" in page.text
    assert "<img src=x onerror=alert(1)> 1 27 1" in page.text
    assert "observations/camera |u1 [24, 32, 3] raw" in page.text
    assert "smoothness" in {one.get("value") for one in page.all("option")}
    assert len(page.all("figure")) == 2
    unknown = get(port, "/versions/main?x=lenght", status=400)
    assert "'length'" in unknown.text


def test_many_episodes_come_in_pages(tmp_path):
    store = open_store(tmp_path / "store", create=True)
    count = svg.MAX_POINTS + 500
    zeros = np.zeros((2, 1), np.float32)
    store.append(
        Episode(f"e{n:06d}", {"x": zeros}, None, np.array([float(n)]), success=n % 2 == 0)
        for n in range(count)
    )
    with service_in(tmp_path, is_filled=False) as port:
        answer = port.ask("GET", "/versions/main?x=episode_return&y=length", headers=HTML)
        assert answer.text.count("data-at=") <= svg.MAX_POINTS
        assert "evenly spaced ones are drawn" in answer.text
        assert len(answer.content) < 600_000
        first = get(port, "/versions/main/episodes?sort=-episode_return")
        assert f"50 of {count:,}" in first.text
        assert first.text.index(f"e{count - 1:06d}") < first.text.index(f"e{count - 2:06d}")
        (next_page,) = [one for one in first.links() if "page=2" in one]
        assert f"e{count - 51:06d}" in get(port, next_page).text
        last = get(port, "/versions/main/episodes?page=999999999")
        assert f"e{count - 1:06d}" in last.text
        kept = get(port, "/versions/main/select?where=episode_return+%3C+100")
        assert f"100 of {count:,}" in kept.text


def test_a_filter_is_shown_saved_and_tagged(port: Port):
    where = "success and length > 25"
    page = get(port, "/versions/main:4/select?" + urlencode({"where": where}))
    expected = len(port.store.version("main:4").episodes(where))
    assert f"episodes kept {expected} of 41 dropped {41 - expected}" in page.text
    assert "success 14 10" in page.text  # what the first part leaves out, and alone
    assert page.all("progress")
    form = {"where": where, "branch": "kept", "tag": "kept-1", "message": "<i>kept</i>"}
    made = port.ask("POST", "/versions/main:4/select", "curate", data=form, headers=HTML)
    assert (made.status_code, made.headers["location"]) == (303, "/versions/kept:1")
    saved = port.store.version("kept-1")
    assert (len(saved), saved.message) == (expected, "<i>kept</i>")
    shown = get(port, "/versions/kept-1")
    assert f"success and length > 25 : {expected} of 41 episodes" in shown.text
    again = port.ask("POST", "/versions/main:4/select", data=form, headers=HTML)
    assert again.status_code == 409
    taken = Parsed(again.text)
    assert "'kept-1', which is taken; nothing was committed" in taken.text
    assert "kept-1" in {one.get("value") for one in taken.all("input")}
    assert port.store.version("kept").number == 1
    tagged = port.ask("POST", "/versions/kept:1/tag", "curate", data={"tag": "t2"}, headers=HTML)
    assert tagged.status_code == 303
    assert port.store.tags()["t2"].id == saved.id


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"where": "lenth > 3"}, "'length'"),
        ({"where": "length >"}, "Expected"),
        ({"where": "coverage > 0"}, "penstock measure"),
        ({"where": "length > 1e9"}, "loosen the filter"),
        ({"where": "action_divergence < 9"}, "came 1 without"),
        ({"top": "3"}, "--by"),
        ({"where": "x" * 17000}, "16384"),
        ({"top": "-1", "by": "length"}, "greater than"),
        ({"branch": "b"}, "branch"),
    ],
)
def test_what_is_wrong_with_a_filter_is_said(port: Port, query: dict[str, str], said: str):
    page = get(port, "/versions/main:4/select?" + urlencode(query), status=page_status(query))
    (alert,) = [one for one in page.all("p") if one.get("role") == "alert"]
    assert alert
    assert said in page.text


def page_status(query: dict[str, str]) -> int:
    return 409 if query.get("where", "")[:6] in ("covera", "action") else 400


def test_forms_are_read_with_care(port: Port):
    place = "/versions/main:4/tag"
    for body, headers in (
        (b"tag=a&tag=b", FORM),
        (b"tag=a&more=b", FORM),
        (b"tag=%ff", FORM),
        (b"\xff", FORM),
        (b"&".join(b"a%d=" % n for n in range(99)), FORM),
        (b'{"tag": "a"}', {"content-type": "application/json"}),
        (b"tag=a", {"content-type": "multipart/form-data; boundary=x"}),
    ):
        answer = port.ask("POST", place, content=body, headers={**headers, **HTML})
        assert answer.status_code == 400, body
    assert "a" not in port.store.tags()
    foreign = {**FORM, **HTML, "origin": "https://evil.example"}
    assert port.ask("POST", place, content=b"tag=a", headers=foreign).status_code == 403
    null = {**FORM, **HTML, "origin": "null"}
    assert port.ask("POST", place, content=b"tag=a", headers=null).status_code == 403


def test_an_episode_s_page(port: Port):
    page = get(port, "/versions/main:4/episode?at=3")
    assert "seen-003" in page.text
    assert "4 of 41 in main:4" in page.text
    assert {"/versions/main:4/episode?at=2", "/versions/main:4/episode?at=4"} <= set(page.links())
    lengths = port.store.version("main:4").episodes()["length"].to_numpy()
    share = 100 * (lengths <= lengths[3]).mean()
    assert f"length {lengths[3]} {np.median(lengths):.4g} {share:.0f}" in page.text
    assert "actions" in page.text
    assert "rewards" in page.text
    (image,) = page.all("img")
    answer = port.ask("GET", image["src"], "pull")
    assert answer.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(answer.content)) as picture:
        assert picture.size == (int(image["width"]), int(image["height"]))
        row = np.asarray(picture)
    assert (row[:, :64] != 0).any()
    for query in ("id=nobody", "at=41", ""):
        get(port, f"/versions/main:4/episode?{query}", status=404)
    other = urlencode({"id": "seen-003", "field": "actions"})
    assert port.ask("GET", f"/versions/main:4/strip?{other}").status_code == 404


def test_hostile_texts_stay_texts(port: Port):
    page = get(port, "/versions/main:4/episode?" + urlencode({"id": HOSTILE}))
    assert HOSTILE[:30] in page.text
    assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in page.text
    assert "<img src=x onerror=alert(1)>" in page.text
    (image,) = page.all("img")
    assert port.ask("GET", image["src"]).status_code == 200
    listed = get(port, "/versions/main:4/episodes?sort=episode_id")
    (link,) = [one for one in listed.links() if "script" in one]
    assert HOSTILE[:30] in get(port, link).text
    for text in ("'><script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "\x00", "🙂"):
        for path in (
            "/versions/main:4/select?" + urlencode({"where": text}),
            "/versions/main:4/episodes?" + urlencode({"where": text, "sort": text}),
            "/versions/main:4?" + urlencode({"x": text}),
            "/versions/main:4/episode?" + urlencode({"id": text}),
            "/diff?" + urlencode({"one": text, "two": text}),
        ):
            answer = port.ask("GET", path, headers=HTML)
            assert answer.status_code in (400, 404)
            assert "<script>alert" not in answer.text
            assert "<img src=x" not in answer.text
    assert len(short("a" * 1000)) == 200


def test_encoded_pictures_and_texts(tmp_path, monkeypatch):
    store = open_store(tmp_path / "store", create=True)
    store.append([camera_episode("filmed", steps=6)])
    with service_in(tmp_path, is_filled=False) as port:
        page = get(port, "/versions/main/episode?at=0")
        assert len(page.all("img")) == 2
        for image in page.all("img"):
            assert port.ask("GET", image["src"]).content.startswith(b"\x89PNG")
        assert "grüße" in page.text

        monkeypatch.setitem(__import__("sys").modules, "av", None)
        without = get(port, "/versions/main/episode?at=0")
        assert "penstock[video]" in without.text
        assert len(without.all("img")) == 1
    kept = strips.Strips()
    monkeypatch.setattr(strips, "MAX_BYTES", 1)
    kept.make("v", store.version("main").episode("filmed"))
    assert kept.find("v", "filmed", "observations/front") is None


def test_an_episode_that_is_too_large_or_damaged_says_so(tmp_path, monkeypatch):
    with pages_in(tmp_path) as port:
        monkeypatch.setattr(episode_page, "MAX_EPISODE_BYTES", 1000)
        page = get(port, "/versions/main/episode?at=3")
        assert "to draw" in page.text
        assert "seen-003" in page.text
        query = urlencode({"id": "seen-003", "field": "observations/camera"})
        assert port.ask("GET", f"/versions/main/strip?{query}").status_code == 413
    monkeypatch.undo()
    blocks = [p for n in ("tails", "shards") for p in (tmp_path / "store" / n).rglob("*")]
    for file in blocks:
        if file.is_file():
            file.write_bytes(b"x" * file.stat().st_size)
    with service_in(tmp_path, is_filled=False, no_token=True) as port:
        page = get(port, "/versions/main/episode?at=4", None)
        assert [one for one in page.all("p") if one.get("role") == "alert"]
        assert "seen-004" in page.text
        assert str(tmp_path) not in page.text


def test_errors_are_pages_for_browsers_alone(port: Port):
    for path, status in (("/nowhere", 404), ("/versions/none", 404), ("/versions/a..b:x", 400)):
        page = port.ask("GET", path, headers=HTML)
        plain = port.ask("GET", path)
        assert page.status_code == plain.status_code == status
        assert plain.json()["error"]["message"] in Parsed(page.text).text
    assert port.ask("GET", "/v1/versions/none", headers=HTML).json()["error"]["kind"]
    foreign = port.ask("GET", "/", headers={**HTML, "host": "evil.example"})
    assert foreign.status_code == 403
    assert "Expected a Host" in Parsed(foreign.text).text


def test_a_fault_of_our_own_is_a_page(tmp_path):
    def broken(*_):
        raise RuntimeError("secret")

    with pages_in(tmp_path, describe=broken) as port:
        answer = port.ask("GET", "/versions/main", headers=HTML)
        assert answer.status_code == 500
        assert answer.headers["x-request-id"] in Parsed(answer.text).text
        assert "secret" not in answer.text


def test_signing_in_and_out(port: Port):
    page = get(port, "/versions/main?x=length", None, 401)
    assert "came none" in page.text
    (hidden,) = [one for one in page.all("input") if one.get("name") == "next"]
    assert hidden["value"] == "/versions/main?x=length"
    form = {"token": f" {port.texts['pull']} ", "next": hidden["value"]}
    headers = {**HTML, "origin": port.url}
    made = port.ask("POST", "/sign-in", None, data=form, headers=headers)
    assert (made.status_code, made.headers["location"]) == (303, "/versions/main?x=length")
    cookie = made.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert port.texts["pull"] not in cookie
    signed = {**headers, "cookie": cookie.partition(";")[0]}
    shown = Parsed(port.ask("GET", "/", None, headers=signed).text)
    assert "has-pull" in shown.text
    assert "/tokens" not in shown.links()
    assert (
        "Tag this version"
        not in Parsed(port.ask("GET", "/versions/main", None, headers=signed).text).text
    )
    assert port.ask("GET", "/tokens", None, headers=signed).status_code == 403
    out = port.ask("POST", "/sign-out", None, headers=signed)
    assert (out.status_code, out.headers["location"]) == (303, "/sign-in")
    assert port.ask("GET", "/", None, headers=signed).status_code == 401
    wrong = port.ask("POST", "/sign-in", None, data={"token": "no"}, headers=headers)
    assert wrong.status_code == 401
    assert "came another text" in Parsed(wrong.text).text
    long = port.ask("POST", "/sign-in", None, data={"token": "x" * 5000}, headers=headers)
    assert long.status_code == 413


@pytest.mark.parametrize("place", ["//evil.example/", "/\\evil.example", "https://e", "/a\nb", "x"])
def test_signing_in_leads_nowhere_else(port: Port, place: str):
    form = {"token": port.texts["pull"], "next": place}
    made = port.ask("POST", "/sign-in", None, data=form)
    assert made.headers["location"] == "/"


def test_a_service_without_tokens_has_pages_too(tmp_path):
    with service_in(tmp_path, no_token=True) as port:
        page = get(port, "/", None)
        assert "Sign out" not in page.text
        assert "/tokens" not in page.links()
        assert "Tag this version" in get(port, "/versions/main", None).text
        assert port.ask("GET", "/sign-in", None).headers["location"] == "/"
        assert "lets everyone in" in get(port, "/tokens", None, 400).text


def test_tokens_are_listed_and_revoked_but_never_told(tmp_path):
    with service_in(tmp_path) as port:
        answer = port.ask("GET", "/tokens", headers=HTML)
        for text in port.texts.values():
            assert text not in answer.text
            assert text.split("_", 2)[2] not in answer.text
        assert not re.search(r"[0-9a-f]{64}", answer.text)
        page = Parsed(answer.text)
        assert "has-push" in page.text
        (wanted,) = [one for one in port.state.book.tokens() if one.name == "has-pull"]
        done = port.ask("POST", "/tokens/revoke", data={"id": wanted.id})
        assert done.headers["location"] == "/tokens"
        assert port.ask("GET", "/", "pull").status_code == 401
        again = port.ask("POST", "/tokens/revoke", data={"id": wanted.id})
        assert again.status_code == 404


def test_quarantine(port: Port):
    page = get(port, "/quarantine?ref=main:4")
    assert "1 of 1 refused episodes" in page.text
    assert "seen-000 id_conflict" in page.text
    assert "id_conflict (1)" in page.text
    other = get(port, "/quarantine?ref=main:4&reason=other")
    assert "0 of 1 refused episodes" in other.text


def test_live_runs_and_how_far_they_are_behind(tmp_path):
    with service_in(tmp_path) as port:
        catalog = port.store.catalog
        runs.refer(catalog, "iql-1", 0, [port.store.version("main").commit], [{}])
        port.store.append([seen("later", 1)], new_spec="other")
        runs.refer(catalog, "iql-2", 70, [port.store.version("main").commit], [{}])
        catalog.objects.put({"refs/runs/broken/000000000000.json": b"{}"})
        version = port.store.version("main").id
        beat = {"step": 12, "version": version, "samples": 300, "inserted": 200}
        told = port.ask("POST", "/v1/learners/iql-3", json=beat)
        assert told.status_code == 200
        page = get(port, "/live")
        assert "iql-3 12 0 300 200 1.5 any number" in page.text
        assert "iql-1 0 main:1 1 21" in page.text
        assert "iql-2 70 main:2 0 0" in page.text
        assert "broken Expected a run's reference" in page.text


def test_rates_are_means_of_the_last_seconds():
    metrics, now = ServiceMetrics(), [0.0]
    watch = Watch(metrics, lambda: now[0])
    assert watch.rates().steps is None
    for _ in range(40):
        metrics.put_steps.labels("a").inc(5)
        metrics.put_steps.labels("b").inc(5)
        metrics.put_ack.observe(0.1)
        metrics.wal_fsync.observe(0.002)
        now[0] += 1.0
        found = watch.rates()
    assert dataclasses.astuple(found)[:2] == pytest.approx((1.0, 10.0))
    assert found.sync_seconds == pytest.approx(0.002)
    assert found.over == pytest.approx(10.0)
    assert found.history == pytest.approx([10.0] * 40)
    metrics.put_steps.labels("a").inc(1000)
    now[0] += 0.1
    assert watch.rates().steps == pytest.approx(10.0)  # too soon for another look


def test_plots_stay_within_their_frames():
    hard = np.array([np.nan, np.inf, -np.inf, 1e308, -1e308, 0.0, 5e-324])
    assert svg.histogram(hard, "x") == ""
    assert "nan" not in svg.histogram(np.array([1.0, 2.0, np.nan]), "x")
    assert svg.histogram(np.ones(5), "x") == ""
    assert svg.lines(np.full((5, 2), np.nan), "x") == ""
    path = svg.lines(np.array([[0.0], [np.nan], [1.0], [2.0]]), "x")
    assert path.count("M") == 2
    spike = np.zeros((100_000, 1))
    spike[77_777] = 1.0
    drawn = svg.lines(spike, "x")
    assert re.search(r"[ML][\d.]+ 8\.\d", drawn)
    assert len(drawn) < 20_000
    flat = svg.scatter(np.ones(1), np.ones(1), np.zeros(1, int), [(0, "<b>")], ("a", "<i>"), "x")
    assert "&lt;b&gt;" in flat
    assert "<i>" not in flat
    assert svg.sparkline([1.0], "x") == ""


def test_a_png_of_our_own_is_one():
    pixels = np.random.default_rng(0).integers(0, 255, (7, 5, 3), np.uint8)
    with Image.open(io.BytesIO(png(pixels))) as picture:
        assert (np.asarray(picture) == pixels).all()
