"""How far an engine's logprobs are from those of the model that would be trained.

Sessions of several turns go through the gateway, as an agent's do. Then the trainer's own
forward pass scores what was sampled. Where the two differ, importance sampling has something to
correct; where the sampled ids differ from what the text of the conversation tokenises to,
whoever trains on text trains on ids that nobody sampled.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import httpx

from palestra.config import Recipe
from palestra.errors import ConfigError, EngineError, GatewayError
from palestra.learning.rollouts.gateway_client import GatewayClient
from palestra.policy.engines.local import LocalEngine
from palestra.policy.engines.protocol import Engine
from palestra.policy.rendering import load_renderer
from palestra.policy.rendering.protocol import Renderer
from palestra.records import TokenPath, Trace
from palestra.run.policy import load_tokenizer, serving
from palestra.tasks.source import load_tasks

BOUNDS = (0.5, 2.0)
"""Between which the importance ratio of a token is taken to be harmless."""
_TIMEOUT_S = 1800.0
_FILES_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """What a session's user says, turn after turn, whatever the model answers."""

    messages: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """A session that was sampled.

    Attributes:
        trace: from the ledger.
        messages: the conversation as an agent has it, the model's answers as text.
    """

    trace: Trace
    messages: tuple[Mapping[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """What was found.

    Attributes:
        num_sessions: sampled.
        num_tokens: sampled in all of them.
        mean_gap: mean of |logprob of the trainer - logprob of the engine|.
        max_gap: the largest.
        share_outside: of tokens whose ratio leaves :data:`BOUNDS`.
        share_retokenised: of sessions whose text tokenises to other ids than were sampled.
        cache_hit_share: of the ids that a prefix cache could have held, those that it did;
            ``None`` where the engine does not tell.
        trainer: number format, attention and device of the trainer's forward pass.
    """

    num_sessions: int
    num_tokens: int
    mean_gap: float
    max_gap: float
    share_outside: float
    share_retokenised: float
    cache_hit_share: float | None
    trainer: str


async def play(
    url: str, scripts: Sequence[Script], recipe: Recipe, *, on_session: Callable[[], None]
) -> tuple[Played, ...]:
    """Play all sessions at once through the gateway at ``url``.

    Raises:
        GatewayError: the gateway or the engine behind it failed.
    """
    async with (
        GatewayClient(url) as ledger,
        httpx.AsyncClient(timeout=_TIMEOUT_S, trust_env=False, limits=httpx.Limits()) as http,
    ):

        async def played(number: int, script: Script) -> Played:
            session = await ledger.open(recipe.sampling, seed=recipe.seed + number)
            messages: list[dict[str, str]] = []
            for text in script.messages:
                asked = [*messages, {"role": "user", "content": text}]
                answer = await _answer(http, session.base_url, asked)
                if answer is None:
                    break
                messages = [*asked, {"role": "assistant", "content": answer}]
            trace = await ledger.take(session.session_id)
            on_session()
            return Played(trace=trace, messages=tuple(messages))

        return tuple(await asyncio.gather(*(played(n, s) for n, s in enumerate(scripts))))


async def _answer(
    http: httpx.AsyncClient, base_url: str, messages: list[dict[str, str]]
) -> str | None:
    """What the model says; ``None`` where the conversation is too long for it."""
    body = {"model": "policy", "messages": messages}
    try:
        response = await http.post(f"{base_url}/chat/completions", json=body)
        if response.status_code == 400 and "context_length_exceeded" in response.text:
            return None
        response.raise_for_status()
    except httpx.HTTPError as error:
        said = error.response.text[:300] if isinstance(error, httpx.HTTPStatusError) else ""
        raise GatewayError(f"a session got no answer: {error!r} {said}") from error
    content: str = response.json()["choices"][0]["message"]["content"] or ""
    return content


def compare(
    sessions: Sequence[Played], model_folder: Path, recipe: Recipe, renderer: Renderer
) -> Fidelity:
    """Score what was sampled with the trainer's forward pass.

    Raises:
        ConfigError: the model cannot be loaded, or has no room on its device.
        EngineError: nothing was sampled.
    """
    paths = [path for s in sessions for path in s.trace.paths()]
    gaps, trainer = _gaps(paths, model_folder, recipe)
    if not gaps:
        raise EngineError("the engine sampled nothing that could be compared")
    low, high = (math.log(bound) for bound in BOUNDS)
    differing = sum(is_retokenised(session, renderer) for session in sessions)
    return Fidelity(
        num_sessions=len(sessions),
        num_tokens=len(gaps),
        mean_gap=fmean(map(abs, gaps)),
        max_gap=max(map(abs, gaps)),
        share_outside=sum(not low <= gap <= high for gap in gaps) / len(gaps),
        share_retokenised=differing / len(sessions),
        cache_hit_share=told_hits(sessions),
        trainer=trainer,
    )


def _gaps(
    paths: Sequence[TokenPath], model_folder: Path, recipe: Recipe
) -> tuple[list[float], str]:
    """Logprob of the trainer less that of the engine, of each sampled id; and how it was had."""
    import torch

    from palestra.learning.training.batching import TrainingRow, microbatches
    from palestra.learning.training.model import Policy

    policy = Policy.load(model_folder, recipe.model)
    rows = [
        (number, TrainingRow(rollout_id=str(number), path=path, advantage=0.0))
        for number, path in enumerate(paths)
        if any(path.trainable)
    ]
    gaps: list[float] = []
    batches = microbatches(rows, max_tokens=recipe.training.microbatch_tokens, device=policy.device)
    try:
        with torch.no_grad():
            for batch in batches:
                scored = policy.score(batch).logprobs_N
                gaps += (scored - batch.rollout_logprobs_N).tolist()
    except torch.OutOfMemoryError as error:  # the engine may have most of it
        raise ConfigError(
            f"{policy.device} has no room for the trainer's forward pass",
            hint="lower training.microbatch_tokens, set model.device to cpu, or give the engine "
            "less of the memory",
        ) from error
    attention = getattr(policy.model.config, "_attn_implementation", None) or "unknown"
    return gaps, f"{recipe.model.dtype}, {attention} attention, {policy.device}"


def is_retokenised(session: Played, renderer: Renderer) -> bool:
    """Whether the text of the conversation gives other ids than the session had."""
    messages: list[dict[str, Any]] = [dict(message) for message in session.messages]
    rendered = renderer.render_ids(messages)
    # A template closes the last answer; what was cut short was never closed.
    paths = session.trace.paths()
    return any(tuple(rendered[: len(path.ids)]) != path.ids for path in paths)


def kata_scripts(num_sessions: int) -> tuple[Script, ...]:
    """What a user would say of katas: the issue, then one file after the other."""
    tasks = load_tasks(f"katas:train?seed=7&n={num_sessions}")
    return tuple(
        Script(
            messages=(
                f"{task.problem_statement}\n\nWhat would you look at first?",
                *(f"<output>\n{file.text}</output>" for file in task.files[:_FILES_SHOWN]),
                "<returncode>1</returncode>\nIt still fails. What do you change?",
            )
        )
        for task in tasks
    )


async def measure(
    recipe: Recipe,
    model_folder: Path,
    engine: Engine,
    *,
    num_sessions: int,
    on_session: Callable[[], None],
) -> Fidelity:
    """Sample sessions from ``engine``, which serves the model of that folder, and compare.

    Raises:
        ConfigError: the model has no renderer that fits, or cannot be loaded.
        EngineError: the engine failed.
        GatewayError: a session got no answer.
    """
    tokenizer = load_tokenizer(model_folder)
    renderer = load_renderer(recipe.model.renderer, tokenizer)
    await engine.health()
    before = engine.num_prefilled_ids if isinstance(engine, LocalEngine) else None
    async with serving(engine, tokenizer, recipe, name="policy") as url:
        sessions = await play(url, kata_scripts(num_sessions), recipe, on_session=on_session)
    found = await asyncio.to_thread(compare, sessions, model_folder, recipe, renderer)
    if before is None or not isinstance(engine, LocalEngine):
        return found
    return replace(found, cache_hit_share=_hits(sessions, engine.num_prefilled_ids - before))


def told_hits(sessions: Sequence[Played]) -> float | None:
    """Share of the ids that were in some earlier turn's sequence and that the engine had cached."""
    hits = possible = 0
    for session in sessions:
        for turn in session.trace.turns:
            if turn.cached_tokens is None:
                return None
            if turn.parent is not None:
                inherited = len(session.trace.prompt_ids(turn)) - len(turn.context_ids)
                possible += inherited
                hits += min(turn.cached_tokens, inherited)  # others' beginnings may be cached too
    return hits / possible if possible else None


def _hits(sessions: Sequence[Played], num_prefilled: int) -> float | None:
    """Share of the ids that were in some earlier turn's sequence and were not computed again."""
    prompts = possible = 0
    for session in sessions:
        for turn in session.trace.turns:
            length = len(session.trace.prompt_ids(turn))
            prompts += length
            if turn.parent is not None:
                # The id that ended a turn was never fed back to the model.
                possible += length - len(turn.context_ids) - 1
    return min(1.0, (prompts - num_prefilled) / possible) if possible else None


def describe(found: Fidelity) -> str:
    """The report as lines of text."""
    cached = "not told" if found.cache_hit_share is None else f"{found.cache_hit_share:.1%}"
    lines = [
        ("sessions", f"{found.num_sessions}, {found.num_tokens} sampled tokens"),
        ("mean |Δ logprob|", f"{found.mean_gap:.5f}"),
        ("largest |Δ logprob|", f"{found.max_gap:.4f}"),
        (f"ratio outside {BOUNDS[0]:g} to {BOUNDS[1]:g}", f"{found.share_outside:.3%} of tokens"),
        ("other ids when re-tokenised", f"{found.share_retokenised:.1%} of sessions"),
        ("prefix cache hits", f"{cached} of what could be"),
        ("trainer's forward pass", found.trainer),
    ]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)
