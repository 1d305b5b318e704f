"""The hook around Miles' own rollout: the same samples, with the agents' metrics."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable
from typing import Any

from miles.rollout.base_types import RolloutFnEvalOutput, RolloutFnTrainOutput
from miles.rollout.sglang_rollout import eval_rollout, generate_rollout_async
from miles.utils.async_utils import run
from miles.utils.types import Sample

from palestra.backends.miles.metrics import aggregate
from palestra.errors import ConfigError, EnvironmentUnavailable


def generate_rollout(
    args: Namespace, rollout_id: int, data_buffer: Any, evaluation: bool = False
) -> RolloutFnTrainOutput | RolloutFnEvalOutput:
    """Roll out one step, or evaluate, as Miles does; metrics have the names of its example.

    Args:
        args: Miles' arguments.
        rollout_id: number of the step.
        data_buffer: gives groups of samples, and takes back those that were not finished.
        evaluation: run the evaluation sets instead. Episodes that the infrastructure failed
            are left out of their means, with their whole task where it is tried several times.

    Raises:
        ConfigError: an aborted sample would be trained on.
        EnvironmentUnavailable: no episode of an evaluation set came to its end.
    """
    if evaluation:
        evaluated, _ = run(eval_rollout(args, rollout_id))
        return _without_aborted(evaluated, args)
    output, unfinished = run(generate_rollout_async(args, rollout_id, data_buffer.get_samples))
    data_buffer.add_samples(unfinished)
    samples = list(_flat(output.samples))
    if any(sample.status is Sample.Status.ABORTED for sample in samples):
        raise ConfigError(
            "aborted samples came through to training",
            hint="--dynamic-sampling-filter-path palestra.backends.miles.dynamic_filter",
        )
    return RolloutFnTrainOutput(
        samples=output.samples, metrics={**(output.metrics or {}), **sample_metrics(samples)}
    )


def sample_metrics(samples: Iterable[Sample]) -> dict[str, float]:
    """Metrics of the agents, and the share of sampled ids that stand in no sample."""
    samples = list(samples)
    metrics = aggregate(sample.metadata.get("agent_metrics") or {} for sample in samples)
    left_out = [sample.metadata.get("untrained_ids") for sample in samples]
    known = [number for number in left_out if number is not None]
    if known:
        metrics["agent/untrained_ids_sum"] = float(sum(known))
    return metrics


def _without_aborted(output: RolloutFnEvalOutput, args: Namespace) -> RolloutFnEvalOutput:
    metrics: dict[str, Any] = dict(output.metrics or {})
    data = {}
    for name, results in output.data.items():
        size = _attempts(args, name)
        samples: list[Sample] = results["samples"]
        lost = {
            place // size
            for place, sample in enumerate(samples)
            if sample.status is Sample.Status.ABORTED
        }
        kept = [place for place in range(len(samples)) if place // size not in lost]
        if not kept:
            raise EnvironmentUnavailable(f"no episode of the evaluation set {name} came to its end")
        data[name] = {key: [values[place] for place in kept] for key, values in results.items()}
        metrics[f"eval/{name}/aborted"] = len(samples) - len(kept)
        agents = aggregate(
            each.metadata.get("agent_metrics") or {} for each in data[name]["samples"]
        )
        metrics |= {f"eval/{name}/{key}": value for key, value in agents.items()}
    return RolloutFnEvalOutput(data=data, metrics=metrics)


def _attempts(args: Namespace, name: str) -> int:
    for dataset in getattr(args, "eval_datasets", None) or ():
        if dataset.name == name:
            return int(dataset.n_samples_per_eval_prompt or 1)
    return 1


def _flat(samples: Iterable[Any]) -> Iterable[Sample]:
    for sample in samples:
        if isinstance(sample, list):
            yield from _flat(sample)
        else:
            yield sample
