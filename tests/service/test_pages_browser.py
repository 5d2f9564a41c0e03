"""A person's way through the pages, in a real browser: headless Chromium, with nothing to load.

`PENSTOCK_SCREENSHOTS` names a folder that keeps a picture of each page.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.service.ports import ARROW, Port, body_of
from tests.service.web import HOSTILE, pages_in, seen

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]
SIZE = {"width": 1280, "height": 800}


@dataclass
class Visitor:
    """A browser's page, and what it asked for and complained of."""

    page: playwright.Page
    port: Port
    pictures: Path
    asked: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def hear(self, said: playwright.ConsoleMessage) -> None:
        """Takes a note of what the console says, but for what says only who typed first."""
        if said.type != "info" or "Autofocus" not in said.text:
            self.complaints.append(f"{said.type}: {said.text}")

    def go(self, path: str) -> None:
        self.page.goto(self.port.url + path)

    def follow(self, place: playwright.Locator) -> None:
        """Clicks on what leads to another page, and waits until that is there."""
        with self.page.expect_navigation():
            place.click()

    @contextlib.contextmanager
    def refused(self) -> Iterator[None]:
        """What is done meets a page with an error's status, which the console notes."""
        with self.page.expect_console_message(lambda said: said.type == "error"):
            yield
        assert self.complaints.pop().startswith("error: Failed to load resource")

    def picture(self, name: str) -> None:
        self.page.screenshot(path=self.pictures / f"{name}.png", full_page=True)

    def text(self, place: str = "main") -> str:
        return " ".join(self.page.locator(place).inner_text().split())


@pytest.fixture(scope="module")
def port(tmp_path_factory) -> Iterator[Port]:
    with pages_in(tmp_path_factory.mktemp("browser"), seal_every=0.2) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(params=["light"])
def visitor(request, port, browser, tmp_path) -> Iterator[Visitor]:
    """Somebody at the door; at the end, nothing was asked for elsewhere and nothing complained."""
    folder = Path(os.environ.get("PENSTOCK_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    context = browser.new_context(viewport=SIZE, color_scheme=request.param)
    context.set_default_timeout(60_000)
    found = Visitor(context.new_page(), port, folder)

    def judge(route: playwright.Route) -> None:
        found.asked.append(route.request.url)
        if route.request.url.startswith(port.url + "/"):
            route.continue_()
        else:
            route.abort()

    context.route("**/*", judge)
    found.page.on("console", found.hear)
    found.page.on("pageerror", lambda error: found.complaints.append(str(error)))
    found.page.on("dialog", lambda dialog: found.complaints.append(f"dialog {dialog.message}"))
    yield found
    context.close()
    assert [url for url in found.asked if not url.startswith(port.url + "/")] == []
    assert found.complaints == []
    assert found.asked


def sign_in(visitor: Visitor, who: str = "admin") -> None:
    visitor.go("/sign-in")
    visitor.page.get_by_label("Token").fill(visitor.port.texts[who])
    visitor.page.keyboard.press("Enter")
    visitor.page.wait_for_url("**/")


def test_from_the_door_to_a_tagged_version(visitor: Visitor) -> None:
    page, port = visitor.page, visitor.port
    sign_in(visitor)
    visitor.picture("overview")
    assert "hostile" not in page.title()
    (cookie,) = page.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")

    visitor.follow(page.get_by_role("link", name="main:4", exact=True))
    assert page.get_by_role("heading", level=1).inner_text().startswith("main:4")
    assert page.locator("#scatter .m").count() == 40  # one has no score
    page.locator("#scatter .m").nth(3).hover()
    assert visitor.text("#hovered") != ""
    page.get_by_label("Across").select_option("length")
    page.get_by_label("up").select_option("episode_return")
    visitor.follow(page.get_by_role("button", name="Draw"))
    box = page.locator("#scatter .frame").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 2, box["y"] + box["height"] * 0.8, steps=4)
    visitor.picture("version")
    page.mouse.up()
    brushed = page.locator("#where").input_value()
    assert re.fullmatch(
        r"length between [-\d.]+ and [-\d.]+ and episode_return between [-\d.]+ and [-\d.]+",
        brushed,
    )

    visitor.follow(page.get_by_role("button", name="Preview"))
    kept = len(port.store.version("main").episodes(brushed))
    assert 0 < kept < 41
    assert f"episodes kept {kept} of 41" in visitor.text("#kept")
    page.locator("#where").fill("succes and length > 25")
    with visitor.refused():
        visitor.follow(page.get_by_role("button", name="Preview"))
    assert "success" in visitor.text("[role=alert]")
    page.locator("#where").fill("success and length > 25")
    visitor.follow(page.get_by_role("button", name="Preview"))
    visitor.picture("filter")
    page.get_by_label("Branch").fill("good")
    page.get_by_label("Tag").fill("good-1")
    page.get_by_label("Message").fill("longer <i>successes</i>")
    visitor.follow(page.get_by_role("button", name="Save"))
    assert page.url.endswith("/versions/good:1")
    saved = port.store.version("good-1")
    assert len(saved) == len(port.store.version("main").episodes("success and length > 25"))
    assert saved.message == "longer <i>successes</i>"
    assert "longer <i>successes</i>" in visitor.text()
    page.get_by_label("Name").fill("twice")
    visitor.follow(page.get_by_role("button", name="Tag"))
    assert "twice" in visitor.text("h1")
    assert port.store.tags()["twice"].id == saved.id

    visitor.follow(page.get_by_role("button", name="Sign out"))
    assert page.url.endswith("/sign-in")
    assert page.context.cookies() == []


@pytest.mark.parametrize("visitor", ["dark"], indirect=True)
def test_an_episode_s_page(visitor: Visitor) -> None:
    page = visitor.page
    sign_in(visitor, "pull")
    visitor.go("/versions/main/episodes?sort=-episode_id")
    visitor.picture("episodes")
    visitor.follow(page.get_by_role("link", name="seen-039"))
    strip = page.locator(".strip img")
    playwright.expect(strip).to_have_js_property("complete", True)
    assert strip.evaluate("one => one.naturalWidth") > 8 * 32
    assert page.locator(".wide svg").count() == 3
    visitor.picture("episode")
    visitor.follow(page.get_by_role("link", name="next"))
    assert page.locator("h1").inner_text().startswith("<script>alert('x')</script>")
    assert page.locator("script").count() == 1
    assert page.locator("img").count() == 1
    with page.expect_navigation():
        page.get_by_role("link", name="previous").press("Enter")
    assert page.locator("h1").inner_text() == "seen-039"
    visitor.go("/versions/main:4")
    mark = page.locator("#scatter .m").first
    at = mark.get_attribute("data-at")
    visitor.follow(mark)
    assert page.url.endswith(f"/episode?at={at}")


def test_the_live_page_comes_anew(visitor: Visitor) -> None:
    page, port = visitor.page, visitor.port
    sign_in(visitor)
    visitor.go("/live")
    before = int(page.locator("#episodes").inner_text())
    sent = body_of(seen("pushed-live", 5), producer="arm-1")
    assert port.ask("POST", "/v1/rollouts", content=sent, headers=ARROW).status_code == 200
    playwright.expect(page.locator("#episodes")).to_have_text(str(before + 1), timeout=60_000)
    visitor.picture("live")
    page.get_by_role("button", name="Pause").press("Enter")
    assert page.locator("#pause").get_attribute("aria-pressed") == "true"


def test_other_pages_and_hostile_texts(visitor: Visitor) -> None:
    page = visitor.page
    sign_in(visitor)
    for name, path in (
        ("history", "/history/main"),
        ("diff", "/diff?one=main:1&two=main:4"),
        ("quarantine", "/quarantine?ref=main:4"),
        ("tokens", "/tokens"),
    ):
        visitor.go(path)
        visitor.picture(name)
        assert page.locator("script").count() == 1
        assert page.locator("main img, main b").count() == 0
    visitor.go("/diff?one=main:1&two=main:4")
    visitor.follow(page.locator(".ids a").first)
    assert "/episode?" in page.url
    assert page.title().startswith("<script>")
    assert HOSTILE[:20] in visitor.text("h1")
    visitor.go("/versions/main:4")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "To the content"
    with visitor.refused():
        visitor.go("/versions/none")
    assert "Expected a branch, a tag" in visitor.text("[role=alert]")
    visitor.picture("error")
