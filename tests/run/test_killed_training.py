"""kill -9 of a synchronous run at random moments: resumed, it is the run that nobody killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

DRIVER = Path(__file__).with_name("kill_driver.py")
SIGKILLED = 9


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_and_resumed_it_ends_at_the_same_bits(tmp_path: Path) -> None:
    """Real trainer, engine, gateway and checkpoints; weights, moments, generators, data, ids."""
    seed = int.from_bytes(os.urandom(2), "big")
    done = subprocess.run(
        [sys.executable, str(DRIVER), str(tmp_path), str(seed), "3"],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    whole, *killed = (json.loads(line) for line in done.stdout.splitlines())
    assert whole.pop("lives") == [0], done.stderr[-3000:]
    assert whole["steps"] == [1, 2, 3, 4]
    assert whole["progress"]["version"] == 4, "nothing was trained"
    assert len(killed) == 2
    num_kills = 0
    for run in killed:
        where = f"seed {seed}, lives {run['lives']}: {done.stderr[-2000:]}"
        lives = run.pop("lives")
        assert lives[-1] == 0, where
        num_kills += lives.count(SIGKILLED)
        twice = [name for name, count in Counter(run["trained"]).items() if count > 1]
        assert twice == [], f"{where}: trained twice"
        for name, expected in whole.items():
            assert run[name] == expected, f"{where}: {name} is not that of the unbroken run"
    assert num_kills, f"seed {seed}: nothing was killed"
