"""The fidelity report finds what is wrong with an engine, and nothing where nothing is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from palestra.config import Recipe
from palestra.errors import ConfigError
from palestra.policy.engines.local import LocalEngine
from palestra.policy.tiny import make_tiny_model
from palestra.recipe_files import parse_recipe
from palestra.records import FinishReason, Generation, SamplingParams, Segment, Trace, Turn
from palestra.run.engines import compared
from palestra.run.fidelity import Played, describe, measure, told_hits
from palestra.run.policy import local_engine

NUM_SESSIONS = 4


class Leaning:
    """A public fake: the local engine, whose logprobs are off by a constant."""

    def __init__(self, engine: LocalEngine, lean: float) -> None:
        self._engine = engine
        self._lean = lean
        self.version = 0
        self.max_context = engine.max_context

    async def generate(self, prompt_ids: Sequence[int], sampling: SamplingParams) -> Generation:
        answer = await self._engine.generate(prompt_ids, sampling)
        segments = tuple(
            replace(one, logprobs=tuple(lp - self._lean for lp in one.logprobs))
            for one in answer.segments
        )
        return replace(answer, segments=segments)

    async def publish(self, weights: Path, version: int) -> None:
        await self._engine.publish(weights, version)

    async def health(self) -> None:
        await self._engine.health()


@pytest.fixture
def recipe() -> Recipe:
    keys = ("model.device=cpu", "sampling.max_new_tokens=24", "engine.num_threads=1")
    return parse_recipe({}, [*keys, "model.max_context=2048"], origin="test")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    make_tiny_model(tmp_path / "tiny", texts=["def add(a, b):\n    return a + b\n"], seed=0)
    return tmp_path / "tiny"


async def test_an_engine_that_is_the_trainer_has_no_gap(recipe: Recipe, model: Path) -> None:
    done: list[None] = []
    async with local_engine(model, recipe) as engine:
        found = await measure(
            recipe,
            model,
            engine,
            num_sessions=NUM_SESSIONS,
            on_session=lambda: done.append(None),
        )
    assert len(done) == found.num_sessions == NUM_SESSIONS
    assert found.num_tokens > NUM_SESSIONS
    assert found.mean_gap < 1e-4
    assert found.share_outside == 0
    assert found.cache_hit_share is not None
    assert found.cache_hit_share > 0.9
    assert "4, " in describe(found)
    assert found.trainer.startswith("float32, ")
    assert found.trainer.endswith(" attention, cpu")
    assert found.trainer in describe(found)


async def test_an_engine_whose_logprobs_lean_is_found_out(recipe: Recipe, model: Path) -> None:
    async with local_engine(model, recipe) as engine:
        found = await measure(
            recipe,
            model,
            Leaning(engine, 1.0),
            num_sessions=NUM_SESSIONS,
            on_session=lambda: None,
        )
    assert found.mean_gap == pytest.approx(1.0, abs=1e-3)
    assert found.share_outside == 1.0, "e is beyond a ratio of 2"
    assert found.cache_hit_share is None, "an engine that does not tell has no share, not 0"


async def test_a_conversation_that_grows_too_long_ends_and_counts(model: Path) -> None:
    keys = ("model.device=cpu", "sampling.max_new_tokens=8", "engine.num_threads=1")
    short = parse_recipe({}, [*keys, "model.max_context=1024"], origin="test")
    async with local_engine(model, short) as engine:
        found = await measure(
            short, model, engine, num_sessions=NUM_SESSIONS, on_session=lambda: None
        )
    assert found.num_sessions == NUM_SESSIONS
    assert found.num_tokens > 0


async def test_an_engine_of_no_known_name_is_refused(recipe: Recipe) -> None:
    with pytest.raises(ConfigError, match="neither local nor"):
        await compared(recipe, "tensorrt", num_sessions=1, on_session=lambda: None)


def played(*cached: int | None) -> Played:
    """A session that adds three ids and samples two at each turn."""
    turns = tuple(
        Turn(
            index=number,
            parent=number - 1 if number else None,
            context_ids=(1, 2, 3),
            segments=(Segment(ids=(4, 5), logprobs=(-1.0, -1.0), policy_version=0),),
            finish_reason=FinishReason.STOP,
            temperature=1.0,
            duration_s=0.0,
            cached_tokens=told,
        )
        for number, told in enumerate(cached)
    )
    return Played(trace=Trace(session_id="s", turns=turns), messages=())


def test_cache_hits_are_of_the_ids_that_earlier_turns_had() -> None:
    # The second turn could have had 5 ids, the third 10; the first none of its own session.
    assert told_hits([played(3, 4, 10)]) == pytest.approx(14 / 15)
    assert told_hits([played(0, 8)]) == 1.0, "more than the turn before had is not its hit"
    assert told_hits([played(0, 0), played(0, 5)]) == 0.5


def test_cache_hits_that_nobody_tells_are_absent() -> None:
    assert told_hits([played(0, None)]) is None
    assert told_hits([played(0)]) is None, "nothing could have been a hit"
