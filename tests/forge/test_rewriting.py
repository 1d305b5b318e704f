"""A model's words are taken only when they say the same; otherwise ours stay."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from palestra.errors import UsageError
from palestra.forge.mutants import Mutant, Site
from palestra.forge.records import Candidate
from palestra.forge.rewriting import Model, Rewriter, Rewritten, lacks
from palestra.forge.source import Source

ORIGINALS = {"m.py": b"def area(width, height):\n    return width * height + margin(width)\n"}
OURS = """\
# `area` returns a wrong result

I am using shapes 1.0 with Python 3.11.

To reproduce:

```python
from shapes import area

area(2, 3)
```

Expected:

```
6
```

What I got:

```
5
```
"""
THEIRS = OURS.replace("I am using", "Tried with").replace("What I got:", "It says:")


def candidate() -> Candidate:
    source = Source.parse(ORIGINALS["m.py"])
    at = source.data.index(b"*")
    site = Site(kind="operator", edit=source.edit((at, at + 1), b"+"))
    return Candidate(
        mutants={"m.py": Mutant(sites=(site,))},
        failing=("t.py::test_area",),
        holding=(),
        failures=(),
    )


class Server:
    """A real HTTP server that answers as it is told, and remembers what it was asked."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, bytes]] = []
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.delay_s = 0.0
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                server.handle(self)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        self._thread.start()

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers["Content-Length"]))
        with self._lock:
            self.asked.append({"path": request.path, **json.loads(body)})
            self.keys.append(request.headers.get("Authorization"))
            status, answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        self._stop.wait(self.delay_s)
        with self._lock:
            self.at_once -= 1
        try:
            request.send_response(status)
            request.send_header("Content-Length", str(len(answer)))
            request.end_headers()
            request.wfile.write(answer)
        except OSError:
            pass  # the client has gone

    def close(self) -> None:
        self._stop.set()
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def said(text: object, status: int = 200) -> tuple[int, bytes]:
    return status, json.dumps({"choices": [{"message": {"content": text}}]}).encode()


async def rewrite(server: Server, **model: Any) -> Rewritten:
    settings = {"base_url": server.url, "name": "writer", "delay_s": 0.01, "timeout_s": 20.0}
    async with Rewriter(Model(**(settings | model))) as rewriter:
        return await rewriter.rewrite(OURS, candidate(), ORIGINALS, seed=7)


async def test_a_good_answer_is_taken(server: Server) -> None:
    server.answers = [said(f"\n{THEIRS}\n")]
    assert await rewrite(server) == Rewritten(text=THEIRS)
    (asked,) = server.asked
    assert (asked["path"], asked["model"], asked["seed"]) == ("/v1/chat/completions", "writer", 7)
    assert OURS in asked["messages"][0]["content"]
    assert server.keys == [None]


async def test_the_key_comes_from_the_environment(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WRITER_KEY", "secret")
    server.answers = [said(THEIRS)]
    await rewrite(server, key_variable="WRITER_KEY")
    assert server.keys == ["Bearer secret"]
    monkeypatch.delenv("WRITER_KEY")
    with pytest.raises(UsageError, match="WRITER_KEY is not set"):
        await rewrite(server, key_variable="WRITER_KEY")


LEAKING = THEIRS + "\nProbably it lacks `width * height`: return width * height + margin(width)\n"
REFUSED: dict[str, tuple[Callable[[], tuple[int, bytes]], str]] = {
    "leak": (lambda: said(LEAKING), "holds the original line"),
    "test": (lambda: said(THEIRS + "\nSee test_area.\n"), "names the test test_area"),
    "value": (lambda: said(THEIRS.replace("\n6\n", "\n7\n")), "it lacks '6'"),
    "name": (lambda: said(THEIRS + "\nLook at `margin`.\n"), "it names `margin`"),
    "code": (lambda: said(THEIRS + "\n```\nx = 1\n```\n"), "it adds 'x = 1'"),
    "title": (lambda: said("Hello!\n" + THEIRS), "no title"),
    "length": (lambda: said(THEIRS + "word " * 1000), "characters"),
    "short": (lambda: said("# ok"), "it lacks"),
    "empty": (lambda: said(" "), "no text"),
    "null": (lambda: said(None), "no text"),
    "list": (lambda: (200, b"[]"), "no text"),
    "html": (lambda: (200, b"<html>"), "no text"),
    "refusal": (lambda: (401, b"{}"), "status 401"),
    "much": (lambda: (200, b"[" * 3_000_000), "no text"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_bad_answer_is_refused_and_ours_stays(server: Server, name: str) -> None:
    make, words = REFUSED[name]
    server.answers = [make()]
    found = await rewrite(server)
    assert found.text == OURS
    assert words in " ".join(found.problems)
    assert len(server.asked) == 1, "what will not get better is not asked again"


async def test_a_busy_server_is_asked_again(server: Server) -> None:
    server.answers = [(503, b""), (429, b""), said(THEIRS)]
    assert (await rewrite(server)).text == THEIRS
    server.answers = [(500, b"")]
    found = await rewrite(server, retries=1)
    assert found == Rewritten(text=OURS, problems=("the model answers with status 500",))


async def test_a_slow_server_and_one_that_is_not_there(server: Server) -> None:
    server.answers = [said(THEIRS)]
    server.delay_s = 30
    found = await rewrite(server, timeout_s=0.2, retries=0)
    assert found.text == OURS
    assert "does not answer" in found.problems[0]
    for url in ("http://127.0.0.1:1/v1", "nonsense", "http://[/"):
        found = await rewrite(server, base_url=url, retries=0)
        assert "does not answer" in found.problems[0]


async def test_questions_at_once_are_bounded(server: Server) -> None:
    server.answers = [said(THEIRS)]
    server.delay_s = 0.05
    model = Model(base_url=server.url, name="writer", concurrency=2)
    async with Rewriter(model) as rewriter:
        found = await asyncio.gather(
            *(rewriter.rewrite(OURS, candidate(), ORIGINALS, seed=n) for n in range(8))
        )
    assert {one.text for one in found} == {THEIRS}
    assert server.most_at_once <= 2


def test_a_text_lacks_nothing_of_itself() -> None:
    assert lacks(OURS, OURS) == ()
    assert lacks(THEIRS, OURS) == ()
    assert lacks(OURS.replace("`area` returns", "it returns"), OURS) == ()
    assert lacks(OURS.replace("area(2, 3)", "area(2, 4)"), OURS) != ()
