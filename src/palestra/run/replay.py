"""Runs the commands of a stored episode again and compares what they do."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from palestra.environment.agents.protocol import Agent
from palestra.environment.patch import StartTrees, working_tree_diff
from palestra.environment.sandboxes.protocol import (
    CommandResult,
    Sandbox,
    SandboxBackend,
    SandboxLimits,
    SandboxSpec,
)
from palestra.environment.sandboxes.watched import KEPT_CHARS, output_digest
from palestra.errors import ConfigError
from palestra.records import CommandRun, EpisodeResult, Task

NAMED_PATTERNS: Mapping[str, str] = MappingProxyType(
    {
        "times": r"\d{1,2}:\d{2}:\d{2}(\.\d+)?|\d+\.\d+ ?(s|ms|seconds?)\b",
        "dates": r"\d{4}-\d{2}-\d{2}|(Mon|Tue|Wed|Thu|Fri|Sat|Sun) (Jan|Feb|Mar|Apr|May|Jun|Jul|Aug"
        r"|Sep|Oct|Nov|Dec) +\d+",
        "addresses": r"0x[0-9a-fA-F]{6,}",
        "pids": r"\bpid[ =:]*\d+",
    }
)
"""What differs between two runs of one command by nature; ignored only when asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Where a repetition first went another way.

    Attributes:
        index: of the command, from 0; ``None``: the commands agree but the diff that they
            left does not.
        command: that differs.
        what: ``exit code``, ``output``, ``time-out`` or ``patch``.
        stored: what the episode has, from a little before the difference.
        replayed: what it was now.
        note: what cannot be said, and why.
    """

    index: int | None
    command: str | None
    what: str
    stored: str
    replayed: str
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayReport:
    """What came of running an episode's commands again.

    Attributes:
        name: of the episode.
        instance_id: of its task.
        image: that it ran in now.
        image_id: what that is made of, as the backend says.
        num_commands: that the episode has.
        num_compared: that were run again and agree.
        difference: the first one; ``None``: everything agrees.
        notes: what could not be compared.
    """

    name: str
    instance_id: str
    image: str
    image_id: str
    num_commands: int
    num_compared: int
    difference: Difference | None
    notes: tuple[str, ...]

    @property
    def is_identical(self) -> bool:
        """Whether nothing differed of what could be compared."""
        return self.difference is None


class Comparer:
    """Says whether a command did the same again.

    Args:
        ignore: names of :data:`NAMED_PATTERNS`, or regular expressions; what they match in
            an output counts as equal.

    Raises:
        ConfigError: an expression is malformed.
    """

    def __init__(self, ignore: Sequence[str] = ()) -> None:
        try:
            self._patterns = [re.compile(NAMED_PATTERNS.get(p, p)) for p in ignore]
        except re.error as error:
            raise ConfigError(
                f"--ignore: {error.pattern!r} is no regular expression: {error}"
            ) from None

    def compare(self, index: int, stored: CommandRun, replayed: CommandResult) -> Difference | None:
        """The first difference between what a command did then and now."""
        if stored.exit_code is None:
            return None  # it was cut off, and nothing is known of what it would have done
        if stored.timed_out != replayed.timed_out:
            words = ("in time", "timed out")
            return self._difference(
                index, stored, "time-out", words[stored.timed_out], words[replayed.timed_out]
            )
        if stored.exit_code != replayed.exit_code:
            return self._difference(
                index, stored, "exit code", str(stored.exit_code), str(replayed.exit_code)
            )
        if stored.output is None or stored.output_digest == output_digest(replayed.output):
            return None
        then, now = self._clean(stored.output), self._clean(replayed.output[:KEPT_CHARS])
        if then != now:
            return self._difference(index, stored, "output", *_around(then, now))
        if self._patterns:
            # Beyond what was kept nobody can tell what the patterns would match.
            return None
        return self._difference(
            index,
            stored,
            "output",
            then[-_SHOWN_CHARS:],
            now[-_SHOWN_CHARS:],
            note=f"it differs behind the first {KEPT_CHARS} characters",
        )

    def _clean(self, text: str) -> str:
        for pattern in self._patterns:
            text = pattern.sub("…", text)
        return text

    @staticmethod
    def _difference(
        index: int,
        run: CommandRun,
        what: str,
        stored: str,
        replayed: str,
        note: str | None = None,
    ) -> Difference:
        return Difference(
            index=index, command=run.command, what=what, stored=stored, replayed=replayed, note=note
        )


_SHOWN_CHARS = 400


async def replay(
    name: str,
    episode: EpisodeResult,
    task: Task,
    *,
    backend: SandboxBackend,
    agent: Agent,
    limits: SandboxLimits,
    step_timeout_s: float,
    comparer: Comparer,
    on_command: Callable[[int, CommandRun], None] = lambda index, run: None,
) -> ReplayReport:
    """Run the commands of ``episode`` in a fresh sandbox until one does something else.

    Args:
        name: of the episode.
        episode: as it was stored.
        task: that it worked on; may name another image than then.
        backend: starts the sandbox.
        agent: its environment variables are those of the episode's agent.
        limits: of the sandbox.
        step_timeout_s: seconds that one command may take.
        comparer: says what counts as equal.
        on_command: told of each command before it runs.

    Raises:
        ConfigError: the episode was stored without its commands.
        SandboxError: the sandbox failed.
    """
    if episode.commands is None:
        raise ConfigError(f"{name} was stored without its commands: nothing can be run again")
    spec = SandboxSpec.for_task(task, limits, agent.env)
    await backend.ensure_image(task.image, lambda _: None)
    await backend.prepare(spec)
    num_compared = 0
    difference: Difference | None = None
    async with backend.start(spec) as sandbox:
        base = await StartTrees().of(task, sandbox)
        for index, run in enumerate(episode.commands):
            on_command(index, run)
            if run.exit_code is None:
                break  # it was cut off in the middle, and the episode with it
            result = await sandbox.run(run.command, timeout_s=step_timeout_s)
            difference = comparer.compare(index, run, result)
            if difference is not None:
                break
            num_compared += 1
        else:
            difference = await _compare_patch(sandbox, base, episode)
    return ReplayReport(
        name=name,
        instance_id=task.instance_id,
        image=task.image,
        image_id=await backend.identify(task.image),
        num_commands=len(episode.commands),
        num_compared=num_compared,
        difference=difference,
        notes=tuple(_notes(episode)),
    )


async def _compare_patch(sandbox: Sandbox, base: str, episode: EpisodeResult) -> Difference | None:
    if episode.patch is None:
        return None
    patch = await working_tree_diff(sandbox, base)
    if patch == episode.patch:
        return None
    then, now = _around(episode.patch, patch)
    return Difference(index=None, command=None, what="patch", stored=then, replayed=now)


def _notes(episode: EpisodeResult) -> list[str]:
    notes = []
    if any(run.exit_code is None for run in episode.commands or ()):
        notes.append("its last command was cut off: neither that nor the patch is compared")
    if any(run.output is None and run.exit_code is not None for run in episode.commands or ()):
        notes.append("it was stored without outputs: exit codes and the patch are compared alone")
    if episode.patch is None:
        notes.append("it has no patch to compare")
    return notes


def _around(then: str, now: str) -> tuple[str, str]:
    """Both texts from the line in which they part, as far as a look needs it."""
    at = next(
        (i for i, (a, b) in enumerate(zip(then, now, strict=False)) if a != b),
        min(len(then), len(now)),
    )
    start = then.rfind("\n", 0, at) + 1
    return then[start : at + _SHOWN_CHARS], now[start : at + _SHOWN_CHARS]
