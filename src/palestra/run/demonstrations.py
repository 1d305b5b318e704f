"""Demonstrations for the warm start: real episodes in which a script plays the policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from palestra.errors import EngineError
from palestra.records import Task
from palestra.tasks.demonstrations import expert_steps
from palestra.tasks.katas import demonstration


def script_of(task: Task) -> tuple[str, ...]:
    """What an expert says to ``task``, turn by turn.

    Raises:
        TaskError: its gold patch cannot be read.
    """
    if task.files:
        return tuple(map(as_action, demonstration(task)))
    return tuple(
        f"THOUGHT: {step.thought}\n\n{as_action(step.command)}" for step in expert_steps(task)
    )


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
        for text in script:
            if text not in prompt:
                return text
        return script[-1]

    return reply


def as_action(command: str) -> str:
    """An assistant message in mini-swe-agent's text-block form that runs ``command``."""
    return f"```mswea_bash_command\n{command}\n```"
