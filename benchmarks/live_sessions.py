"""Sessions through the gateway on a live server: is the ledger what the server said?"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from live_parts import Bench, Plan, Progress, Talked, Wire, failures, shape, talk_all

from palestra.records import Trace, Turn
from palestra.run.fidelity import Played, is_retokenised


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixHits:
    """Prompt ids that a prefix cache could have held, and those that it did.

    Attributes:
        prompt: ids of all prompts.
        cached: of those, what the server did not compute anew.
        own: ids that stood in an earlier turn of the same session, sampled ones included.
        own_hit: of ``own``, those that were cached.
        shared: ids with which all sessions begin, in every session but one.
        shared_hit: of those, the ones that were cached.
    """

    prompt: int
    cached: int
    own: int
    own_hit: int
    shared: int
    shared_hit: int


def prefix_hits(traces: Sequence[Trace]) -> PrefixHits | None:
    """Count them; ``None`` where the server does not tell of every turn."""
    turns = [(trace, turn) for trace in traces for turn in trace.turns]
    if not turns or any(turn.cached_tokens is None for _, turn in turns):
        return None
    prompt = cached = own = own_hit = shared_hit = 0
    shared = common_prefix([trace.prompt_ids(turn) for trace, turn in turns if _is_root(turn)])
    for trace, turn in turns:
        length, found = len(trace.prompt_ids(turn)), turn.cached_tokens or 0
        prompt += length
        cached += found
        if _is_root(turn):
            shared_hit += min(found, shared)
            continue
        own += length - len(turn.context_ids)
        own_hit += min(found, length - len(turn.context_ids))
    return PrefixHits(
        prompt=prompt,
        cached=cached,
        own=own,
        own_hit=own_hit,
        shared=shared * (sum(_is_root(turn) for _, turn in turns) - 1),
        shared_hit=shared_hit,
    )


def common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """How many ids all prompts begin with together."""
    columns = zip(*prompts, strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """A turn of the ledger that is not what it should be."""

    session_id: str
    turn: int
    what: str


def mismatches(traces: Iterable[Trace], wire: Wire) -> Iterator[Mismatch]:
    """Turns that the server did not say so, or that do not go on from the turn before."""
    for trace in traces:
        before: tuple[int, ...] = ()
        for turn in trace.turns:
            prompt = tuple(trace.prompt_ids(turn))
            if not wire.said(prompt, turn.segments):
                yield Mismatch(session_id=trace.session_id, turn=turn.index, what="not as sampled")
            if prompt[: len(before)] != before:
                yield Mismatch(session_id=trace.session_id, turn=turn.index, what="not bridged")
            before = (*prompt, *turn.sampled_ids)


def differences(talked: Sequence[Talked], wire: Wire) -> dict[str, Any]:
    """How many turns were compared, and how many were not as they should be."""
    traces = [one.trace for one in talked]
    found = list(mismatches(traces, wire))
    return {
        "turns": sum(len(trace.turns) for trace in traces),
        "sampled_ids": sum(len(turn.sampled_ids) for t in traces for turn in t.turns),
        "not_as_sampled": sum(one.what == "not as sampled" for one in found),
        "not_bridged": sum(one.what == "not bridged" for one in found),
        "first_mismatch": repr(found[0]) if found else None,
    }


async def sessions(bench: Bench) -> AsyncGenerator[dict[str, Any], None]:
    """Many sessions at once; everything that is in the ledger is looked up on the wire."""
    options = bench.options
    plan = Plan(sessions=options.sessions, turns=options.turns).shortened(options.text_share)
    wire, progress = Wire(), Progress()
    async with bench.fleet(wire) as fleet, bench.gateway(fleet) as url:
        outcome = await talk_all(url, plan, progress)
    talked, took_s = outcome.talked, outcome.took_s
    traces = [one.trace for one in talked]
    compared = differences(talked, wire)
    ends = Counter(turn.finish_reason.value for trace in traces for turn in trace.turns)
    lengths = [len(t.turns) and len(t.prompt_ids(t.turns[-1])) for t in traces]
    yield {
        "sessions": len(talked),
        **failures(outcome.errors),
        **compared,
        "seconds": round(took_s, 2),
        "turns_per_s": round(compared["turns"] / took_s, 1),
        "sampled_ids_per_s": round(compared["sampled_ids"] / took_s),
        "wait_ms": shape([1e3 * wait for one in talked for wait in one.waits_s], 1),
        "last_prompt_ids": shape(lengths, 0),
        "finish_reasons": dict(ends),
    }
    hits = prefix_hits(traces)
    yield {
        "prefix_hits": hits,
        "own_hit_share": hits and hits.own and round(hits.own_hit / hits.own, 4),
        "hit_share_with_shared": hits
        and hits.own
        and round((hits.own_hit + hits.shared_hit) / (hits.own + hits.shared), 4),
    }
    played = [Played(trace=one.trace, messages=one.messages) for one in talked]
    differing = sum(is_retokenised(one, bench.renderer) for one in played)
    yield {"retokenised_share": differing / len(played) if played else None}


def _is_root(turn: Turn) -> bool:
    return turn.parent is None
