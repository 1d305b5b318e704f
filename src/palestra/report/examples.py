"""Which tasks to show before and after, and their conversations cut into turns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from palestra.learning.evaluations import EvaluatedEpisode
from palestra.records import EpisodeResult, Message, Verdict
from palestra.report.comparison import Comparison, paired
from palestra.report.words import OUTCOMES

MAX_TURNS = 40
MAX_CHARS = 6_000
_COMMAND = re.compile(r"^```[^\n`]*\n(.*?)\n?^```", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One answer of the policy and what came back.

    Attributes:
        said: its words beside the command; may be empty.
        command: that it ran; ``None`` when there was none to be found.
        output: what came back; ``None`` after the last turn.
    """

    said: str
    command: str | None
    output: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TestLine:
    """One hidden test: its name, whether it must flip or hold, and how it ended."""

    __test__ = False  # not a test class, whatever pytest thinks of the name

    name: str
    demand: str
    is_right: bool
    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One episode as the page shows it."""

    when: str
    outcome: str
    ended: str
    is_solved: bool
    turns: tuple[Turn, ...]
    num_hidden_turns: int
    patch: str | None
    tests: tuple[TestLine, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """The same task before and after."""

    heading: str
    instance_id: str
    kind: str
    mode: str
    statement: str
    before: Attempt
    after: Attempt


Pair = tuple[EvaluatedEpisode, EvaluatedEpisode]


def choose_examples(comparisons: Sequence[Comparison]) -> tuple[Example, ...]:
    """A task that was failed before and is solved after, and one of another kind that still fails.

    Greedy attempts are preferred, since they repeat; where there is no such task, what
    there is is shown and called what it is.
    """
    candidates = []
    for comparison in sorted(comparisons, key=lambda c: c.mode != "greedy"):
        pairs = _graded_pairs(comparison)
        if pairs and comparison.after is not None:
            gained = any(_rewards(pair) == (False, True) for pair in pairs)
            candidates.append((not gained, comparison.mode, comparison.after.step, pairs))
    if not candidates:
        return ()
    # The first of equals, so greedy if it will do.
    _, mode, step, pairs = min(candidates, key=lambda candidate: candidate[0])
    return tuple(_example(pair, mode, step) for pair in _choose(pairs))


def turns_of(messages: Sequence[Message]) -> tuple[Turn, ...]:
    """Cut a conversation where the policy speaks; the prompt before it is left out."""
    turns: list[Turn] = []
    for message in messages:
        if message.role == "assistant":
            turns.append(_turn(message))
        elif turns:
            last = turns[-1]
            output = "\n".join(part for part in (last.output, message.content) if part is not None)
            turns[-1] = Turn(said=last.said, command=last.command, output=output)
    return tuple(turns)


def shortened(text: str) -> str:
    """The text without its middle where it is too long for a page, and saying so."""
    if len(text) <= MAX_CHARS:
        return text
    half = MAX_CHARS // 2
    left_out = len(text) - 2 * half
    return f"{text[:half]}\n[… {left_out} characters are not shown …]\n{text[-half:]}"


def _graded_pairs(comparison: Comparison) -> list[Pair]:
    before, after = comparison.before, comparison.after
    if before is None or after is None or not comparison.is_like_with_like:
        return []
    return [
        pair
        for pair in paired(before.evaluation, after.evaluation)
        if all(episode.rollout.reward is not None for episode in pair)
    ]


def _choose(pairs: Sequence[Pair]) -> list[Pair]:
    def rank(pair: Pair) -> tuple[bool, int]:
        # An attempt that changed something shows more than one that did not.
        before, after = (episode.rollout.episode for episode in pair)
        return not before.patch, before.num_turns + after.num_turns

    ranked = sorted(pairs, key=rank)
    solved = [pair for pair in ranked if _rewards(pair) == (False, True)]
    first = (solved or ranked)[0]
    others = [pair for pair in ranked if pair[0].kind != first[0].kind]
    others = others or [pair for pair in ranked if pair is not first]
    failing = [pair for pair in others if not _rewards(pair)[1]]
    return [first, *(failing or others)[:1]]


def _rewards(pair: Pair) -> tuple[bool, bool]:
    before, after = pair
    return before.rollout.reward == 1.0, after.rollout.reward == 1.0


_HEADINGS = {
    (False, True): "Failed before, solved after",
    (False, False): "Failed before, still failed after",
    (True, True): "Solved before and after",
    (True, False): "Solved before, failed after",
}


def _example(pair: Pair, mode: str, step: int) -> Example:
    before, after = pair
    return Example(
        heading=_HEADINGS[_rewards(pair)],
        instance_id=before.rollout.episode.instance_id,
        kind=before.kind,
        mode=mode,
        statement=shortened(before.statement.strip()),
        before=_attempt(before.rollout.episode, "before training"),
        after=_attempt(after.rollout.episode, f"after step {step}"),
    )


def _attempt(episode: EpisodeResult, when: str) -> Attempt:
    turns = turns_of(episode.messages)
    return Attempt(
        when=when,
        outcome=OUTCOMES[episode.outcome],
        ended=episode.exit_status,
        is_solved=episode.reward == 1.0,
        turns=turns[:MAX_TURNS],
        num_hidden_turns=max(0, len(turns) - MAX_TURNS),
        patch=shortened(episode.patch) if episode.patch is not None else None,
        tests=_tests(episode.verdict) if episode.verdict is not None else (),
    )


def _turn(message: Message) -> Turn:
    if message.tool_calls:
        calls = "\n".join(f"{call.name} {call.arguments}" for call in message.tool_calls)
        return Turn(said=shortened(message.content), command=shortened(calls), output=None)
    found = _COMMAND.search(message.content)
    if found is None:
        return Turn(said=shortened(message.content), command=None, output=None)
    said = message.content[: found.start()] + message.content[found.end() :]
    return Turn(said=shortened(said.strip()), command=shortened(found[1]), output=None)


def _tests(verdict: Verdict) -> tuple[TestLine, ...]:
    return tuple(
        TestLine(
            name=name,
            demand=demand,
            is_right=is_right,
            status=verdict.statuses.get(name, "not run").lower(),
        )
        for demand, split in (
            ("must pass now", verdict.fail_to_pass),
            ("must still pass", verdict.pass_to_pass),
        )
        for is_right, names in ((True, split.success), (False, split.failure))
        for name in names
    )
