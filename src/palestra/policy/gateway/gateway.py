"""The gateway itself: a request and a session in, an answer out, a turn in the ledger."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from palestra.errors import ContextOverflow, EngineError, PalestraError
from palestra.policy.engines.protocol import Engine
from palestra.policy.gateway.answers import Completion, read_answer
from palestra.policy.gateway.asks import Ask
from palestra.policy.gateway.ledger import Ledger, Session, SessionLimits
from palestra.policy.gateway.requests import BadRequest
from palestra.policy.gateway.sampling import decide
from palestra.policy.gateway.tree import Placement
from palestra.policy.rendering.protocol import Renderer, Tokenizer
from palestra.records import Generation, SamplingParams

OUTSIDE = SessionLimits(purpose="evaluation")
"""Of requests outside of any session: nobody trains on them."""


class Gateway:
    """Answers conversations from an engine and keeps what was sampled.

    Args:
        engine: samples.
        renderer: turns messages into ids; must be able to bridge turns.
        tokenizer: of the same model; decodes single tokens for ``logprobs``.
        model_name: what the endpoint calls the policy.
        max_context: most ids of a prompt and its answer; the engine's own limit holds too.
        defaults: sampling where neither the session nor the agent says anything.
        generate_timeout_s: seconds that the engine may take for one answer.
        quiet_s: a stream begins when its answer is there, or after so many seconds;
            until then failures have an HTTP status, from then on comments come this often.
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
        quiet_s: float = 5.0,
        ledger: Ledger | None = None,
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.model_name = model_name
        self.quiet_s = quiet_s
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

    async def complete(self, ask: Ask, session_id: str | None) -> Completion:
        """Answer one request; within a session the turn goes into the ledger.

        Raises:
            UnknownSession: there is no such session, or it was taken meanwhile.
            ContextOverflow: the context or the session's token budget is full.
            BadRequest: the renderer cannot render the messages, or an option is refused.
            EngineError: the engine failed or took too long.
        """
        if session_id is not None:
            session = self.ledger.get(session_id)
            return await session.run(self._once(ask, session))
        passing = Session("", OUTSIDE, self._renderer)
        self._passing.add(passing)
        try:
            return await passing.run(self._once(ask, passing))
        finally:
            self._passing.discard(passing)

    def close(self) -> None:
        """Forget every session and end every generation."""
        self.ledger.close()
        for session in self._passing:
            session.close()

    async def _once(self, ask: Ask, session: Session) -> Completion:
        """Answer a request, and a retry of one with the answer that there is."""
        placement = self._place(ask, session)
        earlier = await session.retries.earlier(ask.attempt, placement.history)
        if earlier is not None:
            index, answer = earlier
            turn = session.tree.packed.turn(index)
            return Completion(
                answer=answer,
                prompt_ids=tuple(session.tree.packed.path(index)[0]),
                generation=Generation(
                    segments=turn.segments,
                    finish_reason=turn.finish_reason,
                    cached_tokens=turn.cached_tokens,
                ),
            )
        with session.retries.answering(ask.attempt, placement.history):
            return await self._answer(ask, session, placement)

    def _place(self, ask: Ask, session: Session) -> Placement:
        try:
            return session.tree.place(ask.conversation)
        except ValueError as error:
            raise BadRequest(str(error), field="messages", status=400) from error

    async def _answer(self, ask: Ask, session: Session, placement: Placement) -> Completion:
        sampling = self._sampling(ask, session, placement)
        began_s = session.age_s
        with session.reserving(placement.num_context + sampling.max_new_tokens):
            generation = await self._generate(placement.prompt_ids, sampling)
        answer = read_answer(
            self._renderer,
            generation,
            conversation=ask.conversation,
            prompt_ids=placement.prompt_ids,
            stop_strings=ask.stop_strings,
        )
        turn = session.tree.append(
            placement,
            generation,
            answer=answer.message,
            thought=answer.reasoning,
            temperature=sampling.temperature,
            began_s=began_s,
            duration_s=session.age_s - began_s,
            distortions=sampling.distortions,
        )
        session.retries.answered(ask.attempt, placement.history, turn.index, answer)
        self.ledger.grown(session)
        return Completion(answer=answer, prompt_ids=placement.prompt_ids, generation=generation)

    def _sampling(self, ask: Ask, session: Session, placement: Placement) -> SamplingParams:
        """What was decided, bounded by the room that is left."""
        sampling = decide(
            ask.wishes,
            ask.stop_strings,
            limits=session.limits,
            defaults=self._defaults,
            engine=self.engine,
        )
        return replace(
            sampling,
            max_new_tokens=min(sampling.max_new_tokens, self._room(session, placement)),
            stop_token_ids=self._stop_token_ids,
            seed=sampling.seed if session.limits.seed is None else session.next_seed(),
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
