"""A project's tests, run by the grader as those of any task: in a sandbox, signed, with limits."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from palestra.environment.grading.protocol import Grader
from palestra.errors import TaskError
from palestra.forge.records import Project
from palestra.records import Task
from palestra.tasks.swegym import END_MARKER, START_MARKER, placing_lines, reset_lines

WORKDIR = "/testbed"
LOG_PARSER = "parse_log_pytest"
# The summary of every test without the output of those that passed; tracebacks that name
# files and functions. No cache: it would remember failures of earlier runs. A file that cannot be
# collected, for want of some package, does not stop the others.
_PYTEST = (
    "python3 -B -m pytest -rfEsxXp --tb=short -p no:cacheprovider --continue-on-collection-errors"
)
_NO_TEST = "no::test"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What a project's tests said once.

    Attributes:
        statuses: test → PASSED, FAILED and so on; nothing where ``is_signed`` is false.
        is_signed: whether the run came to its end and vouches for its statuses.
        log: of the run, for people and for statements; whoever ran may have forged it.
        duration_s: of the whole grading.
    """

    statuses: Mapping[str, str]
    is_signed: bool
    log: str
    duration_s: float

    @property
    def passed(self) -> frozenset[str]:
        """The tests that passed."""
        return frozenset(test for test, status in self.statuses.items() if status == "PASSED")


class Suite:
    """Runs a project's tests on the project with changes.

    Args:
        project: whose tests.
        make_grader: a grader whose runs may take so many seconds.
        options: further options of pytest.
    """

    def __init__(
        self,
        project: Project,
        make_grader: Callable[[float], Grader],
        *,
        options: Sequence[str] = (),
    ) -> None:
        self._project = project
        self._make_grader = make_grader
        self.options = tuple(options)

    async def run(
        self,
        patch: str = "",
        *,
        files: Sequence[str] | None = None,
        timeout_s: float,
        max_failing: int | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Trial:
        """Run the tests of ``files`` (all, without) on the project with ``patch`` applied.

        Args:
            patch: a git diff against the project's commit.
            files: test files relative to the checkout.
            timeout_s: for sandbox and tests together.
            max_failing: the run may end when so many tests have failed.
            env: variables of the test run.

        Raises:
            InfraError: sandbox or grader failed.
            TaskError: the patch does not apply.
        """
        project = self._project
        stop = () if max_failing is None else (f"--maxfail={max_failing}",)
        task = Task(
            instance_id=f"{project.name}-{project.version}",
            repo=project.name,
            base_commit=project.commit,
            problem_statement="",
            image=project.image,
            fail_to_pass=(_NO_TEST,),
            pass_to_pass=(),
            gold_patch=patch,  # its files always count, whatever they are called
            test_patch="",
            eval_script=suite_script(
                files or project.tests, options=(*self.options, *stop), env=dict(env or {})
            ),
            log_parser=LOG_PARSER,
            workdir=WORKDIR,
        )
        verdict = await self._make_grader(timeout_s).grade(task, patch)
        if not verdict.patch_applied:
            raise TaskError(f"{project.name}: a change does not apply: {verdict.log[-200:]!r}")
        is_signed = verdict.signed and not verdict.findings
        return Trial(
            statuses=verdict.statuses if is_signed else {},
            is_signed=is_signed,
            log=verdict.log,
            duration_s=verdict.duration_s,
        )


def suite_script(
    files: Sequence[str],
    *,
    options: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    hidden: tuple[str, str] | None = None,
) -> str:
    """The bash script that runs test files between the markers.

    Args:
        files: relative to the repository.
        options: further options of pytest.
        env: variables of the test run.
        hidden: a test patch to put in place first, and the commit it is made against.
    """
    reset = reset_lines(hidden[1], hidden[0]) if hidden else []
    variables = [f"{name}={shlex.quote(value)}" for name, value in (env or {}).items()]
    return "\n".join(
        [
            "#!/bin/bash",
            f"cd {WORKDIR}",
            f"git config --global --add safe.directory {WORKDIR}",
            *reset,
            *(placing_lines(hidden[0]) if hidden else []),
            f"echo '{START_MARKER}'",
            " ".join([*variables, _PYTEST, *map(shlex.quote, [*options, *files])]),
            f"echo '{END_MARKER}'",
            *reset,
            "",
        ]
    )
