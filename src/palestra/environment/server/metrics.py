"""What ``GET /metrics`` says, in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from palestra.records import EpisodeResult, Outcome, Timings

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_STAGES_WITH_SANDBOX = ("start", "agent", "diff", "grade")
_BUCKETS_S = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000)


class ServerMetrics:
    """Counts what ended and asks what lives.

    Args:
        live: how many episodes are in which stage, now.
        num_pulls: how many images are being fetched, now.
        concurrency: how many may be at work.
    """

    def __init__(
        self,
        live: Callable[[], Mapping[str, int]],
        num_pulls: Callable[[], int],
        *,
        concurrency: int,
    ) -> None:
        self._registry = CollectorRegistry(auto_describe=True)
        self._registry.register(_Live(live, num_pulls, concurrency))
        self._episodes = Counter(
            "palestra_episodes", "Episodes that ended.", ["outcome"], registry=self._registry
        )
        for outcome in Outcome:
            self._episodes.labels(outcome.value)  # 0 is a count here: none has ended so
        self._stages = Histogram(
            "palestra_stage_seconds",
            "Time that episodes spent in a stage; stages that were not reached do not count.",
            ["stage"],
            buckets=_BUCKETS_S,
            registry=self._registry,
        )

    def add(self, episode: EpisodeResult) -> None:
        """Count an episode that ended."""
        self._episodes.labels(episode.outcome.value).inc()
        for stage, seconds in _stages(episode.timings):
            self._stages.labels(stage).observe(seconds)

    def render(self) -> bytes:
        """The page."""
        return generate_latest(self._registry)


class _Live(Collector):
    """Asked at each scrape, so that nothing has to be kept in step."""

    def __init__(
        self,
        live: Callable[[], Mapping[str, int]],
        num_pulls: Callable[[], int],
        concurrency: int,
    ) -> None:
        self._live = live
        self._num_pulls = num_pulls
        self._concurrency = concurrency

    def collect(self) -> Iterator[GaugeMetricFamily]:
        stages = GaugeMetricFamily("palestra_episodes_live", "Episodes by stage.", labels=["stage"])
        live = self._live()
        for stage, count in live.items():
            stages.add_metric([stage], count)
        yield stages
        yield GaugeMetricFamily(
            "palestra_queue_length", "Episodes that wait for a place.", live.get("queued", 0)
        )
        # An episode has one sandbox at a time: its agent's, then its tests'.
        num_sandboxes = sum(live.get(stage, 0) for stage in _STAGES_WITH_SANDBOX)
        yield GaugeMetricFamily("palestra_sandboxes", "Sandboxes of episodes.", num_sandboxes)
        yield GaugeMetricFamily("palestra_pulls", "Images being fetched.", self._num_pulls())
        yield GaugeMetricFamily(
            "palestra_concurrency", "Episodes that may be at work at once.", self._concurrency
        )


def _stages(timings: Timings) -> Iterator[tuple[str, float]]:
    for stage, seconds in (
        ("queue", timings.queue_s),
        ("image", timings.image_s),
        ("start", timings.start_s),
        ("agent", timings.agent_s),
        ("model", timings.model_s),
        ("commands", timings.env_s),
        ("eval", timings.eval_s),
        ("total", timings.total_s),
    ):
        if seconds is not None:
            yield stage, seconds
