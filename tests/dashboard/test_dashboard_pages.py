"""Every page and every answer, over the application itself: no browser, no port."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from importlib.resources import files
from pathlib import Path

import httpx
import pytest
from dashboard_makers import SMALL, StatusServer, hostile_run
from scripted_run import BEGAN_S, Shape, line, make_run

from palestra.dashboard.app import create_app
from palestra.dashboard.guard import LOOPBACK_NAMES
from palestra.dashboard.site import Site, SiteOptions
from palestra.run.directory import RunDirectory, locked

PAGES = (
    "/",
    "/compare",
    "/compare?a=small&b=other",
    "/now",
    "/runs/small",
    "/runs/small/now",
    "/runs/small/episodes",
    "/runs/small/episode?of=training&id=small-5-2",
    "/runs/small/episode?of=training&id=small-5-2&beside=small-5-3",
    "/runs/small/slow",
    "/runs/small/slow?step=3",
    "/runs/small/flat",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder, SMALL)
    make_run(folder, Shape(name="other", steps=6, groups=2, group_size=4, seed=3))
    hostile_run(folder)
    return folder


@pytest.fixture
async def client(runs: Path) -> AsyncIterator[httpx.AsyncClient]:
    site = Site(SiteOptions(runs=runs))
    app = create_app(site, hosts=LOOPBACK_NAMES)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8777") as client:
        yield client
    site.close()


@pytest.mark.parametrize("path", PAGES)
async def test_pages_load_under_a_strict_policy(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path)
    assert response.status_code == 200, response.text
    policy = response.headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"
    # What the policy would block must not be asked for in the first place.
    assert not re.search(r"<script(?![^>]*\bsrc=)", response.text)
    assert not re.search(r"<[^>]+\s(on\w+|style)=", response.text)
    assert not re.search(r"""(src|href)=["'](https?:)?//""", response.text)


async def test_every_file_that_a_page_names_is_there(client: httpx.AsyncClient) -> None:
    named: set[str] = set()
    for path in PAGES:
        named |= set(re.findall(r'(?:src|href)="(/static/[^"]+)"', (await client.get(path)).text))
    assert len(named) >= 8
    for path in named:
        response = await client.get(path)
        assert response.status_code == 200, path
        assert "http://" not in response.text.replace("http://www.w3.org/", ""), path
        assert "content-security-policy" in response.headers
    for path in ("/static/nothing.js", "/static/..%2fapp.py", "/static/uplot.LICENSE"):
        assert (await client.get(path)).status_code == 404


async def test_nothing_can_be_changed_and_no_other_name_is_known(
    client: httpx.AsyncClient,
) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        assert (await client.request(method, "/runs/small")).status_code == 405
    rebound = await client.get("/", headers={"Host": "evil.example:8777"})
    assert rebound.status_code == 421
    assert "small" not in rebound.text
    for name in ("localhost:8777", "127.0.0.1", "[::1]:8777"):
        assert (await client.get("/", headers={"Host": name})).status_code == 200


async def test_a_token_is_wanted_where_one_is_set(runs: Path) -> None:
    site = Site(SiteOptions(runs=runs))
    transport = httpx.ASGITransport(create_app(site, token="secret"))
    async with httpx.AsyncClient(transport=transport, base_url="http://box:8777") as client:
        assert (await client.get("/")).status_code == 401
        assert (await client.get("/", auth=("x", "secret"))).status_code == 200
    site.close()


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/runs/none", 404),
        ("/runs/..%2fsmall", 404),
        ("/runs/small/episode?id=nobody", 404),
        ("/runs/small/episodes.json?of=../../etc", 404),
        ("/runs/small/record?id=small-5-2&of=3-greedy", 404),
        ("/nothing", 404),
        ("/runs/small/episode", 422),
    ],
)
async def test_what_is_not_there_is_said(client: httpx.AsyncClient, path: str, status: int) -> None:
    assert (await client.get(path)).status_code == status


async def test_the_list_is_cut_into_windows(client: httpx.AsyncClient) -> None:
    async def rows(query: str) -> dict[str, object]:
        response = await client.get(f"/runs/small/episodes.json?{query}")
        return dict(response.json())

    whole = await rows("limit=1000")
    assert whole["total"] == 14 * 16
    window = await rows("limit=10&offset=20")
    assert window["rows"] == whole["rows"][20:30]  # type: ignore[index]
    assert (await rows("limit=10&offset=99999"))["rows"] == []
    assert (await rows("step=3&outcome=solved"))["total"] < 16
    same = await client.get(f"/runs/small/episodes.json?since={whole['revision']}")
    assert same.status_code == 204


async def test_charts_have_what_a_researcher_asks_for(client: httpx.AsyncClient) -> None:
    found = (await client.get("/runs/small/series.json")).json()
    panels = {panel["name"]: panel for panel in found["panels"]}
    wanted = {"solve_rate", "outcomes", "reward", "entropy", "kl", "mis", "lengths", "staleness"}
    assert wanted | {"tokens_per_s", "seconds"} <= panels.keys()
    labels = [one["label"] for one in panels["solve_rate"]["lines"]]
    assert labels == ["training", "held out, sampled", "held out, greedy"]
    for panel in panels.values():
        for one in panel["lines"]:
            assert len(one["values"]) == len(panel["steps"]), panel["name"]
    training = panels["solve_rate"]["lines"][0]
    assert training["values"][0] is None, "step 0 has an evaluation and no training"
    assert training["low"][1] <= training["values"][1] <= training["high"][1]
    assert len(found["timeline"]) == 14


async def test_new_events_show_without_a_restart(client: httpx.AsyncClient, runs: Path) -> None:
    before = (await client.get("/runs/other/series.json")).json()
    metrics = {"solve_rate": 0.5, "time/step_s": 1.0}
    step = {"kind": "step", "time_s": BEGAN_S + 900, "step": 7, "version": 7, "metrics": metrics}
    with (runs / "other" / "events.jsonl").open("ab") as file:
        file.write(line(step)[:-9])
        file.flush()
        same = await client.get(f"/runs/other/series.json?since={before['revision']}")
        assert same.status_code == 204, "half a line is none"
        file.write(line(step)[-9:])
    after = (await client.get("/runs/other/series.json")).json()
    assert after["panels"][0]["steps"][-1] == 7


async def test_two_runs_share_their_axes(client: httpx.AsyncClient) -> None:
    page = (await client.get("/compare?a=small&b=other")).text
    assert "rollouts.groups_per_step" in page
    found = (await client.get("/compare.json?a=small&b=other")).json()["panels"]
    solved = next(panel for panel in found if panel["name"] == "solve_rate")
    assert {one["style"] for one in solved["lines"]} == {"s1", "s2"}
    assert solved["steps"] == list(range(15))
    assert all(len(one["values"]) == 15 for one in solved["lines"])


async def test_tokens_carry_mask_logprob_and_version(client: httpx.AsyncClient) -> None:
    path = "/runs/small/tokens.json?of=training&id=small-5-2"
    page = (await client.get(path)).json()
    assert page["total"] == len(page["ids"]) == len(page["trainable"])
    sampled = [version is not None for version in page["versions"]]
    assert sampled == page["trainable"]
    assert any(sampled)
    assert not all(sampled)
    assert all((lp is None) != s for lp, s in zip(page["logprobs"], sampled, strict=True))
    assert page["has_ratios"]
    assert [ratio is not None for ratio in page["ratios"]] == page["trainable"]
    part = (await client.get(f"{path}&offset=100&limit=40")).json()
    assert part["ids"] == page["ids"][100:140]
    assert part["ratios"] == page["ratios"][100:140]
    assert (await client.get(f"{path}&path=9")).json() is None


async def test_hostile_text_is_text(client: httpx.AsyncClient) -> None:
    for path in (
        "/",
        "/runs/hostile",
        "/runs/hostile/slow",
        "/runs/hostile/flat",
        *(f"/runs/hostile/episode?of=training&id=hostile-0-{n}" for n in range(4)),
    ):
        page = (await client.get(path)).text
        assert "<script>window" not in page, path
        assert "<svg onload" not in page, path
        assert "<img" not in page, path
        assert "\x1b" not in page, path
        assert "\u202e" not in page, path
        assert len(page) < 400_000, path
    first = (await client.get("/runs/hostile/episode?of=training&id=hostile-0-0")).text
    assert "&lt;script&gt;window.pwned = 1" in first
    assert "{{ 7 * 7 }}" in first
    assert "\u241b[31mred" in first
    raw = await client.get("/runs/hostile/record?of=training&id=hostile-0-0")
    assert raw.headers["content-type"].startswith("text/plain")
    assert len((await client.get("/runs/hostile/record?id=hostile-0-1")).content) > 10 << 20


async def test_now_asks_the_server_of_a_live_run_only(tmp_path: Path) -> None:
    run: RunDirectory = make_run(tmp_path, Shape(name="live", steps=1, groups=1, group_size=2))
    with StatusServer() as server:
        server.live(stage="agent", seconds=9.0, commands=2, command="make test\x1b[0m")
        server.live(stage="agent", seconds=30.0, commands=1, last_command="ls")
        server.live(stage="image", seconds=5.0, detail="pulling, 43 %")
        ready = {"kind": "environment.ready", "time_s": BEGAN_S + 99, "url": server.url}
        with run.events.open("ab") as file:
            file.write(line(ready))
        site = Site(SiteOptions(runs=tmp_path, environment_token="secret"))
        transport = httpx.ASGITransport(create_app(site))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            ended = (await client.get("/runs/live/now.json")).json()
            assert ended["environment"] is None
            assert server.asked == [], "an address in a log is not asked for nothing"
            with locked(run):
                live = (await client.get("/runs/live/now.json")).json()
        site.close()
    assert set(server.asked) == {"Bearer secret"}
    found = live["environment"]["episodes"]
    assert [one["stage"] for one in found] == ["thinking", "command", "image"], "oldest first"
    assert [one["doing"] for one in found] == ["", "make test\u241b[0m", "pulling, 43 %"]
    assert found[0]["last_command"] == "ls"
    assert live["machine"]["num_cpus"] >= 1


async def test_a_server_that_is_gone_or_mad_is_said(tmp_path: Path) -> None:
    with StatusServer() as server:
        server.status["episodes"] = [{"no": "id"}]
        site = Site(SiteOptions(runs=tmp_path, environment_url=server.url))
        mad = site.environment(None)
        site.close()
    assert mad is not None
    assert "makes no sense" in str(mad.error)
    site = Site(SiteOptions(runs=tmp_path, environment_url=server.url))
    gone = site.environment(None)
    site.close()
    assert gone is not None
    assert gone.error


def test_colours_are_those_of_the_report() -> None:
    def colours(text: str) -> dict[str, str]:
        return dict(re.findall(r"--(\w[\w-]*): (#[0-9a-f]{6});", text))

    report = files("palestra.report").joinpath("templates", "style.css").read_text()
    head, _, rest = report.partition("@media screen and (prefers-color-scheme: dark)")
    light, dark = colours(head), colours(rest)
    ours = files("palestra.dashboard").joinpath("static", "dashboard.css").read_text()
    pairs = dict(re.findall(r"--([\w-]+): light-dark\((#\w+, #\w+)\)", ours))
    assert light
    assert {name: f"{light[name]}, {dark[name]}" for name in light} == {
        name: pairs[name] for name in light
    }


def test_scripts_are_short_and_vendored_code_has_its_licence() -> None:
    folder = files("palestra.dashboard").joinpath("static")
    names = {file.name for file in folder.iterdir()}
    assert "MIT" in folder.joinpath("uplot.LICENSE").read_text()
    for name in names - {"uplot.js", "uplot.css", "uplot.LICENSE"}:
        text = folder.joinpath(name).read_text()
        assert text.count("\n") <= 400, name
        assert "innerHTML =" not in text, name
        assert "eval(" not in text, name
