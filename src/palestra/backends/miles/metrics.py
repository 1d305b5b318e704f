"""Agent metrics of many samples, aggregated under the names that Miles' example logs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

_MEANS_AND_SUMS = ("turns", "tool_calls")
_MEANS = (
    "model_query_time_sum",
    "env_execution_time_sum",
    "eval_time",
    "agent_run_time",
    "overhead_time",
)
_AS_THEY_ARE = (
    "time_per_turn",
    "model_query_time_avg",
    "env_execution_time_avg",
    "model_time_ratio",
    "env_time_ratio",
    "eval_time_ratio",
)


def aggregate(all_metrics: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Means, sums and extremes over episodes; what no episode reports is left out."""
    reported = [metrics for metrics in all_metrics if metrics]
    aggregated: dict[str, float] = {}
    for key in _MEANS_AND_SUMS:
        if values := _values(reported, key):
            aggregated[f"agent/{key}_mean"] = math.fsum(values) / len(values)
            aggregated[f"agent/{key}_sum"] = math.fsum(values)
    for key in _MEANS:
        if values := _values(reported, key):
            aggregated[f"agent/{key}_mean"] = math.fsum(values) / len(values)
    for key in _AS_THEY_ARE:
        if values := _values(reported, key):
            aggregated[f"agent/{key}"] = math.fsum(values) / len(values)
    if totals := _values(reported, "total_time"):
        aggregated |= {
            "agent/total_time_mean": math.fsum(totals) / len(totals),
            "agent/total_time_max": max(totals),
            "agent/total_time_min": min(totals),
        }
    return aggregated


def _values(all_metrics: Iterable[Mapping[str, Any]], key: str) -> list[float]:
    values = (metrics.get(key) for metrics in all_metrics)
    return [float(value) for value in values if isinstance(value, int | float)]
