"""``palestra forge``: projects become tasks, each certified before it counts."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from palestra.config import Recipe
from palestra.environment.grading.bench import SandboxBench
from palestra.environment.grading.certificates import Certificate, certificate
from palestra.environment.grading.runner import SandboxGrader
from palestra.environment.sandboxes.images import ImageStore
from palestra.environment.sandboxes.protocol import SandboxBackend, SandboxLimits
from palestra.errors import InfraError, PalestraError, TaskError
from palestra.forge.corpus import quota
from palestra.forge.environment import prepare_project
from palestra.forge.journal import Journal, Tried
from palestra.forge.making import Conditions, Made, Maker
from palestra.forge.records import Project
from palestra.forge.rewriting import Model, Rewriter
from palestra.forge.rows import FORGE_VERSION
from palestra.forge.stable import Stable, find_stable, option_sets
from palestra.forge.suite import Suite
from palestra.records import Task
from palestra.run.gate import conditions_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is forged.

    Attributes:
        projects: names, pinned names or folders.
        num_tasks: in all.
        seed: of everything that is drawn.
        at_once: bugs tried side by side.
        gold_runs: gradings of each gold patch.
        suite_limit_s: what a project's tests may take.
        base: the root file system that projects are laid on; ``None``: the usual one.
        rewriting: the model that words statements anew; ``None``: nobody does.
        folder: where checkouts and journals lie.
        recipe: sandboxes, limits and grading that the tasks are certified under.
    """

    projects: tuple[str, ...]
    num_tasks: int
    seed: str
    at_once: int
    gold_runs: int
    suite_limit_s: float
    base: str | None
    rewriting: Model | None
    folder: Path
    recipe: Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Forged:
    """What one project gave.

    Attributes:
        origin: as it was asked for.
        project: ``None`` where it could not be prepared.
        made: ``None`` where it has no tests to go by.
        problem: why it gave nothing.
        num_stable: tests that can be relied on.
    """

    origin: str
    project: Project | None = None
    made: Made | None = None
    problem: str | None = None
    num_stable: int = 0
    refused: Counter[str] = field(default_factory=Counter)


class Watch(Protocol):
    """Is told how the forge gets on."""

    def say(self, text: str) -> None:
        """Something that a person may want to know."""
        ...

    def on_tried(self, project: Project, tried: Tried) -> None:
        """A bug was tried, or known from before."""
        ...


class Forge:
    """Makes tasks of projects, one project after the other.

    Args:
        plan: what.
        store: of the images.
        backend: of the sandboxes.
        limits: of each sandbox.
        watch: told of everything.
    """

    def __init__(
        self,
        plan: Plan,
        store: ImageStore,
        backend: SandboxBackend,
        limits: SandboxLimits,
        watch: Watch,
    ) -> None:
        self._plan = plan
        self._store = store
        self._backend = backend
        self._limits = limits
        self._watch = watch

    async def make(self) -> tuple[Forged, ...]:
        """All projects in their order; each makes up for what the ones before it lacked.

        Raises:
            InfraError: sandboxes fail again and again.
            UsageError: the model that shall word statements has no key.
        """
        if self._plan.rewriting is None:
            return await self._make(None)
        async with Rewriter(self._plan.rewriting) as rewriter:
            return await self._make(rewriter)

    async def _make(self, rewriter: Rewriter | None) -> tuple[Forged, ...]:
        plan = self._plan
        results: list[Forged] = []
        made = 0
        # The next project is brought while this one is worked on: mostly that waits for a network.
        ahead: deque[asyncio.Task[Project]] = deque([self._prepare(plan.projects[0])])
        try:
            for index, origin in enumerate(plan.projects):
                number = quota(plan.num_tasks, made, len(plan.projects) - index)
                if number == 0:
                    break
                ahead.extend(map(self._prepare, plan.projects[index + 1 : index + 2]))
                forged = await self._forge(origin, ahead[0], number, rewriter)
                ahead.popleft()
                made += len(forged.made.tasks) if forged.made else 0
                results.append(forged)
        finally:
            for preparing in ahead:
                preparing.cancel()
            await asyncio.gather(*ahead, return_exceptions=True)
        return tuple(results)

    def _prepare(self, origin: str) -> asyncio.Task[Project]:
        return asyncio.ensure_future(
            prepare_project(
                origin,
                store=self._store,
                backend=self._backend,
                base=self._plan.base,
                folder=self._plan.folder / "projects",
                say=self._watch.say,
            )
        )

    async def _forge(
        self,
        origin: str,
        preparing: asyncio.Task[Project],
        number: int,
        rewriter: Rewriter | None,
    ) -> Forged:
        project: Project | None = None
        try:
            project = await preparing
            stable = await self._stable(project)
            made = await self._maker(project, stable, rewriter).make(number)
        except InfraError:
            raise
        except PalestraError as error:
            self._watch.say(f"{origin}: gives no tasks: {error.message}")
            return Forged(origin=origin, project=project, problem=error.message)
        return Forged(origin=origin, project=project, made=made, num_stable=len(stable.tests))

    async def _stable(self, project: Project) -> Stable:
        if not project.tests or not project.sources:
            what = "tests" if not project.tests else "modules to seed bugs into"
            raise TaskError(f"{project.name}: has no {what}")
        suites = [Suite(project, self._grader, options=options) for options in option_sets()]
        stable = await find_stable(
            suites,
            name=project.name,
            checkout=project.checkout,
            timeout_s=self._plan.suite_limit_s,
        )
        unsteady = f", {stable.num_unsteady} unsteady" if stable.num_unsteady else ""
        self._watch.say(
            f"{project.name} {project.version}: {len(stable.tests)} stable tests{unsteady}, "
            f"{stable.duration_s:.1f} s, {len(project.sources)} modules"
        )
        return stable

    def _maker(self, project: Project, stable: Stable, rewriter: Rewriter | None) -> Maker:
        plan = self._plan
        how = Conditions(seed=plan.seed, at_once=plan.at_once)
        journal = Journal(
            plan.folder / "journal",
            project.name,
            {
                "forge": FORGE_VERSION,
                "image": project.image,
                "commit": project.commit,
                "seed": plan.seed,
                "options": list(stable.suite.options),
                "tests": list(stable.tests),
                "gold_runs": plan.gold_runs,
                "grading": asdict(conditions_of(plan.recipe, self._backend.name)),
                **({"model": plan.rewriting.name} if plan.rewriting else {}),
            },
        )
        return Maker(
            project,
            stable,
            self._certify,
            journal,
            how,
            rewriter=rewriter,
            on_tried=lambda tried: self._watch.on_tried(project, tried),
        )

    def _grader(self, timeout_s: float) -> SandboxGrader:
        return self._grader_on(self._backend, timeout_s)

    def _grader_on(self, backend: SandboxBackend, timeout_s: float) -> SandboxGrader:
        return SandboxGrader(
            backend, self._limits, eval_timeout_s=timeout_s, section=self._plan.recipe.grading
        )

    async def _certify(self, task: Task) -> Certificate:
        plan = self._plan
        timeout_s = plan.recipe.environment.eval_timeout_s
        bench = SandboxBench(self._backend, lambda metered: self._grader_on(metered, timeout_s))
        identity = await bench.identify(task)
        patches = [("noop", ""), *[("gold", task.gold_patch)] * plan.gold_runs]
        runs = [await bench.grade(task, name, patch) for name, patch in patches]
        return certificate(
            task,
            conditions_of(plan.recipe, self._backend.name),
            runs,
            image_identity=identity,
        )


def rows_of(
    results: Sequence[Forged], *, heldout: Callable[[str], bool]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows to train on and those held out, each with its split, in the order of making."""
    train: list[dict[str, Any]] = []
    held: list[dict[str, Any]] = []
    for forged in results:
        for tried in forged.made.tasks if forged.made else ():
            is_held = forged.project is not None and heldout(forged.project.name)
            row = {**(tried.row or {}), "split": "heldout" if is_held else "train"}
            (held if is_held else train).append(row)
    return train, held
