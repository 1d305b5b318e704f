"""Task files with broken rows among good ones, through the commands that read them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from palestra.tasks.source import iter_rows


def command(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "palestra", *args, "--sandbox", "bubblewrap", "--json"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return list(iter_rows("katas:heldout?seed=3&n=3&level=1"))


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_broken_row_is_named_and_the_others_are_evaluated(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    broken = rows[1] | {"log_parser": "parse_log_cobol"}
    tasks = written(tmp_path / "t.jsonl", [rows[0], broken, rows[0], rows[2]])
    done = command("eval", tasks, "--agent", "gold")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (len(report["episodes"]), report["solve_rate"]) == (2, 1.0)
    said = " ".join(done.stderr.split())
    assert f"{rows[1]['instance_id']}: field log_parser is 'parse_log_cobol'" in said
    assert f"{rows[0]['instance_id']} occurs twice" in said


def test_a_file_of_broken_rows_alone_is_an_error(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    tasks = written(tmp_path / "t.jsonl", [rows[0] | {"FAIL_TO_PASS": []}])
    done = command("eval", tasks, "--agent", "gold")
    assert done.returncode == 2
    assert "holds no task that can be used" in done.stderr
    assert f"{rows[0]['instance_id']}: no FAIL_TO_PASS test" in " ".join(done.stderr.split())


def test_what_only_a_sandbox_can_tell_is_found_by_certifying(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    elsewhere = rows[0] | {"patch": rows[0]["patch"].replace("\n-", "\n-not what is there ")}
    path = rows[1]["FAIL_TO_PASS"][0].partition("::")[0]
    unknown = rows[1] | {"PASS_TO_PASS": [*rows[1]["PASS_TO_PASS"], f"{path}::test_of_nobody"]}
    tasks = written(tmp_path / "t.jsonl", [elsewhere, unknown, rows[2]])
    out = str(tmp_path / "certificates.jsonl")
    done = command("certify", tasks, "--out", out, "--gold-runs", "1")
    assert done.returncode == 0, done.stderr
    statuses = {one["instance_id"]: one["status"] for one in json.loads(done.stdout)["tasks"]}
    assert statuses == {
        rows[0]["instance_id"]: "gold_fails",
        rows[1]["instance_id"]: "gold_fails",
        rows[2]["instance_id"]: "certified",
    }
    certificates = [json.loads(line) for line in Path(out).read_text().splitlines()]
    failed = {one["instance_id"]: one["runs"][-1]["failed"] for one in certificates}
    assert failed[rows[1]["instance_id"]] == [f"{path}::test_of_nobody"]
