"""mini-swe-agent's agent on our model and our sandbox.

Imported by :mod:`palestra.environment.agents.mini` alone, which first takes care of
what importing minisweagent does. Everything here runs in the thread of one episode.
"""

from __future__ import annotations

import platform
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from minisweagent.agents.default import DefaultAgent
from minisweagent.exceptions import FormatError, InterruptAgentFlow, LimitsExceeded, Submitted
from minisweagent.models.utils.actions_toolcall import BASH_TOOL, parse_toolcall_actions

from palestra.environment.agents.bridge import LoopBridge
from palestra.environment.agents.model_client import Completion, ModelClient
from palestra.environment.agents.prompt_set import DEFAULT_ACTION_REGEX, PromptSet
from palestra.environment.agents.protocol import AgentExit
from palestra.environment.sandboxes.protocol import CommandResult, Sandbox
from palestra.errors import ContextOverflow, ModelUnavailable

SUBMIT_LINE = "COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"
_KEPT_ROLES = frozenset({"system", "user", "assistant", "tool"})
_HOST_FACTS = ("system", "release", "version", "machine")


class Collapsed(InterruptAgentFlow):  # type: ignore[misc]  # minisweagent is untyped
    """The same command came too many times in a row."""


@dataclass(slots=True)
class Tally:
    """What one episode has done so far; read when it ends, however it ends."""

    num_turns: int = 0
    num_tool_calls: int = 0
    num_tokens: int | None = 0  # of all answers; unknown once an answer did not say
    model_s: float = 0.0
    env_s: float = 0.0
    submission: str | None = None
    messages: list[dict[str, Any]] = field(default_factory=list)

    def add_turn(self, num_tokens: int | None) -> None:
        """Count one answer, and its tokens where it says how many they are."""
        self.num_turns += 1
        if self.num_tokens is None or num_tokens is None:
            self.num_tokens = None
        else:
            self.num_tokens += num_tokens


class PolicyModel:
    """mini-swe-agent's Model: a chat completion, read as actions.

    A malformed answer stays in the conversation, before the words that say what was
    wrong with it: the policy sees its error, and every prompt extends the one before.
    """

    config = MappingProxyType[str, Any]({})

    def __init__(
        self, bridge: LoopBridge, client: ModelClient, prompts: PromptSet, tally: Tally
    ) -> None:
        self._bridge = bridge
        self._client = client
        self._prompts = prompts
        self._tally = tally
        self._extra = dict(prompts.model_kwargs)
        if prompts.uses_tools:
            self._extra["tools"] = [BASH_TOOL]

    def query(self, messages: Sequence[dict[str, Any]], **_: Any) -> dict[str, Any]:
        """Ask the policy."""
        sent = [{k: v for k, v in m.items() if k != "extra"} for m in messages]
        started_s = time.monotonic()
        try:
            completion = self._bridge.call(lambda: self._client.complete(sent, **self._extra))
        finally:
            self._tally.model_s += time.monotonic() - started_s
        self._tally.add_turn(completion.num_tokens)
        return {**completion.message, "extra": {"actions": self._actions(completion)}}

    def format_message(self, **message: Any) -> dict[str, Any]:
        """A message as the agent keeps it."""
        return message

    def format_observation_messages(
        self,
        message: dict[str, Any],
        outputs: Sequence[dict[str, Any]],
        template_vars: dict[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """What the policy is told of the outputs of its commands."""
        told = []
        for action, output in zip(message["extra"]["actions"], outputs, strict=True):
            text = self._prompts.render(
                self._prompts.observation_template, {**(template_vars or {}), "output": output}
            )
            if "tool_call_id" in action:
                told.append(
                    {"role": "tool", "tool_call_id": action["tool_call_id"], "content": text}
                )
            else:
                told.append({"role": "user", "content": text})
        return told

    def get_template_vars(self, **_: Any) -> dict[str, Any]:
        """Nothing: the templates of the sets speak of the task and the output only."""
        return {}

    def serialize(self) -> dict[str, Any]:
        """Nothing: trajectories are the episode's to keep."""
        return {}

    def _actions(self, completion: Completion) -> list[dict[str, str]]:
        if self._prompts.uses_tools:
            return self._called(completion)
        # Only what stands before the last fence can match, and on what comes after it
        # the search takes quadratic time (a policy that ends in ten thousand newlines).
        text = completion.content
        if self._prompts.action_regex == DEFAULT_ACTION_REGEX:
            text = text[: text.rfind("\n```") + 4]
        found = re.findall(self._prompts.action_regex, text, re.DOTALL)
        actions = [action.strip() for action in found]
        if len(actions) == 1:
            return [{"command": actions[0]}]
        error = f"Expected exactly 1 action, found {len(actions)}."
        raise self._format_error(completion, error=error, actions=actions)

    def _called(self, completion: Completion) -> list[dict[str, str]]:
        try:
            actions: list[dict[str, str]] = parse_toolcall_actions(
                list(completion.tool_calls), format_error_template="{{ error }}"
            )
        except FormatError as refused:
            error = refused.messages[0]["content"]
        else:
            if all(isinstance(action["command"], str) for action in actions):
                return actions
            error = "The 'command' argument of the bash tool call is no string."
        raise self._format_error(
            completion, error=error, actions=[], has_tool_calls=bool(completion.tool_calls)
        )

    def _format_error(self, completion: Completion, **variables: Any) -> FormatError:
        variables["finish_reason"] = completion.finish_reason
        text = self._prompts.render(self._prompts.format_error_template, variables)
        if not completion.tool_calls:
            return FormatError(completion.message, {"role": "user", "content": text})
        # A call without an answer is a malformed conversation to most endpoints.
        answers = [
            {"role": "tool", "tool_call_id": call.id, "content": text}
            for call in completion.tool_calls
        ]
        return FormatError(completion.message, *answers)


class SandboxEnvironment:
    """mini-swe-agent's Environment: commands in our sandbox."""

    config = MappingProxyType[str, Any]({})

    def __init__(
        self,
        bridge: LoopBridge,
        sandbox: Sandbox,
        prompts: PromptSet,
        tally: Tally,
        *,
        step_timeout_s: float,
        collapse_limit: int,
    ) -> None:
        self._bridge = bridge
        self._sandbox = sandbox
        self._interpreter = prompts.interpreter
        self._tally = tally
        self._step_timeout_s = step_timeout_s
        self._collapse_limit = collapse_limit
        self._last_command: str | None = None
        self._repeats = 0
        host = platform.uname()
        self._template_vars = {
            "cwd": sandbox.workdir,
            "timeout": step_timeout_s,
            **{name: getattr(host, name) for name in _HOST_FACTS},
        }

    def execute(self, action: Mapping[str, Any], cwd: str = "") -> dict[str, Any]:
        """Run one command.

        Raises:
            Submitted: the command said that the work is done.
            Collapsed: it is the same command once too often.
        """
        command: str = action["command"]
        self._watch_for_collapse(command)
        self._tally.num_tool_calls += 1
        if "\0" in command:
            return _failed("embedded null byte")
        if self._interpreter:
            command = f"{shlex.join(self._interpreter)} {shlex.quote(command)}"
        started_s = time.monotonic()
        try:
            result = self._bridge.call(
                lambda: self._sandbox.run(command, timeout_s=self._step_timeout_s)
            )
        finally:
            self._tally.env_s += time.monotonic() - started_s
        self._check_finished(result)
        return self._told(result)

    def get_template_vars(self, **_: Any) -> dict[str, Any]:
        """What templates may say of the place."""
        return self._template_vars

    def serialize(self) -> dict[str, Any]:
        """Nothing: trajectories are the episode's to keep."""
        return {}

    def _watch_for_collapse(self, command: str) -> None:
        self._repeats = self._repeats + 1 if command == self._last_command else 1
        self._last_command = command
        if 0 < self._collapse_limit <= self._repeats:
            raise Collapsed(_exit_message(AgentExit.COLLAPSED))

    def _told(self, result: CommandResult) -> dict[str, Any]:
        if result.timed_out:
            why = f"the command timed out after {self._step_timeout_s:g} seconds"
            return _failed(why, output=result.output)
        if result.limit is not None:
            why = f"the command hit the sandbox's {result.limit} limit"
            return _failed(why, output=result.output, exit_code=result.exit_code)
        return {"output": result.output, "returncode": result.exit_code, "exception_info": ""}

    def _check_finished(self, result: CommandResult) -> None:
        lines = result.output.lstrip().splitlines(keepends=True)
        if lines and lines[0].strip() == SUBMIT_LINE and result.exit_code == 0:
            self._tally.submission = "".join(lines[1:])
            raise Submitted(_exit_message(AgentExit.SUBMITTED))


class Loop(DefaultAgent):  # type: ignore[misc]  # minisweagent is untyped
    """mini-swe-agent's loop, which neither compiles templates nor writes files at each step."""

    def __init__(
        self,
        model: PolicyModel,
        environment: SandboxEnvironment,
        prompts: PromptSet,
        tally: Tally,
        *,
        step_limit: int,
        token_limit: int,
        max_format_errors: int,
    ) -> None:
        super().__init__(
            model,
            environment,
            system_template=prompts.system_template,
            instance_template=prompts.instance_template,
            step_limit=step_limit,
            cost_limit=0.0,
            max_consecutive_format_errors=max_format_errors,
        )
        self._prompts = prompts
        self._tally = tally
        self._token_limit = token_limit

    def query(self) -> dict[str, Any]:
        """Ask the policy, if there are tokens left.

        Raises:
            LimitsExceeded: there are none, or no steps.
            ModelUnavailable: there is a limit, and the policy does not count.
        """
        if self._token_limit:
            used = self._tally.num_tokens
            if used is None:
                raise ModelUnavailable(
                    "the policy's answers do not say how many tokens they are (usage)",
                    hint="set agent.token_limit to 0",
                )
            if used >= self._token_limit:
                raise LimitsExceeded(_exit_message(AgentExit.TOKEN_LIMIT))
        message: dict[str, Any] = super().query()
        return message

    def save(self, path: object, *_: dict[str, Any]) -> dict[str, Any]:
        """Do nothing: it serialises the whole conversation, and nobody reads it."""
        return {}

    def work_on(self, statement: str) -> AgentExit:
        """Run the loop to its end and say how it ended.

        Raises:
            InfraError: the sandbox or the endpoint failed.
        """
        try:
            self.run(statement)
        except ContextOverflow:
            return AgentExit.TOKEN_LIMIT
        finally:
            self._tally.messages = [m for m in self.messages if m["role"] in _KEPT_ROLES]
        return _EXITS[self.messages[-1]["extra"]["exit_status"]]

    def _render_template(self, template: str) -> str:
        return self._prompts.render(template, self.get_template_vars())


_EXITS = {
    AgentExit.SUBMITTED.value: AgentExit.SUBMITTED,
    AgentExit.COLLAPSED.value: AgentExit.COLLAPSED,
    AgentExit.TOKEN_LIMIT.value: AgentExit.TOKEN_LIMIT,
    LimitsExceeded.__name__: AgentExit.STEP_LIMIT,
    "RepeatedFormatError": AgentExit.MALFORMED,
}


def _exit_message(how: AgentExit) -> dict[str, Any]:
    return {"role": "exit", "content": how.value, "extra": {"exit_status": how.value}}


def _failed(why: str, *, output: str = "", exit_code: int = -1) -> dict[str, Any]:
    return {
        "output": output,
        "returncode": exit_code,
        "exception_info": f"An error occurred while executing the command: {why}",
    }
