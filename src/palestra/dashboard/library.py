"""Which runs there are, and how each stands."""

from __future__ import annotations

import os
import threading
import tomllib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from palestra.addresses import without_secrets
from palestra.dashboard.index import RunIndex
from palestra.run.directory import RunDirectory

_TAIL_BYTES = 512 << 10
_MAX_OPEN = 8


class UnknownRun(Exception):
    """There is no run of this name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """A run in the list of runs.

    Attributes:
        name: its directory's.
        is_live: whether a process holds it now.
        began_s: its first event, Unix seconds.
        heard_s: its last event, Unix seconds.
        step: that it did last.
        planned_steps: of its recipe.
        model: of its recipe.
        tasks: of its recipe.
        metrics: of the last step.
        held_out: metrics of the last held-out evaluation.
    """

    name: str
    is_live: bool
    began_s: float | None
    heard_s: float | None
    step: int | None
    planned_steps: int | None
    model: str | None
    tasks: str | None
    metrics: Mapping[str, float]
    held_out: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ends:
    """What the first and the last lines of an event log say."""

    began_s: float | None = None
    heard_s: float | None = None
    step: int | None = None
    metrics: Mapping[str, float] | None = None
    held_out: Mapping[str, float] | None = None


class Library:
    """The runs below a folder; a folder that is a run itself is the only one.

    Args:
        root: the folder; it need not be there yet.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._lock = threading.Lock()
        self._open: OrderedDict[str, RunIndex] = OrderedDict()
        self._ends: dict[str, tuple[tuple[int, int], _Ends]] = {}

    def names(self) -> list[str]:
        """The runs that are there now."""
        return sorted(self._found())

    def directory(self, name: str) -> RunDirectory:
        """The directory of a run.

        Raises:
            UnknownRun: there is none.
        """
        found = self._found().get(name)
        if found is None:
            raise UnknownRun(name)
        return RunDirectory(found)

    def open(self, name: str) -> RunIndex:
        """The index of a run, as of now; those used last are kept.

        Raises:
            UnknownRun: there is none.
        """
        run = self.directory(name)
        with self._lock:
            index = self._open.get(name)
            if index is None:
                index = self._open[name] = RunIndex(run)
            self._open.move_to_end(name)
            while len(self._open) > _MAX_OPEN:
                self._open.popitem(last=False)
        return index.refresh()

    def summaries(self) -> list[RunSummary]:
        """Every run, the one that was heard of last first."""
        held = held_locks()
        found = [self._summary(name, root, held) for name, root in self._found().items()]
        return sorted(found, key=lambda run: run.heard_s or 0.0, reverse=True)

    def _found(self) -> dict[str, Path]:
        if _is_run(self.root):
            return {self.root.name: self.root}
        try:
            children = list(self.root.iterdir())
        except OSError:
            return {}
        return {child.name: child for child in children if _is_run(child)}

    def _summary(self, name: str, root: Path, held: frozenset[tuple[int, int]]) -> RunSummary:
        run = RunDirectory(root)
        ends = self._ends_of(run)
        recipe = read_recipe(run)
        return RunSummary(
            name=name,
            is_live=is_live(run, held),
            began_s=ends.began_s,
            heard_s=ends.heard_s,
            step=ends.step,
            planned_steps=_value(recipe, "training", "steps", int),
            model=_value(recipe, "model", "path", str),
            tasks=_value(recipe, "tasks", "train", str),
            metrics=ends.metrics or {},
            held_out=ends.held_out or {},
        )

    def _ends_of(self, run: RunDirectory) -> _Ends:
        try:
            found = run.events.stat()
        except OSError:
            return _Ends()
        key, stamp = str(run.root), (found.st_mtime_ns, found.st_size)
        known = self._ends.get(key)
        if known is not None and known[0] == stamp:
            return known[1]
        ends = _read_ends(run.events)
        self._ends[key] = (stamp, ends)
        return ends


def read_recipe(run: RunDirectory) -> dict[str, Any]:
    """The recipe as nested dicts, without its secrets; empty where it cannot be read."""
    try:
        recipe = tomllib.loads(run.recipe.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    environment = recipe.get("environment")
    if isinstance(environment, dict):
        environment.pop("token", None)
        if isinstance(environment.get("url"), str):
            environment["url"] = without_secrets(environment["url"])
    return recipe


def held_locks() -> frozenset[tuple[int, int]]:
    """(device, inode) of every file that some process holds an flock on.

    Read from the kernel's list: taking a lock to see whether it is free would keep a run
    that starts just then from getting it.
    """
    try:
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return frozenset()
    found = set()
    for line in lines:
        words = line.split()
        if len(words) >= 6 and words[1] == "FLOCK":
            major, minor, inode = words[5].split(":")
            found.add((os.makedev(int(major, 16), int(minor, 16)), int(inode)))
    return frozenset(found)


def is_live(run: RunDirectory, held: frozenset[tuple[int, int]] | None = None) -> bool:
    """Whether a process of this machine works on the run."""
    try:
        lock = run.lock.stat()
    except OSError:
        return False
    return (lock.st_dev, lock.st_ino) in (held_locks() if held is None else held)


def _is_run(path: Path) -> bool:
    return (path / "recipe.toml").is_file() or (path / "events.jsonl").is_file()


def _read_ends(path: Path) -> _Ends:
    ends: dict[str, Any] = {}
    try:
        with path.open("rb") as file:
            ends["began_s"] = _parsed(file.readline(_TAIL_BYTES)).get("time_s")
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return _Ends()
    for line in reversed(lines):
        event = _parsed(line)
        if "heard_s" not in ends and isinstance(event.get("time_s"), int | float):
            ends["heard_s"] = event["time_s"]
        if event.get("kind") == "step" and "metrics" not in ends:
            ends |= {"step": event.get("step"), "metrics": event.get("metrics")}
        if event.get("kind") == "evaluation" and "held_out" not in ends:
            ends["held_out"] = event.get("metrics")
        if {"metrics", "held_out"} <= ends.keys():
            break
    return _Ends(**ends)


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _value(recipe: Mapping[str, Any], section: str, key: str, kind: type) -> Any:
    found = recipe.get(section)
    value = found.get(key) if isinstance(found, dict) else None
    return value if isinstance(value, kind) else None
