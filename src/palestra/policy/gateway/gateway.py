"""The gateway itself: a request and a session in, an answer out, a turn in the ledger."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TypeVar

from palestra.errors import ContextOverflow, EngineError, PalestraError
from palestra.policy.engines.protocol import Engine
from palestra.policy.gateway.answers import Completion, read_answer
from palestra.policy.gateway.ledger import Ledger, Session, SessionLimits
from palestra.policy.gateway.requests import BadRequest, ChatRequest
from palestra.policy.gateway.tree import Placement
from palestra.policy.rendering.protocol import Renderer, Tokenizer
from palestra.records import Generation, SamplingParams

Value = TypeVar("Value")


class Gateway:
    """Answers chat completions from an engine and keeps what was sampled.

    Args:
        engine: samples.
        renderer: turns messages into ids; must be able to bridge turns.
        tokenizer: of the same model; decodes single tokens for ``logprobs``.
        model_name: what the endpoint calls the policy.
        max_context: most ids of a prompt and its answer; the engine's own limit holds too.
        defaults: sampling where neither the session nor the agent says anything.
        generate_timeout_s: seconds that the engine may take for one answer.
        ledger: where sessions live; one with the default bounds when ``None``.
    """

    def __init__(
        self,
        engine: Engine,
        renderer: Renderer,
        tokenizer: Tokenizer,
        *,
        model_name: str,
        max_context: int | None = None,
        defaults: SamplingParams | None = None,
        generate_timeout_s: float = 1800.0,
        ledger: Ledger | None = None,
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.model_name = model_name
        # An empty ledger is falsy, so test for None.
        self.ledger = Ledger(renderer) if ledger is None else ledger
        self._renderer = renderer
        self._passing: set[Session] = set()  # of requests outside any session
        self._max_context = max_context
        self._defaults = defaults or SamplingParams()
        self._generate_timeout_s = generate_timeout_s
        self._stop_token_ids = tuple(renderer.get_stop_token_ids())

    @property
    def max_context(self) -> int:
        """Most ids of a prompt and its answer together."""
        if self._max_context is None:
            return self.engine.max_context
        return min(self._max_context, self.engine.max_context)

    async def complete(self, request: ChatRequest, session_id: str | None) -> Completion:
        """Answer one request; within a session the turn goes into the ledger.

        Raises:
            UnknownSession: there is no such session, or it was taken meanwhile.
            ContextOverflow: the context or the session's token budget is full.
            BadRequest: the renderer cannot render the messages.
            EngineError: the engine failed or took too long.
        """
        if session_id is not None:
            session = self.ledger.get(session_id)
            return await session.run(self._answer(request, session))
        passing = Session("", SessionLimits(), self._renderer)
        self._passing.add(passing)
        try:
            return await passing.run(self._answer(request, passing))
        finally:
            self._passing.discard(passing)

    def close(self) -> None:
        """Forget every session and end every generation."""
        self.ledger.close()
        for session in self._passing:
            session.close()

    async def _answer(self, request: ChatRequest, session: Session) -> Completion:
        conversation = request.conversation()
        try:
            placement = session.tree.place(conversation)
        except ValueError as error:
            raise BadRequest(str(error), field="messages", status=400) from error
        sampling = self._sampling(request, session, placement)
        started_s = time.perf_counter()
        with session.reserving(placement.num_context + sampling.max_new_tokens):
            generation = await self._generate(placement.prompt_ids, sampling)
        answer = read_answer(
            self._renderer,
            generation,
            conversation=conversation,
            prompt_ids=placement.prompt_ids,
            stop_strings=request.stop_strings,
        )
        session.tree.append(
            placement,
            generation,
            answer=answer.message,
            temperature=sampling.temperature,
            duration_s=time.perf_counter() - started_s,
        )
        return Completion(answer=answer, prompt_ids=placement.prompt_ids, generation=generation)

    def _sampling(
        self, request: ChatRequest, session: Session, placement: Placement
    ) -> SamplingParams:
        """The session decides, then the agent, then the defaults; the room bounds them all."""
        limits, defaults = session.limits, self._defaults
        wanted = _first(limits.max_new_tokens, request.max_new_tokens, defaults.max_new_tokens)
        return replace(
            defaults,
            temperature=_first(limits.temperature, request.temperature, defaults.temperature),
            top_p=_first(limits.top_p, request.top_p, defaults.top_p),
            max_new_tokens=min(wanted, self._room(session, placement)),
            stop_token_ids=self._stop_token_ids,
            seed=session.next_seed() if limits.seed is not None else request.seed,
        )

    def _room(self, session: Session, placement: Placement) -> int:
        num_prompt = len(placement.prompt_ids)
        room = self.max_context - num_prompt
        # Clients know an overflow by OpenAI's wording, some of them by nothing else.
        if room < 1:
            raise ContextOverflow(
                f"This model's maximum context length is {self.max_context} tokens. However, your "
                f"messages resulted in {num_prompt} tokens, which leaves no room for an answer."
            )
        if session.room is None:
            return room
        left = session.room - placement.num_context
        if left < 1:
            raise ContextOverflow(
                f"The request would exceed context limit: the session's budget of "
                f"{session.limits.max_total_tokens} tokens has {max(session.room, 0)} left and "
                f"this turn adds {placement.num_context} before its answer."
            )
        return min(room, left)

    async def _generate(self, prompt_ids: tuple[int, ...], sampling: SamplingParams) -> Generation:
        try:
            async with asyncio.timeout(self._generate_timeout_s):
                return await self.engine.generate(prompt_ids, sampling)
        except PalestraError:
            raise
        except TimeoutError as error:
            raise EngineError(
                f"the engine did not answer within {self._generate_timeout_s:g} s"
            ) from error
        # Whatever else an engine lets through is still the engine's failure.
        except Exception as error:
            raise EngineError(f"the engine failed: {type(error).__name__}: {error}") from error


def _first(*values: Value | None) -> Value:
    return next(value for value in values if value is not None)
