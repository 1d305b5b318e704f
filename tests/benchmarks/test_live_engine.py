"""What the benchmarks on a live server claim: ids as on the wire, prefixes, and whose weights."""

from __future__ import annotations

import orjson
import pytest
from live_parts import Wire
from live_sessions import common_prefix, mismatches, prefix_hits
from live_weights import Scored, of_versions, segments_of, verdict

from palestra.policy.engines.remote import Answer
from palestra.records import FinishReason, Segment, Trace, Turn


def segment(*ids: int, version: int = 0) -> Segment:
    return Segment(ids=ids, logprobs=tuple(-i / 8 for i in ids), policy_version=version)


def turn(
    index: int, context: tuple[int, ...], *segments: Segment, cached: int | None = None
) -> Turn:
    return Turn(
        index=index,
        parent=index - 1 if index else None,
        context_ids=context,
        segments=segments,
        finish_reason=FinishReason.STOP,
        temperature=1.0,
        duration_s=0.0,
        cached_tokens=cached,
    )


def heard(wire: Wire, prompt: tuple[int, ...], sampled: Segment) -> None:
    """An answer of SGLang, as it comes over the wire."""
    pairs = zip(sampled.logprobs, sampled.ids, strict=True)
    meta = {
        "output_token_logprobs": [[logprob, token, None] for logprob, token in pairs],
        "weight_version": "0-abc",
        "cached_tokens": 1,
    }
    answer = {"output_ids": list(sampled.ids), "meta_info": meta}
    sent = orjson.dumps({"input_ids": prompt})
    wire.hear(Answer(path="/generate", sent=sent, status=200, content=orjson.dumps(answer)))


def test_a_turn_is_what_the_server_said_only_id_for_id_and_logprob_for_logprob() -> None:
    wire = Wire()
    heard(wire, (1, 2), segment(3, 4))
    heard(wire, (1, 2, 3, 4), segment(5))
    assert wire.said((1, 2), (segment(3, 4), segment(5, version=1)))
    assert not wire.said((1, 2), (segment(3, 6),)), "another id"
    assert not wire.said((1, 2, 0), (segment(3, 4),)), "another prompt"
    assert not wire.said((1, 2), (segment(5),)), "the end of an answer alone"
    leaning = Segment(ids=(3, 4), logprobs=(-3 / 8, -0.51), policy_version=0)
    assert not wire.said((1, 2), (leaning,)), "another logprob"


def test_a_turn_that_starts_anew_is_not_bridged() -> None:
    wire = Wire()
    heard(wire, (1,), segment(2))
    heard(wire, (1, 2, 3), segment(4))
    heard(wire, (9,), segment(8))
    good = Trace(session_id="good", turns=(turn(0, (1,), segment(2)), turn(1, (3,), segment(4))))
    assert list(mismatches([good], wire)) == []
    anew = Turn(
        index=1,
        parent=None,
        context_ids=(9,),
        segments=(segment(8),),
        finish_reason=FinishReason.STOP,
        temperature=1.0,
        duration_s=0.0,
    )
    broken = Trace(session_id="broken", turns=(turn(0, (1,), segment(2)), anew))
    assert [(one.turn, one.what) for one in mismatches([broken], wire)] == [(1, "not bridged")]


def test_the_ids_that_a_prefix_cache_could_have_held() -> None:
    first = Trace(
        session_id="a",
        turns=(
            turn(0, (1, 2, 3), segment(4, 5), cached=0),
            turn(1, (6,), segment(7), cached=4),  # of 1, 2, 3, 4, 5; the last was never fed back
        ),
    )
    second = Trace(session_id="b", turns=(turn(0, (1, 2, 9), segment(4), cached=3),))
    hits = prefix_hits([first, second])
    assert hits is not None
    assert (hits.prompt, hits.cached) == (3 + 6 + 3, 7)
    assert (hits.own, hits.own_hit) == (5, 4), "context and samples of the turn before"
    assert (hits.shared, hits.shared_hit) == (2, 2), "no more than all sessions begin with"


def test_a_server_that_does_not_tell_has_no_hits() -> None:
    silent = Trace(session_id="a", turns=(turn(0, (1,), segment(2), cached=None),))
    assert prefix_hits([silent]) is None
    assert prefix_hits([]) is None


@pytest.mark.parametrize(
    ("prompts", "length"),
    [([(1, 2, 3), (1, 2, 4)], 2), ([(1, 2), (1, 2, 3)], 2), ([(1,), (2,)], 0), ([(1, 2)], 2)],
)
def test_common_prefix(prompts: list[tuple[int, ...]], length: int) -> None:
    assert common_prefix(prompts) == length


def test_segments_are_split_by_version_and_by_turn() -> None:
    trace = Trace(
        session_id="a",
        turns=(
            turn(0, (1, 2), segment(3, 4), segment(5, version=1)),
            turn(1, (6,), segment(7, 8, version=1)),
        ),
    )
    (path,) = trace.paths()
    assert list(segments_of(path)) == [(0, [0, 1]), (1, [2]), (1, [3, 4])]
    told = of_versions([trace])
    assert told["turns_of_several_segments"] == 1
    assert told["ids_by_version"] == {0: 2, 1: 3}
    assert told["sessions_whose_version_falls"] == 0


def test_a_version_that_falls_is_seen() -> None:
    turns = (turn(0, (1,), segment(2, version=1)), turn(1, (3,), segment(4, version=0)))
    falling = Trace(session_id="a", turns=turns)
    assert of_versions([falling])["sessions_whose_version_falls"] == 1


def test_a_segment_of_other_weights_than_it_says_is_found() -> None:
    right = Scored(version=0, num_ids=40, gaps={0: 0.01, 1: 0.5})
    wrong = Scored(version=1, num_ids=40, gaps={0: 0.01, 1: 0.5})
    short = Scored(version=1, num_ids=2, gaps={0: 0.01, 1: 0.5})
    found = verdict([right, wrong, short])
    assert found["wrong_version_segments"] == 1
    assert found["scored_segments"] == 2, "a few ids tell nothing"
    assert verdict([])["mean_gap_own_weights"] is None
