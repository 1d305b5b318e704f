"""Prompt data goes out and comes back unchanged, and never half-written."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from palestra.errors import HostError, TaskError
from palestra.tasks.miles import from_prompt_data, to_prompt_data, write_prompt_data
from palestra.tasks.source import iter_rows

TEXT = st.text(st.characters(exclude_categories=("Cs",)))
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
ROWS = st.builds(
    lambda extra, statement: extra | {"instance_id": "x", "problem_statement": statement},
    st.dictionaries(TEXT.filter(lambda key: key not in {"subset", "split"}), JSON, max_size=5),
    TEXT,
)


@given(ROWS)
def test_wrapping_keeps_every_field(row: dict[str, Any]) -> None:
    line = to_prompt_data(row)
    assert line["prompt"] == row["problem_statement"]
    assert line["metadata"] == row | {"subset": "gym", "split": "train"}
    assert from_prompt_data(line) == line["metadata"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.lists(ROWS, max_size=4))
def test_a_file_gives_back_what_was_written(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    path = tmp_path / "tasks.jsonl"
    assert write_prompt_data(path, rows, subset="s", split="t") == len(rows)
    assert list(iter_rows(str(path))) == [row | {"subset": "s", "split": "t"} for row in rows]


def test_json_strings_stay_strings(tmp_path: Path) -> None:
    row = {"instance_id": "x", "problem_statement": "p", "FAIL_TO_PASS": '["a"]'}
    write_prompt_data(tmp_path / "t.jsonl", [row])
    line = json.loads((tmp_path / "t.jsonl").read_text())
    assert line["metadata"]["FAIL_TO_PASS"] == '["a"]'


def test_a_rows_own_subset_and_split_stay() -> None:
    row = {"problem_statement": "p", "subset": "verified", "split": "test"}
    assert to_prompt_data(row)["metadata"] == row


def test_the_prompt_stands_in_for_a_missing_statement() -> None:
    assert from_prompt_data({"prompt": "p", "metadata": {"instance_id": "x"}}) == {
        "instance_id": "x",
        "problem_statement": "p",
    }


def test_a_plain_row_with_a_field_called_prompt_is_a_plain_row() -> None:
    assert from_prompt_data({"prompt": "p", "instance_id": "x"}) == {
        "prompt": "p",
        "instance_id": "x",
    }


def test_times_are_written_as_text(tmp_path: Path) -> None:
    row = {"problem_statement": "p", "created_at": datetime(2024, 2, 1)}  # noqa: DTZ001
    write_prompt_data(tmp_path / "t.jsonl", [row])
    (back,) = iter_rows(str(tmp_path / "t.jsonl"))
    assert back["created_at"] == "2024-02-01T00:00:00"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instance_id": "x"}, "x: field problem_statement"),
        ({"instance_id": "x", "problem_statement": "p", "odd": {1, 2}}, "x: .*JSON"),
        ({"instance_id": "x", "problem_statement": "p", "odd": float("nan")}, "x: .*JSON"),
    ],
)
def test_a_bad_row_leaves_the_old_file(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("old\n")
    good = {"instance_id": "y", "problem_statement": "p"}
    with pytest.raises(TaskError, match=message):
        write_prompt_data(path, [good, row])
    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_source_leaves_nothing(tmp_path: Path) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        yield {"problem_statement": "p"}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_prompt_data(tmp_path / "t.jsonl", rows())
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_takes_no_more_is_said_in_one_line(tmp_path: Path) -> None:
    # A limit on the size of files stands for the full disk: writes fail half-way.
    program = """
import pathlib, resource, sys
from palestra.errors import HostError
from palestra.tasks.miles import write_prompt_data
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    write_prompt_data(pathlib.Path(sys.argv[1]), ({"problem_statement": "p" * 999},) * 100)
except HostError as error:
    print(error)
"""
    path = tmp_path / "t.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.startswith(f"cannot write {path}"), done
    assert done.stdout.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match="cannot write"):
        write_prompt_data(tmp_path / "file" / "t.jsonl", [])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_said_in_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(HostError, match="no permission"):
        write_prompt_data(tmp_path / "t.jsonl", [])


def test_the_file_has_the_usual_permissions(tmp_path: Path) -> None:
    write_prompt_data(tmp_path / "t.jsonl", [])
    (tmp_path / "plain").write_text("")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1
