"""Client of an environment server: ours, or Gym's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from pydantic import ValidationError

from palestra.config import SamplingSection
from palestra.errors import EnvironmentUnavailable, TaskError
from palestra.learning.rollouts.foreign import episode_from_foreign
from palestra.learning.rollouts.http import Patience, Peer, detail
from palestra.records import EpisodeResult, Task
from palestra.tasks.rows import task_to_row
from palestra.wire import ReachResponse, RunResponse, episode_from_wire

# A broken connection is worth one more try under the same idempotency key: the
# server answers with the episode that is already running.
_RESENDS = 1
_NO_SUCH_CALL = (404, 405)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer of ``POST /run``: read as an episode, and as it came."""

    episode: EpisodeResult
    body: Mapping[str, Any]


class EnvironmentClient:
    """Runs episodes on the environment server at ``base_url``.

    Args:
        base_url: ``http://HOST:PORT``, or ``http://x:TOKEN@HOST:PORT``.
        token: sent as bearer, if the address has none.
        timeout_s: longest that one episode may take, from the request to the answer:
            queue, start, agent and grading together.
        outage_s: seconds that the server may be out of reach before an episode fails.
        say: told of each outage, in one line.

    Raises:
        ConfigError: ``base_url`` is no HTTP address.
    """

    def __init__(
        self,
        base_url: str,
        token: str | None = None,
        *,
        timeout_s: float = 7200.0,
        outage_s: float = 0.0,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._peer = Peer(
            base_url,
            what="environment server",
            error=EnvironmentUnavailable,
            token=token,
            timeout_s=timeout_s,
        )
        self._can_prefetch = True
        self._patience = Patience(outage_s, say or (lambda _: None))

    @property
    def address(self) -> str:
        """Where the server is, without credentials."""
        return self._peer.address

    async def health(self) -> None:
        """Return when the server says that it can work.

        Raises:
            EnvironmentUnavailable: it cannot be reached or does not say so.
            ConfigError: it refuses the token.
        """
        self._peer.json(await self._peer.request("GET", "/health"))

    async def reach(self, url: str) -> None:
        """Have the server try to reach the policy at ``url``.

        A server of another make that knows nothing of it is believed.

        Args:
            url: OpenAI base URL, ending in ``/v1``.

        Raises:
            EnvironmentUnavailable: it cannot, or it cannot be asked; says which address failed.
            ConfigError: it refuses the token.
        """
        response = await self._peer.request("POST", "/reach", body={"url": url})
        if response.status_code in _NO_SUCH_CALL:
            return
        try:
            answer = ReachResponse.model_validate(self._peer.json(response))
        except ValidationError:
            raise self._peer.failure("answered nonsense when asked to reach the policy") from None
        if not answer.reachable:
            raise EnvironmentUnavailable(
                f"the environment server at {self.address} cannot reach the policy at {url}: "
                f"{answer.error}",
                hint="gateway.host and gateway.public_url name the address that it shall use",
            )

    async def run(
        self,
        task: Task,
        *,
        sglang_url: str,
        sampling: SamplingSection,
        idempotency_key: str,
    ) -> EpisodeResult:
        """Run one episode; repeats with the same ``idempotency_key`` get the same episode.

        Raises:
            EnvironmentUnavailable: no connection, a 5xx, no answer in time, or nonsense.
            TaskError: the server says that it cannot use the task (422).
            ConfigError: it refuses the token.
        """
        answer = await self.run_row(
            task_to_row(task)
            | {"instance_id": task.instance_id, "subset": task.subset, "split": task.split},
            sglang_url=sglang_url,
            sampling={
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "max_new_tokens": sampling.max_new_tokens,
            },
            idempotency_key=idempotency_key,
        )
        return answer.episode

    async def run_row(
        self,
        row: Mapping[str, Any],
        *,
        sglang_url: str,
        sampling: Mapping[str, Any],
        idempotency_key: str,
    ) -> Answer:
        """Run one episode of a row as it stands; see :meth:`run`.

        Args:
            row: fields of the task, ``instance_id`` at least.
            sglang_url: OpenAI base URL of the policy, ending in ``/v1``.
            sampling: of every turn, under SGLang's names.
            idempotency_key: of the episode.

        Raises:
            EnvironmentUnavailable: no connection, a 5xx, no answer in time, or nonsense.
            TaskError: the server says that it cannot use the row (422), or it has no id.
            ConfigError: it refuses the token.
        """
        instance_id = row.get("instance_id")
        if not isinstance(instance_id, str):
            raise TaskError("a row without instance_id")
        response = await self._peer.request(
            "POST",
            "/run",
            body=_run_body(row, sglang_url, sampling),
            headers={"Idempotency-Key": idempotency_key},
            resends=_RESENDS,
            patience=self._patience,
        )
        if response.status_code == 422:
            raise TaskError(
                f"the environment server at {self.address} cannot use "
                f"{instance_id}: {detail(response)}"
            )
        answer = self._peer.json(response)
        episode = self._read(instance_id, answer, idempotency_key)
        if episode.instance_id != instance_id:
            raise self._peer.failure(f"answered {episode.instance_id} when asked for {instance_id}")
        return Answer(episode=episode, body=answer)

    async def prefetch(self, images: Sequence[str]) -> None:
        """Ask the server to bring ``images``, the first one first; it answers at once.

        A server of another make that knows nothing of it is not asked again.

        Raises:
            EnvironmentUnavailable: no connection, a 5xx, no answer in time, or nonsense.
            ConfigError: it refuses the token.
        """
        if not self._can_prefetch:
            return
        response = await self._peer.request("POST", "/prefetch", body={"images": list(images)})
        if response.status_code in _NO_SUCH_CALL:
            self._can_prefetch = False
            return
        self._peer.json(response)

    def _read(self, instance_id: str, answer: dict[str, Any], episode_id: str) -> EpisodeResult:
        try:
            if "episode" in answer:
                return episode_from_wire(RunResponse.model_validate(answer).episode)
            return episode_from_foreign(answer, instance_id=instance_id, episode_id=episode_id)
        except (ValidationError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise self._peer.failure(f"answered no readable episode: {reason}") from error

    async def aclose(self) -> None:
        """Close all connections."""
        await self._peer.aclose()

    async def __aenter__(self) -> EnvironmentClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()


def _run_body(
    row: Mapping[str, Any], sglang_url: str, sampling: Mapping[str, Any]
) -> dict[str, Any]:
    # The row first: a field of the row must not override one of the request.
    return dict(row) | {
        "responses_create_params": {
            "input": [],
            "temperature": sampling.get("temperature"),
            "top_p": sampling.get("top_p"),
            "max_output_tokens": sampling.get("max_new_tokens"),
        },
        "sampling_params": dict(sampling),
        "sglang_url": sglang_url,
    }
