"""Options of sampling: who may ask for what, and what the trace says of it."""

from __future__ import annotations

from typing import Any

import pytest
from gateway_parts import FakeEngine, control, encode, samples, says
from test_gateway import BASH, END, ask, message_of, open_session, serving, trace_of, user

LOSSY: list[dict[str, Any]] = [
    {"top_k": 5},
    {"min_p": 0.1},
    {"frequency_penalty": 0.5},
    {"presence_penalty": -0.5},
    {"repetition_penalty": 1.1},
    {"logit_bias": {"7": -100.0}},
]


class Able(FakeEngine):
    """Knows every option, as SGLang does."""

    sampling_options = frozenset(
        {
            *("stop", "top_k", "min_p", "frequency_penalty", "presence_penalty"),
            *("repetition_penalty", "logit_bias"),
        }
    )


@pytest.mark.parametrize("options", LOSSY, ids=str)
async def test_what_spoils_logprobs_is_for_evaluation(options: dict[str, Any]) -> None:
    (name,) = options
    async with serving(Able(says("a"))) as client:
        training = await open_session(client)
        refused = await ask(client, training, [user("u")], **options)
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == name
        assert "evaluation" in refused.json()["error"]["message"]
        assert (await trace_of(client, training)).turns == ()
        evaluation = await open_session(client, purpose="evaluation")
        message_of(await ask(client, evaluation, [user("u")], **options))
        trace = await trace_of(client, evaluation)
    assert trace.turns[0].distortions == (name,)


@pytest.mark.parametrize("options", LOSSY, ids=str)
async def test_what_an_engine_does_not_know_is_refused_everywhere(options: dict[str, Any]) -> None:
    async with serving(FakeEngine(says("a"))) as client:
        session = await open_session(client, purpose="evaluation")
        for where in (session, None):
            refused = await ask(client, where, [user("u")], **options)
            assert refused.status_code == 400
            assert "not supported by this engine" in refused.json()["error"]["message"]


async def test_values_that_change_nothing_are_taken() -> None:
    neutral: dict[str, Any] = {"top_k": -1, "min_p": 0, "top_p": 1.0, "n": 1, "logit_bias": {}}
    neutral |= {"frequency_penalty": 0, "presence_penalty": 0, "repetition_penalty": 1.0}
    async with serving(FakeEngine(says("a"))) as client:
        session = await open_session(client)
        message_of(await ask(client, session, [user("u")], **neutral))
        trace = await trace_of(client, session)
    assert trace.turns[0].distortions == ()


async def test_a_nucleus_is_honoured_and_flagged() -> None:
    engine = FakeEngine(says("a"))
    async with serving(engine) as client:
        session = await open_session(client)
        message_of(await ask(client, session, [user("u")], top_p=0.9))
        decided = await open_session(client, top_p=1.0)
        message_of(await ask(client, decided, [user("u")], top_p=0.9))
        flagged = [(await trace_of(client, s)).turns[0].distortions for s in (session, decided)]
    assert [sampling.top_p for sampling in engine.samplings] == [0.9, 1.0]
    assert flagged == [("top_p",), ()]


async def test_engines_that_know_stop_strings_get_them() -> None:
    able, plain = Able(says("a")), FakeEngine(says("a"))
    for engine in (able, plain):
        async with serving(engine) as client:
            await ask(client, None, [user("u")], stop=["STOP", ""])
    assert able.samplings[0].stop == ("STOP",)
    assert plain.samplings[0].stop == ()


async def test_a_history_of_40k_ids_against_32k_is_an_overflow_and_the_trace_stays() -> None:
    engine = FakeEngine(says("fine"), max_context=32_768)
    async with serving(engine) as client:
        session = await open_session(client)
        first = message_of(await ask(client, session, [user("u")]))
        # One id a letter: none of them merge.
        history = [user("u"), first, user("xyz " * 10_000)]
        for options in ({}, {"stream": True}):
            refused = await ask(client, session, history, **options)
            assert refused.status_code == 400
            error = refused.json()["error"]
            assert error["code"] == "context_length_exceeded"
            assert "maximum context length is 32768 tokens" in error["message"]
        trace = await trace_of(client, session)
    assert len(trace.turns) == 1


async def test_an_answer_without_a_word_is_an_empty_message() -> None:
    engine = FakeEngine(samples([control(END)], [control(END)]))
    async with serving(engine) as client:
        session = await open_session(client)
        answer = await ask(client, session, [user("u")], tools=[BASH])
        assert message_of(answer) == {"role": "assistant", "content": ""}
        assert answer.json()["choices"][0]["finish_reason"] == "stop"
        await ask(client, session, [user("u"), message_of(answer), user("v")], tools=[BASH])
        trace = await trace_of(client, session)
    assert [turn.parent for turn in trace.turns] == [None, 0]


async def test_turns_say_when_they_began_and_how_long_they_took() -> None:
    async with serving(FakeEngine(samples([*encode("a"), control(END)]))) as client:
        session = await open_session(client)
        for _ in range(2):
            await ask(client, session, [user("u")])
        trace = await trace_of(client, session)
    first, second = trace.turns
    assert first.began_s is not None
    assert second.began_s is not None
    assert 0 <= first.began_s <= first.began_s + first.duration_s <= second.began_s
    assert first.cached_tokens is None, "this engine does not tell"
