"""Demonstrations for the warm start: real episodes in which a script plays the policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from palestra.errors import EngineError
from palestra.records import Task
from palestra.tasks.demonstrations import expert_steps
from palestra.tasks.katas import demonstration, tried_demonstration
from palestra.tasks.katas.draw import Draw


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """What an expert says to a task.

    Attributes:
        texts: turn by turn.
        slips: turns, from 0, that are wrong on purpose and nobody is to be fitted to.
    """

    texts: tuple[str, ...]
    slips: frozenset[int] = frozenset()


def demonstration_of(task: Task, *, max_slips: int = 0, seed: int = 0) -> Demonstration:
    """What an expert says to ``task``, after up to ``max_slips`` wrong edits.

    Raises:
        TaskError: its gold patch cannot be read.
    """
    by_trial = Draw(f"slips {seed} {task.instance_id}") if max_slips else None
    num_slips = by_trial.below(max_slips + 1) if by_trial else 0
    if not task.files:
        steps = expert_steps(task, num_slips=num_slips, by_trial=by_trial)
        said = [
            (f"THOUGHT: {one.thought}\n\n{as_action(one.command)}", one.is_slip) for one in steps
        ]
    elif by_trial is None:
        said = [(as_action(command), False) for command in demonstration(task)]
    else:
        moves = tried_demonstration(task, num_slips=num_slips, draw=by_trial)
        said = [(as_action(move.command), move.is_slip) for move in moves]
    return Demonstration(
        texts=tuple(text for text, _ in said),
        slips=frozenset(turn for turn, (_, is_slip) in enumerate(said) if is_slip),
    )


def script_of(task: Task) -> tuple[str, ...]:
    """What an expert who makes no mistake says to ``task``, turn by turn.

    Raises:
        TaskError: its gold patch cannot be read.
    """
    return demonstration_of(task).texts


def teacher(
    tasks: Sequence[Task], script_of: Callable[[Task], Sequence[str]] = script_of
) -> Callable[[str], str]:
    """A scripted policy: prompt text in, the next assistant text of its task's script out.

    ``script_of`` gives what is said to a task. The task is known by its statement and the
    turn by how much of the script the conversation already holds, so the teacher keeps no state.
    """
    scripts: Mapping[str, tuple[str, ...]] = {
        task.problem_statement.strip(): tuple(script_of(task)) for task in tasks
    }

    def reply(prompt: str) -> str:
        known = [statement for statement in scripts if statement in prompt]
        if not known:
            raise EngineError("the teacher was asked about a task that it does not know")
        script = scripts[max(known, key=len)]
        said_until = 0
        for text in script:
            # One behind the other: the same may be said twice.
            found = prompt.find(text, said_until)
            if found < 0:
                return text
            said_until = found + len(text)
        return script[-1]

    return reply


def as_action(command: str) -> str:
    """An assistant message in mini-swe-agent's text-block form that runs ``command``."""
    return f"```mswea_bash_command\n{command}\n```"
