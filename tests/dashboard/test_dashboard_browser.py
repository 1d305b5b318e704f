"""The dashboard in a real browser: the distribution's Chromium, found by its path."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from dashboard_makers import SMALL, StatusServer, hostile_run, viewer
from scripted_run import Shape, judged_of, line, make_run, step_events

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH (apt-get install chromium)"),
    pytest.mark.timeout(180),
]
PATIENCE_S = 20.0


@dataclass(slots=True)
class Tab:
    """A page and everything that it complained about."""

    page: playwright.Page
    base: str
    complaints: list[str] = field(default_factory=list)

    def open(self, path: str) -> None:
        self.page.goto(self.base + path)

    def text(self, selector: str) -> str:
        return str(self.page.locator(selector).first.inner_text())

    def wait(self, script: str) -> None:
        # Not wait_for_function, which evaluates strings inside the page: its policy forbids that.
        deadline_s = time.monotonic() + PATIENCE_S
        while not self._holds(script):
            assert time.monotonic() < deadline_s, f"never came true: {script}"
            self.page.wait_for_timeout(50)

    def press(self, key: str) -> None:
        self.wait("document.readyState === 'complete'")  # scripts that listen have run then
        self.page.keyboard.press(key)

    def _holds(self, script: str) -> bool:
        try:
            return bool(self.page.evaluate(script))
        except playwright.Error:
            return False  # on its way to another page


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder, SMALL)
    make_run(folder, Shape(name="other", steps=4, groups=2, group_size=4, seed=3))
    make_run(
        folder,
        Shape(name="long", steps=100, groups=16, group_size=8, turns=2, ids=2, stored=1),
    )
    hostile_run(folder)
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[StatusServer]:
    with StatusServer() as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as tool:
        found = tool.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield found
        found.close()


@pytest.fixture(scope="module")
def base(runs: Path, server: StatusServer) -> Iterator[str]:
    with viewer(runs, "--environment", server.url) as url:
        yield url


@contextmanager
def opened(browser: playwright.Browser, base: str, scheme: str = "light") -> Iterator[Tab]:
    """A tab that must not complain."""
    context = browser.new_context(color_scheme=scheme, viewport={"width": 1360, "height": 860})
    page = context.new_page()
    tab = Tab(page=page, base=base)
    page.on("console", lambda said: said.type in ("error", "warning") and note(said.text))
    page.on("pageerror", lambda error: note(str(error)))
    page.on("dialog", lambda dialog: (note(f"dialog {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda asked: asked.url.startswith(base) or note(f"asked {asked.url}"))

    def note(text: str) -> None:
        tab.complaints.append(text)

    yield tab
    context.close()
    assert tab.complaints == []


@pytest.fixture
def tab(browser: playwright.Browser, base: str) -> Iterator[Tab]:
    with opened(browser, base) as tab:
        yield tab


PAGES = {
    "/": "Runs",
    "/now": "Now",
    "/compare?a=small&b=other": "Compare",
    "/runs/small": "small",
    "/runs/small/now": "Now",
    "/runs/small/episodes": "Episodes",
    "/runs/small/episode?of=training&id=small-5-2&beside=small-5-3": "ledger__total-0005",
    "/runs/small/slow": "Why slow",
    "/runs/small/flat": "Why flat",
}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_loads_in_both_schemes(
    browser: playwright.Browser, base: str, scheme: str
) -> None:
    with opened(browser, base, scheme) as tab:
        for path, heading in PAGES.items():
            tab.open(path)
            assert tab.text("h1") == heading
            if tab.page.locator("#charts").count():
                tab.wait("Number(document.getElementById('charts').dataset.drawn) > 0")
                assert tab.page.locator("#charts canvas").count() > 0
            brightness = tab.page.evaluate(
                "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]"
            )
            assert (brightness > 128) == (scheme == "light"), path


def test_the_switch_of_schemes_wins_and_is_kept(tab: Tab) -> None:
    tab.open("/runs/small")
    assert tab.text("#theme") == "auto"
    tab.press("t")
    assert tab.text("#theme") == "dark"
    dark = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
    tab.open("/")
    assert tab.page.evaluate("getComputedStyle(document.body).backgroundColor") == dark
    tab.page.click("#theme")
    tab.page.click("#theme")
    assert tab.text("#theme") == "auto"
    assert tab.page.evaluate("getComputedStyle(document.body).backgroundColor") != dark


def test_filters_leave_what_they_say(tab: Tab) -> None:
    tab.open("/runs/small/episodes")
    tab.wait("document.getElementById('list').dataset.total === '224'")
    tab.page.select_option("select[name=outcome]", "solved")
    tab.wait("Number(document.getElementById('list').dataset.total) < 224")
    outcomes = tab.page.locator(".row:not(.pending) span:nth-child(4)").all_inner_texts()
    assert set(outcomes) == {"solved"}
    tab.page.fill("input[name=step]", "3")
    tab.wait("Number(document.getElementById('list').dataset.total) <= 16")
    assert "outcome=solved" in tab.page.url
    assert "step=3" in tab.page.url
    tab.page.reload()
    tab.wait("Number(document.getElementById('list').dataset.total) <= 16")
    assert set(tab.page.locator(".row span:nth-child(1)").all_inner_texts()) == {"3"}
    tab.open("/")
    tab.page.fill("#filter", "oth")
    shown = tab.page.locator("#runs tbody tr:visible th").all_inner_texts()
    assert shown == ["other"]


def test_a_list_of_12_800_scrolls_with_few_rows(tab: Tab) -> None:
    tab.open("/runs/long/episodes?sort=oldest")
    tab.wait("document.getElementById('list').dataset.total === '12800'")
    most = tab.page.evaluate(
        """async () => {
            const list = document.getElementById("list");
            const frame = () => new Promise((done) => requestAnimationFrame(done));
            let most = 0;
            for (let at = 0; at <= 40; at++) {
                list.scrollTop = (list.scrollHeight * at) / 40;
                await frame();
                await frame();
                most = Math.max(most, list.querySelectorAll(".row").length);
            }
            return most;
        }"""
    )
    assert most < 120, "rows that cannot be seen must not exist"
    tab.wait("[...document.querySelectorAll('.row')].some((r) => r.dataset.id === 'long-1599-7')")
    tab.wait("document.querySelectorAll('.row.pending').length === 0")


def test_keys_mark_open_and_go_on(tab: Tab) -> None:
    tab.open("/runs/small/episodes?sort=oldest&step=2")
    tab.wait("document.querySelectorAll('.row:not(.pending)').length >= 16")
    tab.press("/")
    assert tab.page.evaluate("document.activeElement.name") == "task"
    tab.page.keyboard.type("j")
    assert tab.page.input_value("#filter") == "j", "a key in a field is a letter"
    tab.page.fill("#filter", "")
    tab.press("Escape")
    tab.wait("document.querySelectorAll('.row:not(.pending)').length >= 16")
    for key in ("j", "j", "k", "j"):
        tab.press(key)
    marked = tab.page.locator(".row[data-marked]")
    assert marked.count() == 1
    wanted = marked.get_attribute("data-id")
    tab.press("Enter")
    tab.wait("location.pathname.endsWith('/episode')")
    first = tab.text("article h2 code")
    assert first == wanted
    tab.press("n")
    tab.wait(f"document.querySelector('article h2 code').textContent !== '{first}'")
    tab.press("p")
    tab.wait(f"document.querySelector('article h2 code').textContent === '{first}'")
    tab.press("j")
    assert tab.page.locator(".turn[data-marked]").count() == 1
    tab.press("b")
    tab.wait("document.querySelectorAll('article').length === 2")
    tab.press("?")
    assert tab.page.locator("#keys").is_visible()
    tab.press("Escape")
    assert not tab.page.locator("#keys").is_visible()
    tab.press("u")
    tab.wait("document.querySelectorAll('.row').length > 0")
    tab.press("4")
    tab.wait("location.pathname.endsWith('/slow')")


def test_tokens_take_the_colour_that_is_asked_for(tab: Tab) -> None:
    tab.open("/runs/small/episode?of=training&id=small-5-2")
    tab.page.click("details.tokens summary")
    tab.wait("document.querySelectorAll('.token-text span').length > 50")
    assert tab.page.locator(".token-text .k-on").count() > 0
    for mode, style in (("logprob", "[class^=q]"), ("version", "[class^=v]")):
        tab.page.check(f"input[value={mode}]")
        assert tab.page.locator(f".token-text {style}").count() > 0, mode
        assert tab.page.locator(".token-text .k-on").count() == 0, mode
    tab.page.check("input[value=ratio]")
    assert tab.page.locator(".token-text [class^=r]").count() > 0
    tab.page.hover(".token-text span:nth-child(130)")
    assert "id " in tab.text(".token-said")


def test_the_raw_record_is_copied(browser: playwright.Browser, base: str) -> None:
    with opened(browser, base) as tab:
        tab.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        tab.open("/runs/small/episode?of=training&id=small-5-2")
        tab.page.click("button.copy")
        tab.wait("document.querySelector('.actions .said').textContent.startsWith('copied')")
        copied = tab.page.evaluate("navigator.clipboard.readText()")
        assert '"rollout_id":"small-5-2"' in copied


def test_steps_arrive_while_one_looks_on(tab: Tab, runs: Path) -> None:
    tab.open("/runs/other")
    tab.wait("document.getElementById('step').textContent === '4'")
    shape = Shape(name="other", groups=2, group_size=4, seed=3)
    with (runs / "other" / "events.jsonl").open("ab") as file:
        for event in step_events(5, judged_of(shape, 5)):
            file.write(line(event))
    tab.wait("document.getElementById('step').textContent === '5'")
    assert tab.page.evaluate("document.getElementById('episodes').textContent") == "40"


def test_live_episodes_come_and_go(tab: Tab, server: StatusServer) -> None:
    server.status["episodes"].clear()
    tab.open("/now")
    tab.wait("!document.getElementById('none').hidden")
    server.live(stage="agent", seconds=3.0, commands=1, command="make <b>test</b>")
    server.live(stage="grade", seconds=70.0)
    tab.wait("document.querySelectorAll('#live tbody tr').length === 2")
    assert "task-1" in tab.text("#live tbody tr"), "the oldest comes first"
    assert "make <b>test</b>" in tab.text("#live tbody tr:nth-child(2)")
    assert tab.text("[data-stage=command] dd") == "1"
    tab.page.fill("#filter", "make")
    assert tab.page.locator("#live tbody tr:visible").count() == 1
    server.status["episodes"].clear()
    tab.wait("document.querySelectorAll('#live tbody tr').length === 0")


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/episodes",
        "/slow",
        "/flat",
        "/now",
        *(f"/episode?of=training&id=hostile-0-{number}" for number in range(4)),
    ],
)
def test_nothing_that_a_model_wrote_executes(tab: Tab, path: str) -> None:
    tab.open(f"/runs/hostile{path}")
    if path == "/episodes":
        tab.wait("document.querySelectorAll('.row:not(.pending)').length === 4")
    if tab.page.locator("details.tokens").count():
        tab.page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
        tab.wait("document.querySelectorAll('.token-text span').length > 10")
    tab.page.wait_for_timeout(300)
    assert tab.page.evaluate("window.pwned") is None
    foreign = "document.querySelectorAll('script:not([src^=\"/static/\"]), img, iframe').length"
    assert tab.page.evaluate(foreign) == 0
    assert tab.page.evaluate("document.querySelectorAll('svg[onload]').length") == 0
    if path.endswith("hostile-0-0"):
        assert "<script>window.pwned = 1</script>" in tab.text("main")


def test_a_line_of_10_mb_is_cut_and_the_page_stays_small(tab: Tab) -> None:
    tab.open("/runs/hostile/episode?of=training&id=hostile-0-1")
    assert "characters are not shown here" in tab.text(".hidden-part")
    assert tab.page.evaluate("document.documentElement.outerHTML.length") < 500_000
    assert tab.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_chart_is_enlarged_and_zoomed_into(tab: Tab) -> None:
    tab.open("/runs/small")
    tab.wait("Number(document.getElementById('charts').dataset.drawn) > 5")
    panel = tab.page.locator("[data-panel=entropy]")
    small = panel.locator("canvas").bounding_box()
    panel.locator("h2 button").click()
    tab.wait("document.querySelector('[data-panel=entropy] canvas').clientHeight > 300")
    panel.locator("canvas").scroll_into_view_if_needed()
    large = panel.locator("canvas").bounding_box()
    assert small is not None
    assert large is not None
    assert large["width"] > small["width"]
    x, y = large["x"] + large["width"] * 0.4, large["y"] + 100
    tab.page.mouse.move(x, y)
    tab.wait("document.getElementById('cursor').textContent.startsWith('step ')")
    tab.page.mouse.down()
    tab.page.mouse.move(x + large["width"] * 0.2, y, steps=5)
    tab.page.mouse.up()
    tab.page.mouse.dblclick(x, y)
