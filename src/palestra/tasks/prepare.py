"""From a source to files of prompt data: which rows go where.

Everything is decided row by row, so a source of any size takes the memory of one row, and a
row's side of a split does not depend on the others.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from palestra.errors import TaskError
from palestra.records import Task
from palestra.tasks.source import SourceItem

OnBadRow = Literal["skip", "fail", "keep"]
Side = Literal["train", "validation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which tasks are wanted.

    Attributes:
        repos: of these repositories; empty: of any.
        ids: these ids; ``None``: any.
        max_tests: at most so many tests listed.
        is_certified: a further condition, such as a certificate.
    """

    repos: Collection[str] = ()
    ids: Collection[str] | None = None
    max_tests: int | None = None
    is_certified: Callable[[Task], bool] | None = None

    def wants(self, task: Task) -> bool:
        """Whether ``task`` is wanted."""
        num_tests = len(task.fail_to_pass) + len(task.pass_to_pass)
        return (
            (not self.repos or task.repo in self.repos)
            and (self.ids is None or task.instance_id in self.ids)
            and (self.max_tests is None or num_tests <= self.max_tests)
            and (self.is_certified is None or self.is_certified(task))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Division:
    """Which tasks are held out.

    Attributes:
        share: of all tasks, chosen by their ids; the same ones whatever else is in the source.
        repos: all tasks of these repositories.
        seed: of the choice by ids.
    """

    share: float = 0.0
    repos: Collection[str] = ()
    seed: int = 0

    def side(self, repo: str, instance_id: str) -> Side:
        """Where a task goes."""
        digest = hashlib.sha256(f"{self.seed}:{instance_id}".encode()).digest()
        is_drawn = int.from_bytes(digest[:8]) < self.share * 2**64
        return "validation" if is_drawn or repo in self.repos else "train"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A row that is to be written, and where."""

    row: Mapping[str, Any]
    side: Side


def choose(
    items: Iterable[SourceItem],
    *,
    selection: Selection,
    division: Division,
    on_bad_row: OnBadRow,
    report: Callable[[str], None],
    limit: int | None = None,
) -> Iterator[Chosen]:
    """The rows that are to be written, in their order.

    Args:
        items: the source.
        selection: what is wanted.
        division: what is held out.
        on_bad_row: ``skip`` leaves rows out that cannot be used, ``fail`` ends at the first,
            ``keep`` writes them as they stand where they have a statement.
        report: is told of each bad row, in one line that names it.
        limit: at most so many.

    Raises:
        TaskError: a row is bad, and that is fatal.
    """
    seen: set[str] = set()
    count = 0
    for item in items:
        if limit is not None and count >= limit:
            return
        try:
            row, task = _read(item, seen)
        except TaskError as error:
            if on_bad_row == "fail":
                raise
            kept = _as_it_stands(item) if on_bad_row == "keep" else None
            report(f"{'kept' if kept else 'skipped'}: {error}")
            if kept is None:
                continue
            row, task = kept, None
        if task is not None and not selection.wants(task):
            continue
        count += 1
        repo, instance_id = str(row.get("repo", "")), str(row.get("instance_id", ""))
        yield Chosen(row=row, side=division.side(repo, instance_id))


def _read(item: SourceItem, seen: set[str]) -> tuple[dict[str, Any], Task]:
    row = item.row()
    task = item.task()
    if task.instance_id in seen:
        raise TaskError(f"{item.where}: {task.instance_id} occurs twice")
    seen.add(task.instance_id)
    return row, task


def _as_it_stands(item: SourceItem) -> dict[str, Any] | None:
    try:
        row = item.row()
    except TaskError:
        return None
    return row if isinstance(row.get("problem_statement"), str) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a source holds.

    Attributes:
        repos: tasks of each repository, the most frequent first.
        fail_to_pass: number of tests that shall flip, of each task.
        pass_to_pass: number of tests that shall hold, of each task.
        images: names of images, with the tasks that use each.
        splits: ``SUBSET/SPLIT`` → tasks.
        certificates: state → tasks; empty where nobody asked.
        bad_rows: what is wrong with the rows that cannot be used.
    """

    repos: Mapping[str, int]
    fail_to_pass: tuple[int, ...]
    pass_to_pass: tuple[int, ...]
    images: Mapping[str, int]
    splits: Mapping[str, int]
    certificates: Mapping[str, int]
    bad_rows: tuple[str, ...]

    @property
    def num_tasks(self) -> int:
        """Tasks that can be used."""
        return len(self.fail_to_pass)


def summarize(
    items: Iterable[SourceItem], *, certificate_state: Callable[[Task], str] | None = None
) -> Summary:
    """Look through a source."""
    repos, images, splits, states = (Counter[str]() for _ in range(4))
    flips: list[int] = []
    holds: list[int] = []
    bad: list[str] = []
    seen: set[str] = set()
    for item in items:
        try:
            _, task = _read(item, seen)
        except TaskError as error:
            bad.append(str(error))
            continue
        repos[task.repo] += 1
        images[task.image] += 1
        splits[f"{task.subset}/{task.split}"] += 1
        flips.append(len(task.fail_to_pass))
        holds.append(len(task.pass_to_pass))
        if certificate_state is not None:
            states[certificate_state(task)] += 1
    return Summary(
        repos=dict(repos.most_common()),
        fail_to_pass=tuple(flips),
        pass_to_pass=tuple(holds),
        images=dict(images.most_common()),
        splits=dict(splits.most_common()),
        certificates=dict(states.most_common()),
        bad_rows=tuple(bad),
    )
