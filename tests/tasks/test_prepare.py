"""``palestra data``: what is written is what the example's converter writes, and nothing half."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from palestra.cli.main import app
from palestra.errors import PalestraError
from palestra.tasks.hub import hub_rows
from palestra.tasks.prepare import Division, Selection, choose
from palestra.tasks.source import iter_items, load_tasks

PATCH = "diff --git a/x.py b/x.py\n--- a/x.py\n+++ b/x.py\n@@ -1 +1 @@\n-a\n+b\n"
TEST_PATCH = PATCH.replace("x.py", "tests/t.py")


def row(number: int, *, repo: str = "getmoto/moto", **more: Any) -> dict[str, Any]:
    return {
        "instance_id": f"{repo.replace('/', '__')}-{number}",
        "repo": repo,
        "base_commit": "0123456789abcdef0123456789abcdef01234567",
        "problem_statement": f"Broken, said “{number}”.",
        "patch": PATCH,
        "test_patch": TEST_PATCH,
        "FAIL_TO_PASS": ["tests/t.py::test_a"],
        "PASS_TO_PASS": ["tests/t.py::test_b", "tests/t.py::test_c"],
        **more,
    }


ROWS = [row(i) for i in range(5)] + [row(i, repo="dask/dask") for i in range(3)]


def converted(rows: list[dict[str, Any]], split: str = "train") -> str:
    """What the converter of Miles' example makes of rows."""
    lines = []
    for one in rows:
        metadata = dict(one)
        metadata["subset"] = "gym"
        metadata["split"] = split
        lines.append(json.dumps({"prompt": one["problem_statement"], "metadata": metadata}))
    return "".join(f"{line}\n" for line in lines)


def jsonl(path: Path, rows: list[Any]) -> Path:
    text = "".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in rows)
    path.write_text(text, encoding="utf-8")
    return path


def prepare(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["data", "prepare", *map(str, arguments)])
    if isinstance(done.exception, PalestraError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def ids(path: Path) -> list[str]:
    return [json.loads(line)["metadata"]["instance_id"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize("packed", [False, True])
def test_lines_are_the_converters(tmp_path: Path, *, packed: bool) -> None:
    source = jsonl(tmp_path / "rows.jsonl", ROWS)
    if packed:
        source = tmp_path / "rows.jsonl.gz"
        source.write_bytes(gzip.compress((tmp_path / "rows.jsonl").read_bytes()))
    prepare("--input", source, "--output", tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == converted(ROWS)
    prepare("--input", source, "--output", tmp_path / "out.jsonl", "--limit", 2)
    assert (tmp_path / "out.jsonl").read_text() == converted(ROWS[:2])


def test_a_split_that_is_named_stands_in_every_row(tmp_path: Path) -> None:
    rows = [{**one, "split": "elsewhere", "subset": "other"} for one in ROWS]
    source, out = jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl"
    prepare("--input", source, "--output", out, "--split", "test")
    assert out.read_text() == converted(rows, split="test")
    prepare("--input", out, "--output", tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_text() == converted(rows)


def test_a_parquet_copy_with_lists_as_json_text_gives_the_same_tasks(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = [
        {k: json.dumps(v) if isinstance(v, list) else v for k, v in one.items()} for one in ROWS
    ]
    parquet.write_table(arrow.Table.from_pylist(texts), tmp_path / "rows.parquet")
    source = jsonl(tmp_path / "rows.jsonl", ROWS)
    prepare("--input", tmp_path / "rows.parquet", "--output", tmp_path / "a.jsonl")
    prepare("--input", source, "--output", tmp_path / "b.jsonl")
    assert (tmp_path / "a.jsonl").read_text() == converted(texts), "the text stays text"
    a, b = (load_tasks(str(tmp_path / name)) for name in ("a.jsonl", "b.jsonl"))
    for one, other in zip(a, b, strict=True):
        assert one.fail_to_pass == other.fail_to_pass
        assert (one.eval_script, one.image) == (other.eval_script, other.image)


def test_bad_rows_are_named_and_the_rest_is_written(tmp_path: Path) -> None:
    bad = {**row(90), "FAIL_TO_PASS": 7}
    rows = [ROWS[0], "{not json", bad, ROWS[1], ROWS[0], ROWS[2]]
    source, out = jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl"
    said = prepare("--input", source, "--output", out)
    assert out.read_text() == converted(ROWS[:3])
    assert "rows.jsonl:2" in said
    assert "getmoto__moto-90" in said
    assert "FAIL_TO_PASS" in said
    assert "occurs twice" in said

    prepare("--input", source, "--output", out, "--on-bad-row", "keep")
    assert ids(out).count("getmoto__moto-90") == 1

    with pytest.raises(PalestraError, match=r"rows.jsonl:2"):
        prepare("--input", source, "--output", tmp_path / "fatal.jsonl", "--on-bad-row", "fail")
    assert not (tmp_path / "fatal.jsonl").exists()


def test_filters(tmp_path: Path) -> None:
    rows = [*ROWS, row(70, PASS_TO_PASS=[f"tests/t.py::test_{i}" for i in range(50)])]
    source, out = jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl"
    prepare("--input", source, "--output", out, "--repo", "dask/dask")
    assert ids(out) == ["dask__dask-0", "dask__dask-1", "dask__dask-2"]
    prepare("--input", source, "--output", out, "--max-tests", 3)
    assert len(ids(out)) == len(ROWS)
    (tmp_path / "ids").write_text("dask__dask-1\ngetmoto__moto-4\n")
    prepare("--input", source, "--output", out, "--ids-file", tmp_path / "ids")
    assert ids(out) == ["getmoto__moto-4", "dask__dask-1"]
    with pytest.raises(PalestraError, match="no row of"):
        prepare("--input", source, "--output", tmp_path / "none.jsonl", "--repo", "none/such")
    assert not (tmp_path / "none.jsonl").exists()


def test_a_held_out_repository_and_a_held_out_share(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "rows.jsonl", ROWS)
    train, held = tmp_path / "train.jsonl", tmp_path / "held.jsonl"
    files = ("--input", source, "--output", train, "--validation-output", held)
    prepare(*files, "--validation-repo", "dask/dask")
    assert set(ids(held)) == {"dask__dask-0", "dask__dask-1", "dask__dask-2"}
    assert len(ids(train)) == 5

    prepare(*files, "--validation-share", 0.5)
    first = set(ids(held))
    assert 0 < len(first) < len(ROWS)
    assert first.isdisjoint(ids(train))
    jsonl(source, [*reversed(ROWS), row(80)])
    prepare(*files, "--validation-share", 0.5)
    assert set(ids(held)) - {"getmoto__moto-80"} == first, "a task's side depends on others"
    prepare(*files, "--validation-share", 0.5, "--seed", 1)
    assert set(ids(held)) != first


@pytest.mark.parametrize(
    "options", [("--validation-share", "0.5"), ("--validation-output", "x"), ("--on-bad-row", "x")]
)
def test_options_that_make_no_sense_are_refused(tmp_path: Path, options: tuple[str, str]) -> None:
    source = jsonl(tmp_path / "rows.jsonl", ROWS)
    arguments = ["data", "prepare", "--input", str(source), "--output", str(tmp_path / "o.jsonl")]
    done = CliRunner().invoke(app, [*arguments, *options])
    assert done.exit_code == 2
    assert not (tmp_path / "o.jsonl").exists()


def test_a_folder_is_its_files_of_the_split(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    jsonl(tmp_path / "data/train-00000-of-00002.jsonl", ROWS[:3])
    jsonl(tmp_path / "data/train-00001-of-00002.jsonl", ROWS[3:])
    jsonl(tmp_path / "data/test-00000-of-00001.jsonl", [row(50)])
    out = tmp_path / "out/o.jsonl"
    prepare("--input", tmp_path / "data", "--output", out)
    assert out.read_text() == converted(ROWS)
    prepare("--input", tmp_path / "data", "--output", out, "--split", "test")
    assert ids(out) == ["getmoto__moto-50"]
    with pytest.raises(PalestraError, match=r"no files of the split 'dev'"):
        prepare("--input", tmp_path / "data", "--output", out, "--split", "dev")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PalestraError, match="no task file in"):
        prepare("--input", tmp_path / "empty", "--output", out)


def test_katas_keep_their_own_split(tmp_path: Path) -> None:
    prepare("--input", "katas:heldout?seed=0&n=2", "--output", tmp_path / "o.jsonl")
    [first, second] = load_tasks("katas:heldout?seed=0&n=2")
    assert ids(tmp_path / "o.jsonl") == [first.instance_id, second.instance_id]
    assert load_tasks(str(tmp_path / "o.jsonl"))[0].split == first.split


def test_a_kill_in_the_middle_leaves_what_was_there_before(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "rows.jsonl", [row(i) for i in range(20000)])
    out = tmp_path / "out.jsonl"
    out.write_text("before\n")
    command = ["-m", "palestra", "data", "prepare", "--input", str(source), "--output", str(out)]
    process = subprocess.Popen([sys.executable, *command])
    while not list(tmp_path.glob(".out.jsonl.*")):
        assert process.poll() is None, "it was over before it could be killed"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert out.read_text() == "before\n"


def test_rows_are_taken_one_at_a_time() -> None:
    taken = []

    def endless() -> Any:
        for item in iter_items("katas:train?seed=0&n=50"):
            taken.append(item)
            yield item

    chosen = choose(
        endless(),
        selection=Selection(),
        division=Division(),
        on_bad_row="fail",
        report=pytest.fail,
        limit=3,
    )
    assert len(list(chosen)) == 3
    assert len(taken) <= 4


def test_show_says_what_a_source_holds(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "rows.jsonl", [*ROWS, {**row(9), "patch": 1}])
    done = CliRunner().invoke(app, ["data", "show", str(source)])
    assert done.exit_code == 0, done.output
    for word in ("8 tasks", "getmoto/moto", "dask/dask", "median 1", "getmoto__moto-9", "patch"):
        assert word in done.output, done.output
    done = CliRunner().invoke(app, ["data", "show", str(source), "--json"])
    shown = json.loads(done.stdout)
    assert shown["tasks"] == 8
    assert shown["repos"] == {"getmoto/moto": 5, "dask/dask": 3}
    assert len(shown["images"]) == 8


def test_a_hub_that_cannot_be_reached_is_said(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    done = subprocess.run(
        [sys.executable, "-m", "palestra", "data", "show", "no-such-organisation/no-such-data"],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "no-such-organisation/no-such-data" in line
    assert "→" in line, "it says what to do"


def test_a_folder_in_the_hubs_layout_is_streamed(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "data").mkdir()
    jsonl(tmp_path / "data/train.jsonl", ROWS)
    rows = [entry["payload"] for entry in hub_rows(str(tmp_path), split="train")]
    assert rows == ROWS
    with pytest.raises(PalestraError, match="split dev"):
        list(hub_rows(str(tmp_path), split="dev"))
