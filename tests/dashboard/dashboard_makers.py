"""Run directories with what strangers write in them, and a viewer on a folder of runs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import orjson
import zstandard
from scripted_run import Shape, line, make_run

from palestra.learning.rollouts.json_lines import SUFFIX, read_json_lines
from palestra.run.directory import RunDirectory

SMALL = Shape(name="small", steps=14, groups=4, group_size=4, turns=4, ids=12)
HOSTILE = (
    "<script>window.pwned = 1</script><img src=x onerror='window.pwned = 2'>"
    '"><svg onload=window.pwned=3></svg>{{ 7 * 7 }}</pre></code></textarea></title>'
    "\x1b[31mred\x1b[0m \x07 \u202egnp.exe javascript:window.pwned=4"
)
"""HTML, scripts, a template, ANSI codes, a bell, and a word that runs backwards."""
LONG = 10 << 20


def hostile_run(runs: Path) -> RunDirectory:
    """A run of one step in which every text that a stranger may write is hostile.

    Its rollouts: 0 hostile everywhere, 1 a line of 10 MB, 2 bytes that are no UTF-8,
    3 half of a surrogate pair and no fields that this version expects.
    """
    run = make_run(runs, Shape(name="hostile", steps=1, groups=1, group_size=4))
    path = run.rollouts / f"1{SUFFIX}"
    records = list(read_json_lines(path, doing="cannot read"))
    episode = records[0]["episode"]
    episode["messages"][-2]["content"] = f"{HOSTILE}\n```bash\necho {HOSTILE}\n```\n{HOSTILE}"
    episode["messages"][-1]["content"] = HOSTILE
    episode |= {"patch": f"--- a\n+++ b\n+{HOSTILE}\n", "error": HOSTILE, "exit_status": HOSTILE}
    episode["verdict"]["fail_to_pass"] = {"success": [], "failure": [HOSTILE]}
    episode["verdict"]["statuses"][HOSTILE] = HOSTILE
    episode["verdict"]["refused"] = [{"path": HOSTILE, "reason": HOSTILE}]
    episode["verdict"]["log"] = HOSTILE
    records[1]["episode"]["messages"][-1]["content"] = "<b>" + "A" * LONG
    lines = [orjson.dumps(record) for record in records]
    lines[2] = lines[2].replace(b"exit code 0", b"\xff\xfe\xc3(\x80 exit code 0")
    lines[3] = lines[3].replace(b"Let me look.", b"\\ud83d half of a pair")
    path.write_bytes(zstandard.compress(b"\n".join(lines) + b"\n"))
    _rewrite_events(run)
    return run


def _rewrite_events(run: RunDirectory) -> None:
    events = [orjson.loads(text) for text in run.events.read_bytes().splitlines()]
    for event in events:
        if event["kind"] == "rollout":
            event |= {"instance_id": HOSTILE, "error": HOSTILE}
            event["exit_status"] = HOSTILE
        if event["kind"] == "run.started":
            event["facts"]["command"] = HOSTILE
        if event["kind"] == "sandbox.chosen":
            event["description"] = HOSTILE
    retry = {"kind": "rollout.retry", "time_s": 1.0, "rollout_id": HOSTILE, "error": HOSTILE}
    run.events.write_bytes(b"".join(map(line, [*events, retry])))


@contextmanager
def viewer(runs: Path, *options: str) -> Iterator[str]:
    """``palestra view`` as a process; its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "palestra", "view", str(runs), "--port", "0", *options],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    with process.stderr:
        try:
            said = process.stderr.readline()
            assert said.startswith("dashboard: "), said
            yield said.split()[-1]
        finally:
            process.terminate()
            process.wait(20)


class StatusServer:
    """Answers ``GET /status`` as an environment server does, with whatever it is told.

    Attributes:
        status: the answer.
        asked: the authorization of every request.
    """

    def __init__(self) -> None:
        self.status: dict[str, Any] = {
            "episodes": [],
            "stages": {},
            "concurrency": 4,
            "totals": {},
            "uptime_s": 12.0,
            "stopping": False,
        }
        self.asked: list[str | None] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.headers.get("Authorization"))
                body = json.dumps(outer.status).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = Thread(target=self._server.serve_forever, args=(0.05,))

    def live(self, *, stage: str, seconds: float, **more: Any) -> None:
        """Add a live episode."""
        number = len(self.status["episodes"])
        found = {"id": f"e{number}", "instance_id": f"task-{number}", "stage": stage}
        self.status["episodes"].append(found | {"seconds": seconds, "stage_seconds": 1.0} | more)

    def __enter__(self) -> StatusServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
