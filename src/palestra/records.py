"""The frozen records that flow through the system, in the order of the flow.

Task → EpisodeResult (+ Trace) → Rollout → Group. Dicts stop at the wire
(:mod:`palestra.wire`); inside, everything is one of these. An absent value is
``None``, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

# --- tasks --------------------------------------------------------------------

HOST_IMAGE = "palestra/host"
"""Image name of tasks that need no image: the host's own userland, read-only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFile:
    """One text file of a repository that a row carries in itself (katas)."""

    path: str
    text: str
    executable: bool = False

    def __post_init__(self) -> None:
        parts = self.path.split("/")
        if not self.path or self.path.startswith("/") or ".." in parts or ".git" in parts:
            raise ValueError(f"not a path inside a repository: {self.path!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One problem: what to fix, where, and how the fix is tested.

    ``eval_script`` is a bash script for a pristine sandbox with the candidate
    patch applied; it puts the hidden tests in place and runs them between the
    markers ``>>>>> Start Test Output`` and ``>>>>> End Test Output``.
    ``log_parser`` names how that output is read.

    ``setup_patch`` is a git diff that turns the repository of the image into the task's: with
    it applied, the tree is one commit without parents, and ``base_commit`` is its id.
    """

    instance_id: str
    repo: str
    base_commit: str
    problem_statement: str
    image: str
    fail_to_pass: tuple[str, ...]
    pass_to_pass: tuple[str, ...]
    gold_patch: str
    test_patch: str
    eval_script: str
    log_parser: str
    workdir: str = "/testbed"
    subset: str = "gym"
    split: str = "train"
    files: tuple[TaskFile, ...] = ()
    setup_patch: str = ""
    row: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """The row as it came, field for field; only the wire and converters read it."""

    def __post_init__(self) -> None:
        if not self.instance_id:
            raise ValueError("instance_id is empty")
        if not self.fail_to_pass:
            raise ValueError(f"{self.instance_id}: no FAIL_TO_PASS test")
        if not self.workdir.startswith("/"):
            raise ValueError(f"{self.instance_id}: workdir {self.workdir!r} is not absolute")
        object.__setattr__(self, "row", MappingProxyType(dict(self.row)))


# --- conversations ------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A function call the model asked for; ``arguments`` is the JSON text it wrote."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of a conversation (system, user, assistant or tool)."""

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


# --- episodes -----------------------------------------------------------------


class Outcome(StrEnum):
    """Why an episode ended (section 5 of the design)."""

    SOLVED = "solved"
    UNSOLVED = "unsolved"
    TRUNCATED = "truncated"
    MALFORMED = "malformed"
    TAMPERED = "tampered"
    INFRA_ERROR = "infra_error"
    FLAKY = "flaky"


class ExitStatus(StrEnum):
    """How the agent stopped, in the words that Miles' hook reads.

    Miles takes ``Submitted`` as completed, the next three as truncated and
    *anything else* as aborted; an infra error carries its class name instead.
    """

    SUBMITTED = "Submitted"
    ROLLOUT_TRUNCATED = "RolloutTruncated"
    LIMITS_EXCEEDED = "LimitsExceeded"
    COLLAPSE_CONTINUED = "CollapseContinued"


@dataclass(frozen=True, slots=True, kw_only=True)
class TestSplit:
    """The tests of one list, by whether they ended as the task wants."""

    __test__ = False  # not a test class, whatever pytest thinks of the name

    success: tuple[str, ...]
    failure: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedPart:
    """A file of a patch that was left out of the grading, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the hidden tests said about one patch."""

    resolved: bool
    patch_applied: bool
    fail_to_pass: TestSplit
    pass_to_pass: TestSplit
    statuses: Mapping[str, str]  # test → PASSED, FAILED, ERROR, SKIPPED or XFAIL
    log: str = field(repr=False)
    duration_s: float
    refused: tuple[RefusedPart, ...] = ()  # what the patch policy left out
    tampered: bool = False  # broke a rule that costs the episode; never with ``resolved``
    findings: tuple[str, ...] = ()  # why it is tampered, beside ``refused``
    signed: bool = False  # whether the statuses are what the test run itself signed


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds by stage; a stage that was not reached is ``None``."""

    queue_s: float | None = None
    image_s: float | None = None
    start_s: float | None = None
    agent_s: float | None = None
    model_s: float | None = None
    env_s: float | None = None
    eval_s: float | None = None
    total_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandRun:
    """One command that the agent ran in its sandbox, enough to see whether it repeats.

    What the policy was shown of its output is in the messages.

    Attributes:
        command: as the sandbox was given it.
        began_s: seconds after the agent began.
        duration_s: how long it took, in seconds.
        exit_code: ``None`` when it was cut off; -1 when it timed out.
        timed_out: whether it was killed for taking too long.
        output: the first 4096 characters of what it printed; ``None`` when it was cut off.
        output_digest: of all that it printed, as the sandbox returned it (BLAKE2b, 16 bytes,
            hexadecimal); ``None`` when it was cut off.
    """

    command: str
    began_s: float
    duration_s: float
    exit_code: int | None
    timed_out: bool = False
    output: str | None = None
    output_digest: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeResult:
    """What the environment knows about one attempt."""

    episode_id: str
    instance_id: str
    outcome: Outcome
    exit_status: str
    messages: tuple[Message, ...]
    patch: str | None
    """Our diff of the working tree against base; ``None`` when it was never read."""
    submission: str | None
    """What the agent handed in as text; kept beside ``patch``, never graded."""
    verdict: Verdict | None
    error: str | None
    num_turns: int
    num_tool_calls: int
    timings: Timings
    commands: tuple[CommandRun, ...] | None = None
    """In order; ``None`` when nobody kept account."""

    @property
    def reward(self) -> float | None:
        """1.0 or 0.0; ``None`` where no verdict on the policy exists."""
        return reward_of(self.outcome, self.verdict)


def reward_of(outcome: Outcome, verdict: Verdict | None) -> float | None:
    """Map an outcome to its reward: ``None`` for trouble that is not the policy's."""
    if outcome in (Outcome.INFRA_ERROR, Outcome.FLAKY):
        return None
    if outcome is Outcome.TRUNCATED:
        return 1.0 if verdict is not None and verdict.resolved else 0.0
    return 1.0 if outcome is Outcome.SOLVED else 0.0


# --- tokens -------------------------------------------------------------------


class FinishReason(StrEnum):
    """Why sampling of a turn ended."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one turn is sampled.

    Logprobs are reported at ``temperature``; temperature 0 is greedy and its
    logprobs are those of temperature 1. Engines know the first five; which of the
    others one knows, it says itself (``sampling_options``).
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 1024
    stop_token_ids: tuple[int, ...] = ()
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()

    @property
    def distortions(self) -> tuple[str, ...]:
        """The options under which ids are not drawn from what the logprobs describe."""
        wanted = {
            "top_p": self.top_p < 1,
            "top_k": self.top_k is not None,
            "min_p": self.min_p is not None,
            "frequency_penalty": self.frequency_penalty is not None,
            "presence_penalty": self.presence_penalty is not None,
            "repetition_penalty": self.repetition_penalty is not None,
            "logit_bias": bool(self.logit_bias),
        }
        return tuple(name for name, asked in wanted.items() if asked)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Ids sampled in one go under one set of weights."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]  # one per id, natural log, at the sampling temperature
    policy_version: int

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.logprobs):
            raise ValueError(f"{len(self.ids)} ids but {len(self.logprobs)} logprobs")
        if any(not math.isfinite(lp) or lp > 1e-6 for lp in self.logprobs):
            raise ValueError("a logprob is not a finite number ≤ 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What an engine answers: the sampled segments and why it stopped.

    ``cached_tokens`` counts prompt ids that the engine did not compute anew.
    """

    segments: tuple[Segment, ...]
    finish_reason: FinishReason
    cached_tokens: int | None = None

    @property
    def ids(self) -> tuple[int, ...]:
        """All sampled ids in order."""
        return tuple(i for segment in self.segments for i in segment.ids)

    @property
    def logprobs(self) -> tuple[float, ...]:
        """All logprobs, one per sampled id."""
        return tuple(lp for segment in self.segments for lp in segment.logprobs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One model call: context appended to the parent's path, then what was sampled.

    The prompt of a turn is its parent's whole path (context and samples)
    followed by ``context_ids``; storing only the suffix keeps a session linear
    in its length. A turn whose history was rewritten has no parent.

    ``began_s`` are seconds after the session was opened; ``distortions`` name the
    sampling options (:attr:`SamplingParams.distortions`) that make the turn unfit
    for losses which read its logprobs.
    """

    index: int
    parent: int | None
    context_ids: tuple[int, ...]
    segments: tuple[Segment, ...]
    finish_reason: FinishReason
    temperature: float
    duration_s: float
    began_s: float | None = None
    cached_tokens: int | None = None
    distortions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.parent is not None and not 0 <= self.parent < self.index:
            raise ValueError(f"turn {self.index} cannot follow turn {self.parent}")

    @property
    def sampled_ids(self) -> tuple[int, ...]:
        """The ids the model sampled in this turn."""
        return tuple(i for segment in self.segments for i in segment.ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPath:
    """A root-to-leaf path of a trace, one entry per id; the unit of training."""

    ids: tuple[int, ...]
    trainable: tuple[bool, ...]  # sampled, on no earlier path, and no abandoned answer
    logprobs: tuple[float, ...]  # 0.0 where not sampled
    versions: tuple[int, ...]  # -1 where not sampled
    temperatures: tuple[float, ...]  # that the id was sampled at; 1.0 where not sampled


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """The gateway's record of one session: a tree of turns, parents first."""

    session_id: str
    turns: tuple[Turn, ...]

    def paths(self, *, untrained: Collection[int] = ()) -> tuple[TokenPath, ...]:
        """One path per leaf; a prefix that several share is trainable on the first only.

        What the turns with the indices ``untrained`` sampled is trainable on none.

        An answer that was asked for again, and not gone on from, is not trainable where
        another answer to the same prompt was gone on from or came later: the episode's
        outcome says nothing about it.
        """
        parents = {turn.parent for turn in self.turns}
        trained = self._abandoned(parents).union(untrained)
        paths = []
        for leaf in self.turns:
            if leaf.index not in parents:
                chain = self._chain(leaf)
                paths.append(_flatten(chain, trained))
                trained.update(turn.index for turn in chain)
        return tuple(paths)

    def _abandoned(self, parents: set[int | None]) -> set[int]:
        kept: dict[tuple[int | None, tuple[int, ...]], Turn] = {}
        abandoned: set[int] = set()
        for turn in self.turns:
            request = (turn.parent, turn.context_ids)
            other = kept.get(request)
            if other is None or other.index not in parents:
                if other is not None:
                    abandoned.add(other.index)
                kept[request] = turn
            elif turn.index not in parents:
                abandoned.add(turn.index)
        return abandoned

    def prompt_ids(self, turn: Turn) -> tuple[int, ...]:
        """The whole prompt that ``turn`` was sampled from."""
        *before, last = self._chain(turn)
        ids = [i for t in before for i in (*t.context_ids, *t.sampled_ids)]
        return (*ids, *last.context_ids)

    def _chain(self, turn: Turn) -> list[Turn]:
        chain = [turn]
        while (parent := chain[-1].parent) is not None:
            chain.append(self.turns[parent])
        return chain[::-1]

    @property
    def policy_versions(self) -> frozenset[int]:
        """Every version of the weights that sampled a token of this session."""
        return frozenset(s.policy_version for turn in self.turns for s in turn.segments)


def _flatten(chain: list[Turn], trained: set[int]) -> TokenPath:
    ids: list[int] = []
    trainable: list[bool] = []
    logprobs: list[float] = []
    versions: list[int] = []
    temperatures: list[float] = []
    for turn in chain:
        n = len(turn.context_ids)
        ids += turn.context_ids
        trainable += [False] * n
        logprobs += [0.0] * n
        versions += [-1] * n
        temperatures += [1.0] * n
        for segment in turn.segments:
            n = len(segment.ids)
            ids += segment.ids
            trainable += [turn.index not in trained] * n
            logprobs += segment.logprobs
            versions += [segment.policy_version] * n
            temperatures += [turn.temperature or 1.0] * n
    return TokenPath(
        ids=tuple(ids),
        trainable=tuple(trainable),
        logprobs=tuple(logprobs),
        versions=tuple(versions),
        temperatures=tuple(temperatures),
    )


# --- training -----------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """An episode joined with its trace by the scheduler."""

    rollout_id: str
    episode: EpisodeResult
    trace: Trace

    @property
    def reward(self) -> float | None:
        """The episode's reward; ``None`` when it must not be trained on."""
        return self.episode.reward


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The rollouts of one task that share a baseline."""

    group_id: str
    instance_id: str
    task_index: int
    """Position in the (shuffled, epoch-spanning) task order; the data position."""
    rollouts: tuple[Rollout, ...]

    @property
    def oldest_version(self) -> int | None:
        """The oldest weights that sampled a token here; ``None`` if nothing was sampled."""
        versions = [v for r in self.rollouts for v in r.trace.policy_versions]
        return min(versions) if versions else None
