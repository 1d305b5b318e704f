"""The gate before training: every task has a certificate, or the recipe says that none is asked.

Tasks that are generated here and now are sound by how they are made, and need none.

What is compared: the row, the image, the grader's version, the backend, its limits, the time
limit of the tests and the patch policy. Where the environment is on another machine, its backend
and its images cannot be seen, and are not compared.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from palestra.addresses import URL_VARIABLE
from palestra.config import Recipe
from palestra.environment.grading.certificates import (
    Certificate,
    CertificateFile,
    CertificateStatus,
    Conditions,
    row_hash,
)
from palestra.environment.sandboxes.choose import choose_backend
from palestra.environment.sandboxes.protocol import SandboxBackend, SandboxLimits
from palestra.errors import ImageError, TaskError
from palestra.records import Task
from palestra.run.places import images_folder, state_folder
from palestra.tasks.katas.spec import PREFIX

_IDS_SHOWN = 3
_REASONS = {
    CertificateStatus.NOOP_PASSES: "passes with nothing done",
    CertificateStatus.GOLD_FAILS: "its gold patch fails",
    CertificateStatus.FLAKY: "its tests do not repeat",
    CertificateStatus.TOO_SLOW: "takes too long",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A task that may not be trained on, and why."""

    instance_id: str
    reason: str


def limits_of(recipe: Recipe) -> SandboxLimits:
    """What the recipe lets one sandbox use."""
    return SandboxLimits(
        memory_bytes=recipe.sandbox.memory_mb << 20,
        num_pids=recipe.sandbox.num_pids,
        disk_bytes=recipe.sandbox.disk_mb << 20,
    )


def conditions_of(recipe: Recipe, backend_name: str) -> Conditions:
    """Under which the recipe has patches graded."""
    return Conditions.of(
        backend_name,
        limits_of(recipe),
        eval_timeout_s=recipe.environment.eval_timeout_s,
        policy=recipe.grading,
    )


async def require_certificates(
    recipe: Recipe, tasks: Sequence[Task], *, origin: Path, overrides: Sequence[str] = ()
) -> None:
    """Make sure that ``tasks`` may be trained on.

    Args:
        recipe: names the file of the certificates, or says that none are asked for.
        tasks: all that shall be trained on.
        origin: the recipe's file, for the command that would make the certificates.
        overrides: of the recipe, for the same.

    Raises:
        TaskError: some may not; names the first and the command that certifies them.
        SandboxUnavailable: no sandbox can be started here.
        HostError: the certificates cannot be read.
    """
    if recipe.tasks.uncertified == "train" or recipe.tasks.train.startswith(PREFIX):
        return
    command = _command(recipe, origin, overrides)
    if recipe.tasks.certificates is None:
        raise TaskError(
            f"nothing says that the tests of {recipe.tasks.train} can be trusted: "
            "tasks.certificates names no file",
            hint=f"{command}, and then train with --set tasks.certificates=certificates.jsonl; "
            'or set tasks.uncertified to "train"',
        )
    file = CertificateFile(path=recipe.tasks.certificates)
    refusals = refused(tasks, list(file.read()), await _ground(recipe, tasks))
    if refusals:
        first = ", ".join(f"{one.instance_id} ({one.reason})" for one in refusals[:_IDS_SHOWN])
        more = f" and {len(refusals) - _IDS_SHOWN} more" if len(refusals) > _IDS_SHOWN else ""
        raise TaskError(
            f"{len(refusals)} of {len(tasks)} tasks have no valid certificate in {file.path}: "
            f"{first}{more}",
            hint=f"{command}; its --fit FILE writes the tasks that are fit; "
            'or set tasks.uncertified to "train"',
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What the certificates must have been made on.

    Attributes:
        conditions: those of the run.
        identities: of the images that are here, by name; ``None``: they cannot be seen, and
            neither can the backend.
    """

    conditions: Conditions
    identities: Mapping[str, str] | None


def refused(
    tasks: Sequence[Task], certificates: Sequence[Certificate], ground: Ground
) -> list[Refusal]:
    """The tasks that have no valid certificate, in their order; a pure function."""
    by_row: dict[str, list[Certificate]] = {}
    ids = {one.instance_id for one in certificates}
    for one in certificates:
        by_row.setdefault(one.row_sha256, []).append(one)
    refusals = []
    for task in tasks:
        reason = _reason(task, by_row.get(row_hash(task), []), ground)
        if reason is not None:
            if reason == _NONE and task.instance_id in ids:
                reason = "its row has changed"
            refusals.append(Refusal(instance_id=task.instance_id, reason=reason))
    return refusals


_NONE = "no certificate"


def _reason(task: Task, found: Sequence[Certificate], ground: Ground) -> str | None:
    if not found:
        return _NONE
    identities = ground.identities
    if identities is not None and task.image not in identities:
        return "its image is not here: palestra images pull brings it"
    same = [one for one in found if _is_alike(one.conditions, ground)]
    if not same:
        return "certified under other conditions"
    if identities is not None:
        same = [one for one in same if one.image_identity == identities[task.image]]
    if not same:
        return "its image has changed"
    return _REASONS.get(same[-1].status)  # the newest


def _is_alike(conditions: Conditions, ground: Ground) -> bool:
    if ground.identities is None:
        conditions = replace(conditions, backend=ground.conditions.backend)
    return conditions == ground.conditions


async def _ground(recipe: Recipe, tasks: Sequence[Task]) -> Ground:
    if recipe.environment.url or os.environ.get(URL_VARIABLE):
        return Ground(conditions=conditions_of(recipe, ""), identities=None)
    choice = await choose_backend(recipe.sandbox, state_dir=state_folder(), images=images_folder())
    identities = {}
    for image in dict.fromkeys(task.image for task in tasks):
        identity = await _identity(choice.backend, image)
        if identity is not None:
            identities[image] = identity
    return Ground(conditions=conditions_of(recipe, choice.backend.name), identities=identities)


async def _identity(backend: SandboxBackend, image: str) -> str | None:
    try:
        return await backend.identify(image)
    except ImageError:
        return None


def _command(recipe: Recipe, origin: Path, overrides: Sequence[str]) -> str:
    words = ["palestra", "certify", "--recipe", str(origin)]
    words += [word for override in overrides for word in ("--set", override)]
    words += [] if recipe.tasks.certificates else ["--out", "certificates.jsonl"]
    return shlex.join(words)
