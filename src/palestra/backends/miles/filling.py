"""Puts what is known of an episode into Miles' sample, which Miles made and goes on with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from miles.utils.types import Sample

from palestra.backends.miles.tokens import SampleTokens
from palestra.learning.rollouts.environment_client import Answer
from palestra.records import EpisodeResult, Outcome
from palestra.tasks.miles import from_prompt_data

RESULT_KEYS = (
    "reward",
    "eval_report",
    "messages",
    "agent_metrics",
    "exit_status",
    "outcome",
    "error",
    "untrained_ids",
)
"""What a sample's metadata holds besides the row, once it was rolled out."""


def row_of(sample: Sample) -> dict[str, Any]:
    """The row that a sample is about, without what an earlier try left in its metadata."""
    metadata = {k: v for k, v in (sample.metadata or {}).items() if k not in RESULT_KEYS}
    return from_prompt_data({"prompt": sample.prompt, "metadata": metadata})


def result_of(answer: Answer) -> dict[str, Any]:
    """What the metadata of a sample says of its episode, under the names of Miles' example."""
    episode, body = answer.episode, answer.body
    return {
        "reward": episode.reward,
        "eval_report": body.get("metadata") or {},
        "messages": body.get("messages") or [],
        "agent_metrics": agent_metrics_of(body),
        "exit_status": episode.exit_status,
        "outcome": episode.outcome.value,
        "error": episode.error,
    }


def agent_metrics_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of one episode; an empty object where there are none."""
    info = body.get("info")
    metrics = info.get("agent_metrics") if isinstance(info, Mapping) else None
    return dict(metrics) if isinstance(metrics, Mapping) else {}


def status_of(episode: EpisodeResult) -> Sample.Status:
    """Miles' status: trouble that is nobody's policy is ABORTED, and so never trained on."""
    if episode.reward is None:
        return Sample.Status.ABORTED
    if episode.outcome is Outcome.TRUNCATED:
        return Sample.Status.TRUNCATED
    return Sample.Status.COMPLETED


def fill(
    sample: Sample,
    answer: Answer,
    tokens: SampleTokens | None,
    *,
    tokenizer: Any,
    mask_truncated: bool,
) -> None:
    """Write an episode and its tokens into ``sample``.

    An episode without a reward, or in which nothing was sampled, aborts the sample.

    Args:
        sample: of Miles; is changed.
        answer: of the environment server.
        tokens: of the conversation.
        tokenizer: writes the response's text.
        mask_truncated: keep truncated samples in the baseline, but not in the loss.
    """
    sample.metadata.update(result_of(answer))
    status = status_of(answer.episode)
    if status is Sample.Status.ABORTED:
        abort(sample)
        return
    if tokens is None:
        sample.metadata["error"] = "nothing was sampled"
        abort(sample)
        return
    num_response = len(tokens.loss_mask_R)
    sample.tokens = list(tokens.ids_T)
    sample.response_length = num_response
    sample.response = tokenizer.decode(sample.tokens[-num_response:], skip_special_tokens=False)
    sample.loss_mask = list(tokens.loss_mask_R)
    sample.rollout_log_probs = None if tokens.logprobs_R is None else list(tokens.logprobs_R)
    sample.weight_versions = [str(version) for version in tokens.versions]
    sample.metadata["untrained_ids"] = tokens.num_left_out
    sample.reward = answer.episode.reward
    sample.status = status
    sample.remove_sample = mask_truncated and status is Sample.Status.TRUNCATED


def abort(sample: Sample, error: str | None = None) -> None:
    """Mark a sample as one that must not be trained on, and take what it held."""
    if error is not None:
        sample.metadata["error"] = error
    sample.tokens = []
    sample.response = ""
    sample.response_length = 0
    sample.loss_mask = []
    sample.rollout_log_probs = None
    sample.weight_versions = []
    sample.reward = None
    sample.status = Sample.Status.ABORTED
    # Whoever runs without our group filter must at least not learn from it.
    sample.remove_sample = True
