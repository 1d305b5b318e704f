"""mini-swe-agent as an agent of ours."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from palestra.config import AgentSection
from palestra.environment.agents.bridge import LoopBridge, run_in_thread
from palestra.environment.agents.model_client import ModelClient, tls_context
from palestra.environment.agents.prompt_set import load_prompt_set
from palestra.environment.agents.protocol import AgentExit, AgentResult, ModelEndpoint
from palestra.environment.sandboxes.protocol import Sandbox
from palestra.errors import HostError, ModelUnavailable
from palestra.records import Task
from palestra.wire import message_from_wire

if TYPE_CHECKING:
    from palestra.environment.agents.mini_parts import Tally


class MiniAgent:
    """Runs mini-swe-agent's ``DefaultAgent``, one thread an episode.

    Args:
        section: prompt set and limits.
        step_timeout_s: seconds that one command may take.
        time_limit_s: wall-clock seconds for one task; then it ends as
            :attr:`AgentExit.TIME_LIMIT`, with all that it has done so far.

    Raises:
        ConfigError: the prompt set is unknown or malformed.
        HostError: there is no temporary folder.
    """

    def __init__(
        self, section: AgentSection, *, step_timeout_s: float, time_limit_s: float
    ) -> None:
        self._section = section
        self._step_timeout_s = step_timeout_s
        self._time_limit_s = time_limit_s
        self._prompts = load_prompt_set(section.prompt)
        self._tls = tls_context()
        self._parts = _import_parts()

    @property
    def name(self) -> str:
        """``mini``."""
        return "mini"

    @property
    def needs_model(self) -> bool:
        """It does."""
        return True

    @property
    def env(self) -> Mapping[str, str]:
        """What the prompt set wants in its sandbox (pagers off, and the like)."""
        return self._prompts.env

    async def run(
        self, task: Task, sandbox: Sandbox, endpoint: ModelEndpoint | None
    ) -> AgentResult:
        """Let the policy work on ``task`` until it submits or is out of budget.

        Raises:
            ModelUnavailable: there is no endpoint, or it failed.
            SandboxError: the sandbox failed.
        """
        if endpoint is None:
            raise ModelUnavailable("the agent mini was given no policy endpoint")
        parts = self._parts
        tally: Tally = parts.Tally()
        async with ModelClient(endpoint, tls=self._tls) as client:

            def work(bridge: LoopBridge) -> AgentExit:
                model = parts.PolicyModel(bridge, client, self._prompts, tally)
                environment = parts.SandboxEnvironment(
                    bridge,
                    sandbox,
                    self._prompts,
                    tally,
                    step_timeout_s=self._step_timeout_s,
                    collapse_limit=self._section.collapse_limit,
                )
                loop = parts.Loop(
                    model,
                    environment,
                    self._prompts,
                    tally,
                    step_limit=self._section.step_limit,
                    token_limit=self._section.token_limit,
                    max_format_errors=self._section.max_format_errors,
                )
                ended: AgentExit = loop.work_on(task.problem_statement)
                return ended

            ended = await self._in_time(work, name=f"mini-{sandbox.sandbox_id}")
        return AgentResult(
            exit=ended,
            messages=tuple(map(message_from_wire, tally.messages)),
            submission=tally.submission,
            num_turns=tally.num_turns,
            num_tool_calls=tally.num_tool_calls,
            model_s=tally.model_s,
            env_s=tally.env_s,
        )

    async def _in_time(self, work: Callable[[LoopBridge], AgentExit], *, name: str) -> AgentExit:
        limit = asyncio.timeout(self._time_limit_s)
        try:
            async with limit:
                return await run_in_thread(work, name=name)
        except TimeoutError:
            if not limit.expired():  # somebody else's
                raise
            return AgentExit.TIME_LIMIT


def _import_parts() -> ModuleType:
    """Import what stands on minisweagent.

    Its import prints a banner, makes a folder for its settings below the home (which
    a service user may not have) and loads a file of secrets from there into our
    environment. It gets an empty folder for the time of the import instead.
    """
    name = "palestra.environment.agents.mini_parts"
    if name not in sys.modules:
        with _empty_settings():
            return import_module(name)
    return sys.modules[name]


@contextmanager
def _empty_settings() -> Iterator[None]:
    try:
        folder = tempfile.TemporaryDirectory(prefix="palestra-mini-")
    except OSError as error:
        raise HostError.from_os(error, doing="cannot make a temporary folder") from error
    with folder as path:
        wanted = {"MSWEA_SILENT_STARTUP": "1", "MSWEA_GLOBAL_CONFIG_DIR": path}
        before = {key: os.environ.get(key) for key in wanted}
        os.environ.update(wanted)
        try:
            yield
        finally:
            for key, value in before.items():
                if value is None:
                    del os.environ[key]
                else:
                    os.environ[key] = value
