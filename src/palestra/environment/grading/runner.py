"""Runs the hidden tests on a candidate patch in a sandbox of its own.

What is the patch's fault and what is not is decided by how far the run came:

* the patch is refused or does not apply: unresolved, ``patch_applied`` is false;
* the tests started (the start marker is in the log): whatever happens then is
  the patch's to answer for. A run that hangs, hits a limit of the sandbox or
  never reaches the end marker is unresolved, with the statuses of its partial log;
* the tests did not start: a :class:`GradingTimeout` or :class:`GradingError`,
  because the script of the task, not the patch, was running.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from palestra.config import GradingSection
from palestra.environment.grading import patches
from palestra.environment.grading.log_parsers import LogParser, parser_named
from palestra.environment.grading.markers import marked_output
from palestra.environment.grading.patch_policy import PatchPolicy
from palestra.environment.grading.script import Steps, compose, runner_of, witness_steps
from palestra.environment.grading.sealed import new_key, open_sealed, without_seals
from palestra.environment.grading.verdict import judge, judge_sealed, unapplied
from palestra.environment.sandboxes.protocol import (
    CommandResult,
    Sandbox,
    SandboxBackend,
    SandboxLimits,
    SandboxSpec,
)
from palestra.errors import GradingError, GradingTimeout
from palestra.records import Task, Verdict

LOG_LIMIT_BYTES = 16 << 20
SANDBOX_ENV: Mapping[str, str] = MappingProxyType(
    {
        # Scripts install before they test. There is no network: pip shall find that out
        # at once and leave the image's installation as it is, instead of retrying.
        "PIP_NO_INDEX": "1",
        "PIP_RETRIES": "0",
        "PIP_NO_INPUT": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
        "GIT_PAGER": "cat",
    }
)
"""Environment of every grading sandbox."""

REBUILD_ENV: Mapping[str, str] = MappingProxyType(
    # "0" switches isolation off: pip reads the variable as a value of build_isolation.
    {**SANDBOX_ENV, "PIP_NO_BUILD_ISOLATION": "0"}
)
"""The same for patches that touch the build: it runs with the tools of the image."""


_TAIL_CHARS = 400


class SandboxGrader:
    """Grades each patch in a fresh sandbox of its task.

    Args:
        backend: starts the sandboxes.
        limits: of each of them.
        eval_timeout_s: seconds that patching, installing and testing may take
            together.
        section: which files of a patch count, and what the others cost.
    """

    def __init__(
        self,
        backend: SandboxBackend,
        limits: SandboxLimits,
        *,
        eval_timeout_s: float,
        section: GradingSection | None = None,
    ) -> None:
        section = section or GradingSection()
        self._policy = PatchPolicy(refuse=section.refuse, allow=section.allow)
        self._is_fatal = section.on_refused == "tampered"
        self._is_signed = section.signed
        self._backend = backend
        self._limits = limits
        self._eval_timeout_s = eval_timeout_s

    async def grade(self, task: Task, patch: str) -> Verdict:
        """Grade ``patch`` in a pristine sandbox of ``task``.

        Raises:
            TaskError: the task names a log parser that does not exist.
            SandboxError: the sandbox failed.
            GradingTimeout: time was up before the tests started.
            GradingError: the tests did not start for another reason.
        """
        started_s = time.monotonic()
        parse = parser_named(task.log_parser)
        reason = patches.refusal(patch)
        if reason is not None:
            return unapplied(task, log=reason, duration_s=time.monotonic() - started_s)
        sifted = self._policy.sift(patch, task)
        verdict = await self._judged(task, sifted.kept, parse, started_s)
        tampered = verdict.tampered or (bool(sifted.refused) and self._is_fatal)
        return replace(
            verdict,
            refused=sifted.refused,
            tampered=tampered,
            resolved=verdict.resolved and not tampered,
        )

    async def _judged(self, task: Task, patch: str, parse: LogParser, started_s: float) -> Verdict:
        env = REBUILD_ENV if patches.touches_build(patch) else SANDBOX_ENV
        spec = SandboxSpec.for_task(task, self._limits, env)
        key = new_key() if self._is_signed else ""
        async with self._backend.start(spec) as sandbox:
            result = await self._run_tests(sandbox, task, patch, key)
        return _verdict(task, parse, result, key=key, duration_s=time.monotonic() - started_s)

    async def _run_tests(self, sandbox: Sandbox, task: Task, patch: str, key: str) -> CommandResult:
        # Patch and script are part of the command: each file written costs a round trip
        # and several processes.
        name = f"palestra-{sandbox.sandbox_id}"
        apply = [patches.clear_command(task)]
        if not patches.is_empty(patch):
            patch_file = f"/tmp/{name}.patch"
            apply.insert(0, patches.apply_command(patch_file))
            if patches.is_plain_text(patch):
                apply.insert(0, patches.write_command(patch, patch_file))
            else:
                await sandbox.write_file(patch_file, patches.encode(patch))
        runner, folder = runner_of(task.log_parser), f"/tmp/{name}"
        hidden, changed = (patches.touched_paths(text) for text in (task.test_patch, patch))
        steps = Steps(
            apply="\n".join(apply),
            apply_first=patches.touches_build(patch),
            witness=witness_steps(runner, hidden=hidden, changed=changed, folder=folder)
            if key
            else "",
            witness_folder=folder,
        )
        return await sandbox.run(
            compose(task.eval_script, steps),
            timeout_s=self._eval_timeout_s,
            output_limit_bytes=LOG_LIMIT_BYTES,
            secret=key,
        )


def _verdict(
    task: Task, parse: LogParser, result: CommandResult, *, key: str, duration_s: float
) -> Verdict:
    log = without_seals(result.output)
    output = marked_output(log)
    if output.started and not key:
        return judge(
            task, parse(output.text), finished=output.finished, log=log, duration_s=duration_s
        )
    if output.started:
        return judge_sealed(
            task,
            open_sealed(result.output, key),
            parse=parse,
            output=output,
            log=log,
            duration_s=duration_s,
        )
    if _not_applied(result):
        return unapplied(task, log=log, duration_s=duration_s)
    if result.timed_out:
        raise GradingTimeout(
            f"{task.instance_id}: the tests did not start in {result.duration_s:.0f} s",
            hint=f"the log ends: {_tail(log)}",
            log=log,
        )
    hit = f" and hit the sandbox's limit of {result.limit}" if result.limit else ""
    raise GradingError(
        f"{task.instance_id}: eval_script ended with {result.exit_code}{hit} before its tests",
        hint=f"the log ends: {_tail(log)}",
    )


def _not_applied(result: CommandResult) -> bool:
    failed = result.exit_code == patches.APPLY_FAILED_EXIT_CODE
    return failed and result.output.rstrip().endswith(patches.APPLY_FAILED_MARKER)


def _tail(log: str) -> str:
    return repr(log[-_TAIL_CHARS:])
