"""Certificates: what a task's own patches were worth when they were graded, and under what.

A task is fit to be trained on when doing nothing fails, its gold patch passes, and passes each
time. That holds for one row, one grader, one backend and its limits; a certificate says which.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import orjson
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from palestra.config import GradingSection
from palestra.environment.sandboxes.protocol import SandboxLimits
from palestra.errors import HostError
from palestra.records import Task, Verdict
from palestra.tasks.rows import task_to_row

GRADER_VERSION = 3
"""Raised whenever a change of ours can change a verdict; older certificates then do not count."""


class CertificateStatus(StrEnum):
    """What the runs say about a task; the first that applies, in this order."""

    NOOP_PASSES = "noop_passes"
    GOLD_FAILS = "gold_fails"
    FLAKY = "flaky"
    TOO_SLOW = "too_slow"
    CERTIFIED = "certified"


@checked_dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class GradedRun:
    """One grading of one of the task's own patches.

    Attributes:
        patch: ``noop`` or ``gold``.
        resolved: whether the verdict was that the task is solved.
        duration_s: of the grading.
        failed: the task's tests that did not end as the task wants.
        peak_memory_bytes: of its sandbox; ``None`` where nobody counts.
        findings: why its result was not believed.
    """

    patch: str
    resolved: bool
    duration_s: float
    failed: tuple[str, ...]
    peak_memory_bytes: int | None = None
    findings: tuple[str, ...] = ()


@checked_dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Conditions:
    """What a certificate is bound to, besides its row."""

    grader: int
    backend: str
    memory_bytes: int
    num_pids: int
    disk_bytes: int
    eval_timeout_s: float
    policy_sha256: str

    @classmethod
    def of(
        cls,
        backend: str,
        limits: SandboxLimits,
        *,
        eval_timeout_s: float,
        policy: GradingSection | None = None,
    ) -> Conditions:
        """Those of the present grader.

        Args:
            backend: by name.
            limits: of each sandbox.
            eval_timeout_s: seconds that the tests may take.
            policy: what of a patch counts; ``None``: the defaults.
        """
        rules = (policy or GradingSection()).model_dump_json()
        return cls(
            grader=GRADER_VERSION,
            backend=backend,
            memory_bytes=limits.memory_bytes,
            num_pids=limits.num_pids,
            disk_bytes=limits.disk_bytes,
            eval_timeout_s=eval_timeout_s,
            policy_sha256=hashlib.sha256(rules.encode()).hexdigest(),
        )


@checked_dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Certificate:
    """What was seen of one task.

    Attributes:
        instance_id: of the task.
        row_sha256: of the row that it came from (:func:`row_hash`).
        image: by name.
        image_identity: what the image was made of, as the backend tells
            (:meth:`~palestra.environment.sandboxes.protocol.SandboxBackend.identify`): a digest,
            ``folder:…`` for a registered folder, ``host`` for the host's own userland.
        conditions: under which it was graded.
        max_s: what one grading may take to be fit; ``None``: anything.
        runs: the gradings, in their order.
        status: what they come to.
        flaky_tests: tests of the task that did not end alike in all gold runs, or that must
            hold whatever is done and did not with nothing done.
    """

    instance_id: str
    row_sha256: str
    image: str
    image_identity: str
    conditions: Conditions
    max_s: float | None
    runs: tuple[GradedRun, ...]
    status: CertificateStatus
    flaky_tests: tuple[str, ...]

    @property
    def num_gold_runs(self) -> int:
        """How often the gold patch was graded."""
        return sum(run.patch == "gold" for run in self.runs)

    @property
    def longest_s(self) -> float:
        """Of its gradings."""
        return max(run.duration_s for run in self.runs)

    @property
    def peak_memory_bytes(self) -> int | None:
        """Of its gradings; ``None`` where nobody counted."""
        return max((run.peak_memory_bytes or 0 for run in self.runs), default=0) or None


def row_hash(task: Task) -> str:
    """SHA-256 of the row of ``task``, whatever the order of its fields.

    What it is a part of does not count: preparing data writes that into each row.
    """
    fields = {k: v for k, v in task_to_row(task).items() if k not in ("subset", "split")}
    row = orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(row).hexdigest()


def graded(patch: str, verdict: Verdict, *, peak_memory_bytes: int | None = None) -> GradedRun:
    """The run that ended in ``verdict``."""
    failed = (*verdict.fail_to_pass.failure, *verdict.pass_to_pass.failure)
    return GradedRun(
        patch=patch,
        resolved=verdict.resolved,
        duration_s=verdict.duration_s,
        failed=failed,
        peak_memory_bytes=peak_memory_bytes,
        findings=verdict.findings,
    )


def certificate(
    task: Task,
    conditions: Conditions,
    runs: Sequence[GradedRun],
    *,
    image_identity: str,
    max_s: float | None = None,
) -> Certificate:
    """What ``runs`` come to.

    Raises:
        ValueError: there is no run without a patch, or none of the gold patch.
    """
    noop = [run for run in runs if run.patch == "noop"]
    gold = [run for run in runs if run.patch == "gold"]
    if not noop or not gold:
        raise ValueError(f"{task.instance_id}: a certificate needs a noop and a gold run")
    failures = Counter(test for run in gold for test in set(run.failed))
    unsteady = {test for test, count in failures.items() if count < len(gold)}
    must_hold = set(task.pass_to_pass) - set(failures)
    unsteady |= {test for run in noop for test in run.failed if test in must_hold}
    flaky = tuple(sorted(unsteady))
    if any(run.resolved for run in noop):
        status = CertificateStatus.NOOP_PASSES
    elif not any(run.resolved for run in gold):
        status = CertificateStatus.GOLD_FAILS
    elif flaky or not all(run.resolved for run in gold):
        status = CertificateStatus.FLAKY
    elif max_s is not None and max(run.duration_s for run in runs) > max_s:
        status = CertificateStatus.TOO_SLOW
    else:
        status = CertificateStatus.CERTIFIED
    return Certificate(
        instance_id=task.instance_id,
        row_sha256=row_hash(task),
        image=task.image,
        image_identity=image_identity,
        conditions=conditions,
        max_s=max_s,
        runs=tuple(runs),
        status=status,
        flaky_tests=flaky,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateFile:
    """Certificates as lines of JSON, each on the disk before the next task is begun."""

    path: Path

    def read(self) -> Iterator[Certificate]:
        """Every certificate, oldest first; a line that a crash cut short is passed over.

        Raises:
            HostError: the file cannot be read.
        """
        try:
            lines = self.path.read_bytes().splitlines() if self.path.exists() else []
        except OSError as error:
            raise HostError.from_os(error, doing="cannot read certificates") from error
        for line in lines:
            try:
                yield _CERTIFICATE.validate_json(line)
            except ValidationError:
                continue  # cut short, or of another version: the task is certified anew

    def append(self, certificates: Iterable[Certificate]) -> None:
        """Write certificates behind the others.

        Raises:
            HostError: the file cannot be written.
        """
        try:
            with self.path.open("a+b") as file:
                if file.tell() and not self._ends_in_newline():
                    file.write(b"\n")
                for one in certificates:
                    file.write(_CERTIFICATE.dump_json(one) + b"\n")
        except OSError as error:
            raise HostError.from_os(error, doing="cannot write certificates") from error

    def _ends_in_newline(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(-1, 2)
            return file.read(1) == b"\n"


_CERTIFICATE = TypeAdapter(Certificate)
