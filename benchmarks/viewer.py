"""How fast the dashboard opens a long run, and how much memory it takes.

Makes a run of 200 steps of 64 episodes with a script, starts ``palestra view`` on it, and
asks for what a browser asks for: the page of the run and its charts (opening), windows of
the list of episodes all over it, episodes of every tenth step, both whys. Times are on the
clock, so take the least of several; memory is the most that the process ever had resident.

    python benchmarks/viewer.py [--steps 200] [--groups 8] [--repeats 3]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles

import httpx

OPEN_LIMIT_S = 1.0
MEMORY_LIMIT_BYTES = 300e6
NAME = "scripted"
GENERATOR = Path(__file__).parent.parent / "tools" / "scripted_run.py"


@contextmanager
def viewer(runs: Path) -> Iterator[tuple[int, httpx.Client]]:
    """A viewer on a folder of runs: its pid and a client."""
    process = subprocess.Popen(
        [sys.executable, "-m", "palestra", "view", str(runs), "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        url = process.stderr.readline().split()[-1]
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            client.get("/").raise_for_status()
            yield process.pid, client
    finally:
        process.terminate()
        process.wait()


def fetch(client: httpx.Client, path: str) -> tuple[float, httpx.Response]:
    """Seconds that an answer took, and the answer."""
    began_s = time.perf_counter()
    response = client.get(path)
    response.raise_for_status()
    return time.perf_counter() - began_s, response


def opening_s(client: httpx.Client) -> float:
    """Seconds for the run's page, its charts and the first window of its list."""
    paths = ("", "/series.json", "/episodes", "/episodes.json?limit=200")
    return sum(fetch(client, f"/runs/{NAME}{path}")[0] for path in paths)


def scrolling_s(client: httpx.Client, num_episodes: int) -> list[float]:
    """Seconds for windows of the list all over it, plain and filtered."""
    times = []
    for query in ("", "&outcome=solved", "&task=0042", "&sort=longest"):
        for offset in range(0, num_episodes, max(200, num_episodes // 16)):
            path = f"/runs/{NAME}/episodes.json?limit=200&offset={offset}{query}"
            times.append(fetch(client, path)[0])
    return times


def reading_s(client: httpx.Client, steps: int, groups: int) -> list[float]:
    """Seconds for the page of an episode, its ids and its record, over the run."""
    names = [f"{NAME}-{step * groups}-3" for step in range(0, steps, max(1, steps // 20))]
    return [
        fetch(client, f"/runs/{NAME}/{page}?of=training&id={name}")[0]
        for name in names
        for page in ("episode", "tokens.json", "record")
    ]


def peak_bytes(pid: int) -> int:
    """The most memory that a process ever had resident."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    num_episodes = given.steps * given.groups * 8
    with tempfile.TemporaryDirectory(prefix="palestra-viewer-") as folder:
        size = ["--steps", str(given.steps), "--groups", str(given.groups)]
        subprocess.run([sys.executable, GENERATOR, folder, "--name", NAME, *size], check=True)
        opened = []
        for _ in range(given.repeats):
            with viewer(Path(folder)) as (_, client):
                opened.append(opening_s(client))
        with viewer(Path(folder)) as (pid, client):
            idle = peak_bytes(pid)
            opening_s(client)
            again = opening_s(client)
            windows = scrolling_s(client, num_episodes)
            pages = reading_s(client, given.steps, given.groups)
            whys = [fetch(client, f"/runs/{NAME}/{page}")[0] for page in ("slow", "flat")]
            peak = peak_bytes(pid)
    print(f"{num_episodes} episodes of {given.steps} steps")
    print(f"open             {min(opened):8.3f} s   at best of {given.repeats}, cold")
    print(f"open again       {again:8.3f} s")
    print(f"window of list   {median(windows):8.3f} s   p99 {quantiles(windows, n=100)[98]:.3f} s")
    print(f"page of episode  {median(pages):8.3f} s   p99 {quantiles(pages, n=100)[98]:.3f} s")
    print(f"why slow, flat   {whys[0]:8.3f} s   {whys[1]:.3f} s")
    print(f"memory           {peak / 1e6:8.0f} MB  of them {idle / 1e6:.0f} MB before any run")
    print(f"ratio of the time allowed for opening to that taken: {OPEN_LIMIT_S / min(opened):.1f}")
    print(f"ratio of the memory allowed to that taken: {MEMORY_LIMIT_BYTES / peak:.1f}")


if __name__ == "__main__":
    main()
