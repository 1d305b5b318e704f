"""Two runs side by side: what their recipes differ in, and where their metrics stand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from palestra.dashboard.index import RunIndex
from palestra.dashboard.library import read_recipe
from palestra.dashboard.panels import column, series_of

_NOT_SETTINGS = {"name", "runs"}
ROWS = (
    ("solve rate in training", "solve_rate", "share"),
    ("reward", "reward/mean", "number"),
    ("entropy", "train/entropy", "number"),
    ("KL to the starting policy", "train/kl_loss", "number"),
    ("importance ratio", "train/mis_tis_weight_before_bound", "number"),
    ("gradient norm", "train/grad_norm", "number"),
    ("turns an episode", "agent/turns_mean", "number"),
    ("sampled ids an episode", "rollout/sampled_tokens_mean", "number"),
    ("sampled ids a second", "tokens_per_s", "number"),
    ("staleness", "train/staleness_mean", "number"),
    ("seconds a step", "time/step_s", "seconds"),
)
_WINDOW = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingDiff:
    """A key of the recipe that two runs set differently; ``None``: it is not set."""

    key: str
    first: str | None
    second: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricDiff:
    """Means of a metric over the last steps that both runs have done."""

    label: str
    unit: str
    first: float | None
    second: float | None


def setting_diffs(first: RunIndex, second: RunIndex) -> tuple[SettingDiff, ...]:
    """Every key that differs, by name; names of runs and folders are no settings."""
    one, two = dict(_flat(read_recipe(first.run))), dict(_flat(read_recipe(second.run)))
    return tuple(
        SettingDiff(key=key, first=one.get(key), second=two.get(key))
        for key in sorted(one.keys() | two.keys())
        if key not in _NOT_SETTINGS and one.get(key) != two.get(key)
    )


def common_step(first: RunIndex, second: RunIndex) -> int | None:
    """The last step that both have done."""
    common = set(first.metrics.steps) & set(second.metrics.steps)
    return max(common, default=None)


def metric_diffs(first: RunIndex, second: RunIndex) -> tuple[MetricDiff, ...]:
    """Means over the last ten steps up to the last common one."""
    last = common_step(first, second)
    if last is None:
        return ()
    found = (
        MetricDiff(
            label=label,
            unit=unit,
            first=_mean(first, metric, last),
            second=_mean(second, metric, last),
        )
        for label, metric, unit in ROWS
    )
    return tuple(diff for diff in found if diff.first is not None or diff.second is not None)


def joint_series(first: RunIndex, second: RunIndex, names: tuple[str, str]) -> list[dict[str, Any]]:
    """The panels of both runs on the same axes; stacks, which cannot share any, are left out."""
    one, two = ({p["name"]: p for p in series_of(index)} for index in (first, second))
    return [
        _joint([one.get(name), two.get(name)], names)
        for name in dict.fromkeys((*one, *two))
        if not (one.get(name) or two[name])["stack"]
    ]


def _joint(panels: list[dict[str, Any] | None], names: tuple[str, str]) -> dict[str, Any]:
    present = [panel for panel in panels if panel is not None]
    axis = sorted({step for panel in present for step in panel["steps"]})
    lines: list[dict[str, Any]] = []
    for number, (panel, name) in enumerate(zip(panels, names, strict=True)):
        for line in panel["lines"] if panel is not None else ():
            assert panel is not None
            spread = {
                key: _spread(panel["steps"], line[key], axis)
                for key in ("values", "low", "high")
                if key in line
            }
            several = len(panel["lines"]) > 1
            label = f"{name}: {line['label']}" if several else name
            lines.append({**line, **spread, "label": label, "style": f"s{number + 1}"})
    return {**present[0], "steps": axis, "lines": lines}


def _spread(steps: list[int], values: list[float | None], axis: list[int]) -> list[float | None]:
    at = dict(zip(steps, values, strict=True))
    return [at.get(step) for step in axis]


def _mean(index: RunIndex, metric: str, last: int) -> float | None:
    pairs = zip(index.metrics.steps, column(index, metric), strict=True)
    values = [v for step, v in pairs if v is not None and last - _WINDOW < step <= last]
    return sum(values) / len(values) if values else None


def _flat(recipe: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in recipe.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
