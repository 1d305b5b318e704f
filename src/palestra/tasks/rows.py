"""From a row of a data set to a :class:`~palestra.records.Task`, and back.

One entry for every kind of row: plain SWE-Gym rows, rows of swebench 5.x that
bring their own script, and katas, which bring their repository as well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from palestra.errors import TaskError
from palestra.records import Task, TaskFile
from palestra.tasks import swegym
from palestra.tasks.checks import broken

_EVAL_TYPE = "pass_and_fail"


def task_from_row(row: Mapping[str, Any]) -> Task:
    """Read one row.

    Raises:
        TaskError: names the row's id and the field that is missing or wrong, or cannot be
            right as far as that is seen without a sandbox.
    """
    instance_id = row.get("instance_id")
    if not isinstance(instance_id, str) or not instance_id:
        raise TaskError("a row has no instance_id", hint="every row needs a string instance_id")
    fields = _Fields(row, instance_id)
    repo = fields.text("repo")
    test_patch = fields.text("test_patch", default="" if "eval_script" in row else None)
    base_commit = fields.text("base_commit")
    script, log_parser = _how_to_test(fields, repo, base_commit, test_patch)
    try:
        task = Task(
            instance_id=instance_id,
            repo=repo,
            base_commit=base_commit,
            problem_statement=fields.text("problem_statement"),
            image=_image(fields, repo),
            fail_to_pass=fields.tests("FAIL_TO_PASS"),
            pass_to_pass=fields.tests("PASS_TO_PASS"),
            gold_patch=fields.text("patch"),
            test_patch=test_patch,
            eval_script=script,
            log_parser=log_parser,
            workdir=fields.text("workdir", default="/testbed"),
            subset=fields.text("subset", default="gym"),
            split=fields.text("split", default="train"),
            files=fields.files(),
            setup_patch=fields.text("setup_patch", default=""),
            row=row,
        )
    except ValueError as error:
        message = str(error)
        named = message if message.startswith(instance_id) else f"{instance_id}: {message}"
        raise TaskError(named) from None
    if (wrong := broken(task)) is not None:
        raise fields.error(*wrong)
    return task


def task_to_row(task: Task) -> dict[str, Any]:
    """The row that ``task`` came from, field for field.

    A task that was built without a row gets one in the shape of swebench 5.x.
    """
    if task.row:
        return dict(task.row)
    row: dict[str, Any] = {
        "instance_id": task.instance_id,
        "repo": task.repo,
        "base_commit": task.base_commit,
        "problem_statement": task.problem_statement,
        "patch": task.gold_patch,
        "test_patch": task.test_patch,
        "FAIL_TO_PASS": list(task.fail_to_pass),
        "PASS_TO_PASS": list(task.pass_to_pass),
        "image": task.image,
        "eval_script": task.eval_script,
        "log_parser": task.log_parser,
        "eval_type": "pass_and_fail",
        "workdir": task.workdir,
        "subset": task.subset,
        "split": task.split,
    }
    if task.setup_patch:
        row["setup_patch"] = task.setup_patch
    if task.files:
        row["files"] = [
            {"path": file.path, "text": file.text, "executable": file.executable}
            for file in task.files
        ]
    return row


def _how_to_test(fields: _Fields, repo: str, base_commit: str, test_patch: str) -> tuple[str, str]:
    """The eval script and the name of its log parser: the row's own, else the table's."""
    if fields.has("eval_script"):
        eval_type = fields.text("eval_type", default=_EVAL_TYPE)
        if eval_type != _EVAL_TYPE:  # fail_only: logs that name failures alone, of no parser here
            raise fields.error("eval_type", f"is {eval_type!r}; only {_EVAL_TYPE} can be graded")
        return fields.text("eval_script"), fields.text("log_parser")
    spec = swegym.spec_for(repo, instance_id=fields.instance_id)
    script = swegym.eval_script(
        instance_id=fields.instance_id, repo=repo, base_commit=base_commit, test_patch=test_patch
    )
    return script, spec.log_parser


def _image(fields: _Fields, repo: str) -> str:
    for name in ("image", "image_name"):
        if fields.has(name):
            return fields.text(name)
    if repo in swegym.SPECS:
        return swegym.image_name(fields.instance_id)
    tag = fields.instance_id.lower().replace("__", "_1776_")
    return f"swebench/sweb.eval.x86_64.{tag}:latest"


class _Fields:
    """Typed access to the fields of one row; every error names the row and the field."""

    def __init__(self, row: Mapping[str, Any], instance_id: str) -> None:
        self._row = row
        self.instance_id = instance_id

    def has(self, name: str) -> bool:
        return self._row.get(name) not in (None, "")

    def error(self, name: str, what: str) -> TaskError:
        return TaskError(f"{self.instance_id}: field {name} {what}")

    def text(self, name: str, *, default: str | None = None) -> str:
        value = self._row.get(name)
        if value is None:
            if default is None:
                raise self.error(name, "is missing")
            return default
        if not isinstance(value, str):
            raise self.error(name, f"is a {type(value).__name__}, not a string")
        return value

    def tests(self, name: str) -> tuple[str, ...]:
        """A list of test ids, given as a list or as the JSON text of one."""
        value = self._row.get(name)
        if value is None:
            raise self.error(name, "is missing")
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                raise self.error(name, "is a string but not the JSON of a list") from None
        if not isinstance(value, list | tuple) or not all(isinstance(t, str) for t in value):
            raise self.error(name, "is not a list of test ids")
        return tuple(value)

    def files(self) -> tuple[TaskFile, ...]:
        """The repository that the row carries, if it does."""
        value = self._row.get("files")
        if value is None:
            return ()
        if not isinstance(value, list | tuple):
            raise self.error("files", "is not a list")
        return tuple(self._file(item) for item in value)

    def _file(self, item: Any) -> TaskFile:
        if not isinstance(item, Mapping):
            raise self.error("files", "holds something that is not an object")
        path, text = item.get("path"), item.get("text")
        if not isinstance(path, str) or not isinstance(text, str):
            raise self.error("files", "holds an entry without a path or a text")
        try:
            return TaskFile(path=path, text=text, executable=bool(item.get("executable", False)))
        except ValueError as error:
            raise self.error("files", f"holds {error}") from None
