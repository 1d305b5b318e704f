"""Task sources: files of three kinds, katas, and everything that can be wrong with them."""

from __future__ import annotations

import gzip
import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from palestra.errors import HostError, MissingExtra, TaskError
from palestra.tasks.katas import KataSpec
from palestra.tasks.miles import write_prompt_data
from palestra.tasks.source import iter_rows, load_tasks
from palestra.tasks.swegym import END_MARKER, START_MARKER

ROW: dict[str, Any] = {
    "instance_id": "a__b-1",
    "repo": "a/b",
    "base_commit": "abc123",
    "problem_statement": "It breaks.",
    "patch": "",
    "FAIL_TO_PASS": ["t.py::one"],
    "PASS_TO_PASS": [],
    "image": "some:image",
    "eval_script": f"echo '{START_MARKER}'\npytest t.py\necho '{END_MARKER}'\n",
    "log_parser": "parse_log_pytest",
}


def rows(n: int) -> list[dict[str, Any]]:
    return [ROW | {"instance_id": f"a__b-{i}"} for i in range(n)]


def write_lines(path: Path, *lines: str) -> str:
    path.write_text("".join(line + "\n" for line in lines))
    return str(path)


def test_plain_rows_and_prompt_data_are_read_by_one_reader(tmp_path: Path) -> None:
    plain, wrapped = ROW, {"prompt": "p", "metadata": ROW | {"instance_id": "other"}}
    spec = write_lines(tmp_path / "t.jsonl", json.dumps(plain), "", json.dumps(wrapped))
    assert [task.instance_id for task in load_tasks(spec)] == ["a__b-1", "other"]


def test_gzip(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(ROW).encode()))
    assert list(iter_rows(str(path))) == [ROW]


def test_a_broken_gzip_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(rows(50)).encode())[:-20])
    with pytest.raises(TaskError, match="gzip"):
        load_tasks(str(path))
    path.write_bytes(b"plain text")
    with pytest.raises(TaskError, match="gzip"):
        load_tasks(str(path))


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "t.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows(150)), path)
    assert list(iter_rows(str(path))) == rows(150)
    assert len(load_tasks(str(path), limit=70)) == 70
    path.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(TaskError, match="not a parquet file"):
        load_tasks(str(path))


def test_parquet_without_pyarrow_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"palestra\[parquet\]"):
        load_tasks(str(tmp_path / "t.parquet"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere.jsonl", "no task file nowhere.jsonl"),
        ("nowhere.parquet", "no task file nowhere.parquet"),
        ("SWE-Gym", "unknown task source 'SWE-Gym'"),
        ("katas:", "the split is ''"),
        ("katas:test", "the split is 'test'"),
        ("katas:train?sed=1", "unknown key 'sed'"),
        ("katas:train?seed=-1", "seed='-1'"),
        ("katas:train?seed=x", "seed='x'"),
        ("katas:train?n=0", "n is 0"),
        ("katas:train?seed=1&seed=2", "seed is given twice"),
        ("katas:train?level=5", "level '5'"),
        ("katas:train?levels=3-1", "level '3-1'"),
        ("katas:train?levels=1,1", "level is given twice"),
        ("katas:train?level=1&levels=0-3", "both level and levels"),
    ],
)
def test_an_unknown_source_is_one_clear_line(spec: str, message: str) -> None:
    with pytest.raises(TaskError, match=r"^[^\n]*$") as caught:
        load_tasks(spec)
    assert message in str(caught.value)


def test_a_folder_is_not_a_task_file(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").mkdir()
    with pytest.raises(HostError, match="cannot read"):
        load_tasks(str(tmp_path / "t.jsonl"))


@pytest.mark.parametrize("line", ["{", "[1]", "{}", '{"instance_id": "x"}'])
def test_a_broken_line_is_named_by_its_number(tmp_path: Path, line: str) -> None:
    spec = write_lines(tmp_path / "t.jsonl", json.dumps(ROW), line)
    with pytest.raises(TaskError, match=r"t\.jsonl:2: "):
        load_tasks(spec)


def test_broken_rows_are_skipped_and_reported_on_request(tmp_path: Path) -> None:
    bad = json.dumps(ROW | {"instance_id": "bad", "FAIL_TO_PASS": []})
    spec = write_lines(tmp_path / "t.jsonl", "{", bad, json.dumps(ROW), json.dumps(ROW))
    said: list[str] = []
    tasks = load_tasks(spec, on_bad_row="skip", report=said.append)
    assert [task.instance_id for task in tasks] == ["a__b-1"]
    assert len(said) == 3
    assert "t.jsonl:1" in said[0]
    assert "bad" in said[1]
    assert "twice" in said[2]


def test_two_tasks_of_one_id_are_an_error(tmp_path: Path) -> None:
    spec = write_lines(tmp_path / "t.jsonl", json.dumps(ROW), json.dumps(ROW))
    with pytest.raises(TaskError, match="a__b-1 occurs twice"):
        load_tasks(spec)


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="holds no task"):
        load_tasks(write_lines(tmp_path / "t.jsonl"))


def test_limits(tmp_path: Path) -> None:
    spec = write_lines(tmp_path / "t.jsonl", *(json.dumps(row) for row in rows(5)), "{")
    assert len(load_tasks(spec, limit=5)) == 5
    assert len(list(iter_rows(spec, limit=2))) == 2


def test_rows_are_read_lazily() -> None:
    endless = iter_rows("katas:train?n=1000000000&level=0")
    assert len(list(islice(endless, 3))) == 3


def test_kata_specs() -> None:
    assert KataSpec.parse("katas:heldout") == KataSpec(split="heldout")
    spec = KataSpec.parse("katas:train?seed=7&n=20&levels=0-3")
    assert (spec.seed, spec.num_tasks, spec.levels) == (7, 20, (0, 1, 2, 3))
    assert KataSpec.parse(spec.name) == spec
    assert KataSpec.parse("katas:train?level=4").levels == (4,)


def test_katas_survive_prompt_data(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    spec = "katas:train?n=20&levels=0-4"
    assert write_prompt_data(path, iter_rows(spec)) == 20
    assert load_tasks(str(path)) == load_tasks(spec)
    assert list(iter_rows(str(path))) == list(iter_rows(spec))
