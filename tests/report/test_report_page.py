"""The page: one file, no script, whatever a model wrote; honest about what it does not know."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from report_makers import (
    make_episode,
    make_episodes,
    make_evaluation,
    make_messages,
    make_run,
)

from palestra.errors import ConfigError, HostError
from palestra.learning.evaluations import Evaluation
from palestra.records import Message, Outcome
from palestra.report.page import render, write_report
from palestra.report.run_record import read_run
from palestra.report.summary import summary_lines
from palestra.run.directory import RunDirectory

HOSTILE = "</pre></style></svg><script>alert(1)</script><img src=x onerror=alert(1)>\"'&"


class Reader(HTMLParser):
    """Reads a page as a browser does: its elements, attributes and balanced tags."""

    VOID = frozenset({"meta", "img", "br", "link", "input", "hr"})

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


def page_of(run: RunDirectory) -> Reader:
    return Reader(render(read_run(run)))


def svgs_of(html: str) -> list[str]:
    return re.findall(r"<svg.*?</svg>", html, re.DOTALL)


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    path = write_report(read_run(run))
    assert path == run.report
    html = path.read_text(encoding="utf-8")
    page = Reader(html)
    assert page.open == [], "every element is closed"
    assert not {"script", "link", "img", "iframe", "object", "form"} & set(page.tags)
    names = {name for name, _ in page.attributes}
    assert not {name for name in names if name.startswith("on")}
    assert not names & {"src", "href", "srcset", "action"}
    assert not re.search(r"https?://|@import|url\(", html)
    assert "default-src 'none'" in html
    assert [p.name for p in run.root.iterdir() if p.name.endswith(".tmp")] == []


def test_it_says_what_a_reader_looks_for_in_order(tmp_path: Path) -> None:
    words = page_of(make_run(tmp_path)).words
    places = [
        words.index(part)
        for part in (
            "solves more held-out tasks than before",
            "25.5 % → 58.5 %",
            "The intervals do not overlap.",
            "33.5 % → 64.5 %",
            "Solve rate in training",
            "How episodes ended",
            "Groups kept and dropped",
            "Entropy",
            "KL to the starting policy",
            "Gradient norm",
            "Importance ratio",
            "Ids masked",
            "Sampled ids an episode",
            "Failed before, solved after",
            "Failed before, still failed after",
            "Where the time went",
            "model calls",
            "What ran",
            "palestra demo --set seed=1",
        )
    ]
    assert places == sorted(places)
    assert "hunter2" not in words, "a page is handed around: no secrets"
    assert "environment.token=…" in words


def test_every_drawing_is_read_out_and_stays_inside(tmp_path: Path) -> None:
    html = render(read_run(make_run(tmp_path)))
    drawings = svgs_of(html)
    assert len(drawings) == 13
    for text in drawings:
        root = ET.fromstring(text)
        assert root.get("role") == "img"
        assert len(root.findtext("desc") or "") > 10
        _, _, width, height = map(float, (root.get("viewBox") or "").split())
        for element in root.iter("text"):
            x, y = float(element.get("x", 0)), float(element.get("y", 0))
            label = element.text or ""
            shift = {"end": 1.0, "middle": 0.5}.get(element.get("text-anchor", ""), 0.0)
            left = x - shift * len(label) * 5.5
            assert left >= -6, f"{label!r} is cut off at the left of {root.get('aria-label')}"
            assert left + len(label) * 5.5 <= width + 6, f"{label!r} is cut off at the right"
            assert 0 < y <= height


@pytest.mark.parametrize("steps", [1, 2, 3, 17])
def test_few_steps_still_make_charts(tmp_path: Path, steps: int) -> None:
    html = render(read_run(make_run(tmp_path, steps=steps)))
    assert "nan" not in re.sub(r"[a-z]nan|nan[a-z]", "", " ".join(svgs_of(html)).lower())
    assert len(svgs_of(html)) == 13


def test_the_page_of_a_long_run_stays_light(tmp_path: Path) -> None:
    html = render(read_run(make_run(tmp_path, steps=620)))
    assert len(html) < 600_000
    assert len(svgs_of(html)) == 13


def test_what_a_model_wrote_stays_text(tmp_path: Path) -> None:
    hostile = make_episode(
        HOSTILE,
        Outcome.UNSOLVED,
        messages=(
            *make_messages(f"cat '{HOSTILE}'"),
            Message(role="user", content=f"exit code 0\n{HOSTILE}\x1b[2J\x00\u202e"),
            Message(role="assistant", content=f"{HOSTILE} and no command"),
        ),
        patch=f"--- a/{HOSTILE}\n+++ b/{HOSTILE}\n+{HOSTILE}\n",
    )
    run = make_run(
        tmp_path,
        steps=2,
        evaluations=[
            make_evaluation([hostile], step=0, mode="greedy", kinds=[HOSTILE]),
            make_evaluation([hostile], step=2, mode="greedy", kinds=[HOSTILE]),
        ],
    )
    page = page_of(run)
    assert page.open == []
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.text.count("alert(1)") > 10, "it is shown, as text"
    assert "\x1b" not in page.text
    assert "\u202e" not in page.text
    assert "␛[2J␀\\u202e" in page.text


def test_half_a_character_is_shown_as_what_it_is(tmp_path: Path) -> None:
    # JSON cannot carry it, but an agent of another make may hand it over in memory.
    episode = make_episode("a", Outcome.UNSOLVED, messages=make_messages("echo \ud800"))
    evaluations = tuple(make_evaluation([episode], step=s, mode="greedy") for s in (0, 2))
    run = make_run(tmp_path, steps=2, evaluations=[])
    record = dataclasses.replace(read_run(run), evaluations=evaluations)
    assert "echo \\ud800" in write_report(record).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("before", "after", "headline"),
    [
        (0.3, 0.7, "solves more held-out tasks than before"),
        (0.7, 0.3, "solves fewer held-out tasks than before"),
        (0.4, 0.41, "this run does not show that the agent changed"),
    ],
)
def test_the_headline_says_no_more_than_the_numbers(
    tmp_path: Path, before: float, after: float, headline: str
) -> None:
    evaluations = [
        make_evaluation(make_episodes(rate, malformed=0.0), step=step, mode="greedy")
        for step, rate in ((0, before), (2, after))
    ]
    assert headline in page_of(make_run(tmp_path, steps=2, evaluations=evaluations)).words


def test_modes_that_differ_are_told_apart(tmp_path: Path) -> None:
    evaluations = [
        make_evaluation(make_episodes(rate, malformed=0.0), step=step, mode=mode)
        for step, mode, rate in (
            (0, "sampled", 0.2),
            (0, "greedy", 0.5),
            (2, "sampled", 0.6),
            (2, "greedy", 0.5),
        )
    ]
    words = page_of(make_run(tmp_path, steps=2, evaluations=evaluations)).words  # type: ignore[arg-type]
    assert "sampled rises beyond its 95 % intervals, greedy has overlapping intervals" in words


def test_a_run_that_was_cut_off_says_so(tmp_path: Path) -> None:
    before = [make_evaluation(make_episodes(0.3), step=0, mode="greedy")]
    words = page_of(make_run(tmp_path, steps=5, evaluations=before)).words
    assert "not complete: 5 of 86 steps" in words
    assert "no held-out evaluation after it" in words
    assert "The same task before and after" not in words


def test_a_run_without_held_out_tasks_or_steps_has_a_page_too(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path, steps=0, evaluations=[]))
    assert "evaluated no held-out tasks" in page.words
    assert "svg" not in page.tags, "an empty chart is left out"


def test_evaluations_in_between_make_a_curve(tmp_path: Path) -> None:
    evaluations = [
        make_evaluation(make_episodes(0.3 + step / 10), step=step, mode="greedy")
        for step in (0, 1, 2)
    ]
    html = render(read_run(make_run(tmp_path, steps=2, evaluations=evaluations)))
    assert "<h3>Held-out solve rate</h3>" in html


def test_infra_errors_are_named_and_count_for_nothing(tmp_path: Path) -> None:
    episodes = [
        make_episode("a", Outcome.SOLVED),
        make_episode("b", Outcome.UNSOLVED),
        make_episode("c", Outcome.INFRA_ERROR, messages=()),
    ]
    evaluations = [make_evaluation(episodes, step=s, mode="greedy") for s in (0, 2)]
    words = page_of(make_run(tmp_path, steps=2, evaluations=evaluations)).words
    assert "2 episodes graded" in words
    assert "1 left out because the infrastructure failed" in words
    assert "50.0 % → 50.0 %" in words


def test_other_tasks_are_not_compared(tmp_path: Path) -> None:
    first = make_evaluation(make_episodes(0.1), step=0, mode="greedy")
    last = make_evaluation(make_episodes(0.9), step=2, mode="greedy")
    other = dataclasses.replace(last, plan=dataclasses.replace(last.plan, tasks="others"))
    words = page_of(make_run(tmp_path, steps=2, evaluations=[first, other])).words
    assert "Not comparable" in words
    assert "solves more" not in words


def test_what_is_no_run_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a run directory"):
        read_run(RunDirectory(tmp_path))
    run = make_run(tmp_path, steps=1)
    run.metrics.write_text("step,a\nnone,1\n")
    with pytest.raises(HostError, match="metrics"):
        read_run(run)


def test_several_attempts_at_a_task_show_as_pass_at_k(tmp_path: Path) -> None:
    def evaluation(step: int, solved: int) -> Evaluation:
        episodes = [
            make_episode(f"kata-{task}", Outcome.SOLVED if n < solved else Outcome.UNSOLVED)
            for task in range(20)
            for n in range(4)
        ]
        made = make_evaluation(episodes, step=step, mode="sampled")
        return dataclasses.replace(
            made,
            plan=dataclasses.replace(made.plan, attempts=4),
            episodes=tuple(
                dataclasses.replace(one, attempt=n % 4) for n, one in enumerate(made.episodes)
            ),
        )

    run = make_run(tmp_path, steps=6, evaluations=[evaluation(0, 0), evaluation(6, 1)])
    record = read_run(run)
    page = Reader(render(record)).text
    assert "pass@1 25.0 %" in page
    assert "pass@2 50.0 %" in page
    assert "pass@4 100.0 % (83.9 to 100.0)" in page, "twenty tasks, not eighty tries"
    assert "Each task was attempted 4 times" in page
    lines = "\n".join(summary_lines(record))
    assert "pass@1 0.0 % (0.0 to 16.1), pass@2 0.0 %" in lines
    assert "pass@4 100.0 % (83.9 to 100.0)" in lines
