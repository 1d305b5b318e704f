"""One stored episode, cut into what its page shows; all of it is text that a model wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import ValidationError

from palestra.records import CommandRun, EpisodeResult, Message, Trace, Verdict
from palestra.report.words import OUTCOMES
from palestra.wire import episode_from_wire, trace_from_wire

HEAD_CHARS, TAIL_CHARS = 12_000, 4_000
MAX_LOG_CHARS = 60_000
MAX_TESTS = 2_000
_BLOCK = re.compile(r"^```[^\n`]*\n(.*?)\n?^```", re.DOTALL | re.MULTILINE)
_EXIT_CODE = re.compile(r"\A\s*(?:<returncode>(-?\d+)</returncode>|exit code (-?\d+)\b)")


class UnreadableRecord(Exception):
    """The stored line is no episode that this version knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clipped:
    """A text without its middle where it is too long for a page."""

    head: str
    num_hidden: int
    tail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandView:
    """A command that the model asked for and how it ended, as far as that is known."""

    text: Clipped
    exit_code: int | None
    duration_s: float | None
    timed_out: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnView:
    """One answer of the model and what came back.

    Attributes:
        number: from 1.
        said: its words beside the commands.
        commands: that it asked for.
        outputs: what it was told.
        model_s: how long sampling took, in seconds.
        num_tokens: that were sampled.
        versions: of the weights that sampled them.
    """

    number: int
    said: Clipped
    commands: tuple[CommandView, ...]
    outputs: tuple[Clipped, ...]
    model_s: float | None
    num_tokens: int | None
    versions: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TestView:
    """One hidden test: what it does at the start, what is wanted, and what it does now."""

    __test__ = False  # not a test class, whatever pytest thinks of the name

    name: str
    before: str
    after: str
    is_right: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeView:
    """Everything that the page of an episode shows."""

    rollout_id: str
    reward: float | None
    drop_reason: str | None
    trained: bool | None
    step: int | None
    episode: EpisodeResult
    outcome: str
    why: str
    prompt: tuple[tuple[str, Clipped], ...]
    turns: tuple[TurnView, ...]
    patch: Clipped | None
    tests: tuple[TestView, ...]
    num_hidden_tests: int
    log: Clipped | None
    num_sampled: int
    num_branches: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEpisode:
    """A record as it was read.

    Attributes:
        fields: those around the episode and its trace.
        episode: what the environment knew.
        trace: what was sampled.
        ratios: of each id that was trained on, path after path: the trainer's likelihood over
            the engine's; ``None`` where none was.
    """

    fields: Mapping[str, Any]
    episode: EpisodeResult
    trace: Trace
    ratios: tuple[float, ...] | None


def parse_record(line: bytes) -> StoredEpisode:
    """Read a stored line; bytes that are no UTF-8 come out as replacement characters.

    Raises:
        UnreadableRecord: it is no episode.
    """
    try:
        found = _object(line)
        return StoredEpisode(
            fields={k: v for k, v in found.items() if k not in ("episode", "trace")},
            episode=episode_from_wire(found["episode"]),
            trace=trace_from_wire(found["trace"]),
            ratios=_ratios(found.get("ratios")),
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        what = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise UnreadableRecord(what) from error


def view_of(stored: StoredEpisode) -> EpisodeView:
    """Cut a record for its page."""
    episode, fields = stored.episode, stored.fields
    tests = tuple(_tests(episode.verdict)) if episode.verdict else ()
    first = next((i for i, m in enumerate(episode.messages) if m.role == "assistant"), None)
    trained = fields.get("trained")
    return EpisodeView(
        rollout_id=str(fields.get("rollout_id", "")),
        reward=episode.reward,
        drop_reason=fields.get("drop_reason"),
        trained=trained if isinstance(trained, bool) else None,
        step=fields.get("step"),
        episode=episode,
        outcome=OUTCOMES[episode.outcome],
        why=_why(episode),
        prompt=tuple((m.role, clip(m.content)) for m in episode.messages[:first]),
        turns=tuple(_turns(episode, stored.trace)),
        patch=None if episode.patch is None else clip(episode.patch, head=MAX_LOG_CHARS),
        tests=tests[:MAX_TESTS],
        num_hidden_tests=max(0, len(tests) - MAX_TESTS),
        log=clip(episode.verdict.log, head=MAX_LOG_CHARS) if episode.verdict else None,
        num_sampled=sum(len(turn.sampled_ids) for turn in stored.trace.turns),
        num_branches=len(stored.trace.paths()),
    )


def clip(text: str, *, head: int = HEAD_CHARS, tail: int = TAIL_CHARS) -> Clipped:
    """The text, without its middle where it is longer than both ends together."""
    if len(text) <= head + tail:
        return Clipped(head=text, num_hidden=0, tail="")
    return Clipped(head=text[:head], num_hidden=len(text) - head - tail, tail=text[-tail:])


def _object(line: bytes) -> dict[str, Any]:
    text = line.decode("utf-8", "replace")
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        # Half of a surrogate pair is what Python writes and orjson refuses.
        whole = json.dumps(json.loads(text), ensure_ascii=False).encode("utf-8", "replace")
        found = orjson.loads(whole)
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    return found


def _ratios(found: Any) -> tuple[float, ...] | None:
    return None if found is None else tuple(map(float, found))


# --- turns --------------------------------------------------------------------


def _turns(episode: EpisodeResult, trace: Trace) -> Iterator[TurnView]:
    runs = list(episode.commands or ())
    sampled = trace.turns
    for number, (message, answers) in enumerate(_exchanges(episode.messages)):
        said, asked = _asked(message)
        codes = [_told_exit_code(answer) for answer in answers]
        commands = tuple(
            _command(text, runs, codes[at] if at < len(codes) else None)
            for at, text in enumerate(asked)
        )
        turn = sampled[number] if number < len(sampled) else None
        yield TurnView(
            number=number + 1,
            said=clip(said),
            commands=commands,
            outputs=tuple(clip(answer) for answer in answers),
            model_s=turn.duration_s if turn else None,
            num_tokens=len(turn.sampled_ids) if turn else None,
            versions=tuple(sorted({s.policy_version for s in turn.segments})) if turn else (),
        )


def _exchanges(messages: Sequence[Message]) -> Iterator[tuple[Message, list[str]]]:
    """Each answer of the model with what it was told next; the prompt is left out."""
    current: tuple[Message, list[str]] | None = None
    for message in messages:
        if message.role == "assistant":
            if current is not None:
                yield current
            current = (message, [])
        elif current is not None:
            current[1].append(message.content)
    if current is not None:
        yield current


def _asked(message: Message) -> tuple[str, list[str]]:
    """The words and the commands of an answer."""
    if message.tool_calls:
        return message.content, [_argument(call.arguments) for call in message.tool_calls]
    found = list(_BLOCK.finditer(message.content))
    if len(found) != 1:
        return message.content, []  # no command or several: none was run
    said = message.content[: found[0].start()] + message.content[found[0].end() :]
    return said.strip(), [found[0][1]]


def _argument(arguments: str) -> str:
    try:
        found = orjson.loads(arguments)
    except orjson.JSONDecodeError:
        return arguments
    command = found.get("command") if isinstance(found, dict) else None
    return command if isinstance(command, str) else arguments


def _command(text: str, runs: list[CommandRun], told: int | None) -> CommandView:
    """Join what was asked for with what ran; a command that never ran has no account."""
    if runs and _is_of(runs[0], text):
        run = runs.pop(0)
        return CommandView(
            text=clip(text),
            exit_code=run.exit_code,
            duration_s=run.duration_s,
            timed_out=run.timed_out,
        )
    return CommandView(text=clip(text), exit_code=told, duration_s=None, timed_out=False)


def _is_of(run: CommandRun, text: str) -> bool:
    # The agent may have wrapped it (bash -c '…'), which doubles its quotes.
    plain = text.strip()
    return plain in run.command or plain.replace("'", "'\"'\"'") in run.command


def _told_exit_code(answer: str) -> int | None:
    found = _EXIT_CODE.match(answer)
    return int(found[1] or found[2]) if found else None


# --- the end ------------------------------------------------------------------


def _tests(verdict: Verdict) -> Iterator[TestView]:
    for before, split in (("fails", verdict.fail_to_pass), ("passes", verdict.pass_to_pass)):
        for is_right, names in ((False, split.failure), (True, split.success)):
            for name in names:
                after = verdict.statuses.get(name, "not run").lower()
                yield TestView(name=name, before=before, after=after, is_right=is_right)


def _why(episode: EpisodeResult) -> str:
    """Why it has this outcome, in a sentence."""
    verdict = episode.verdict
    parts = [_ENDINGS.get(episode.exit_status, f"It ended as {episode.exit_status}.")]
    if verdict is None:
        parts.append("No tests were run.")
    elif not verdict.patch_applied:
        parts.append("The patch did not apply.")
    else:
        flips, holds = verdict.fail_to_pass, verdict.pass_to_pass
        parts.append(
            f"{len(flips.success)} of {len(flips.success) + len(flips.failure)} tests that had to "
            f"flip pass, {len(holds.success)} of {len(holds.success) + len(holds.failure)} that "
            "had to hold do."
        )
        if verdict.tampered:
            parts.append(f"It meddled with the tests: {'; '.join(verdict.findings) or 'refused'}.")
        if verdict.refused:
            names = ", ".join(f"{part.path} ({part.reason})" for part in verdict.refused)
            parts.append(f"Left out of the patch: {names}.")
    if episode.error:
        parts.append(clip(episode.error, head=600, tail=200).head)
    return " ".join(parts)


_ENDINGS = {
    "Submitted": "The agent handed in.",
    "RolloutTruncated": "The context or the token budget was full.",
    "LimitsExceeded": "The agent ran out of turns, time or well-formed answers.",
    "CollapseContinued": "The agent ran the same command over and over.",
}
