"""The scripted engine: a policy that is a function."""

from __future__ import annotations

from pathlib import Path

import pytest

from palestra.errors import ContextOverflow, EngineError
from palestra.policy.engines import ScriptedEngine
from palestra.records import FinishReason, SamplingParams

STOP = 3


def _engine(**options: int) -> ScriptedEngine:
    return ScriptedEngine(
        lambda text: [ord(c) for c in text],
        lambda ids: "".join(map(chr, ids)),
        lambda prompt: prompt.upper() + "!",
        stop_id=STOP,
        **options,
    )


async def test_the_reply_to_the_decoded_prompt_is_answered_with_certainty() -> None:
    engine = _engine(version=2)
    answer = await engine.generate([ord("a"), ord("b")], SamplingParams())
    (segment,) = answer.segments
    assert segment.ids == (ord("A"), ord("B"), ord("!"), STOP)
    assert segment.logprobs == (0.0,) * 4
    assert segment.policy_version == 2
    assert answer.finish_reason is FinishReason.STOP


@pytest.mark.parametrize(
    ("max_new_tokens", "max_context", "num_ids", "reason"),
    [
        (3, 100, 3, FinishReason.LENGTH),
        (4, 100, 4, FinishReason.STOP),
        (100, 5, 3, FinishReason.LENGTH),
        (100, 6, 4, FinishReason.STOP),
    ],
)
async def test_budgets_cut_the_answer(
    max_new_tokens: int, max_context: int, num_ids: int, reason: FinishReason
) -> None:
    sampling = SamplingParams(max_new_tokens=max_new_tokens)
    answer = await _engine(max_context=max_context).generate([97, 98], sampling)
    assert (len(answer.ids), answer.finish_reason) == (num_ids, reason)


async def test_a_full_context_overflows() -> None:
    engine = _engine(max_context=2)
    assert engine.max_context == 2
    with pytest.raises(ContextOverflow):
        await engine.generate([97, 98], SamplingParams())


async def test_versions_rise() -> None:
    engine = _engine()
    await engine.health()
    await engine.publish(Path("/weights"), 1)
    assert engine.version == 1
    answer = await engine.generate([97], SamplingParams())
    assert answer.segments[0].policy_version == 1
    with pytest.raises(EngineError, match="does not rise"):
        await engine.publish(Path("/weights"), 1)
