"""Why a run is slow, and why it is flat, in lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from palestra.dashboard.flat import FlatReport
from palestra.dashboard.group_signal import GroupKind
from palestra.dashboard.slow import STAGE_WORDS, SlowEpisode, SlowReport
from palestra.report.words import count, duration, percent, plural

_INDENT = "  "
_MIN_SHARE = 0.005
_MAX_NAMED = 5
_MAX_COMMAND_CHARS = 60
_MIN_COMMAND_SHARE = 0.1

KIND_WORDS = {
    GroupKind.MIXED: "mixed: only these have a signal",
    GroupKind.ALL_ZERO: "all zero",
    GroupKind.ALL_ONE: "all one",
    GroupKind.UNGRADED: "without two rewards",
}


def slow_lines(report: SlowReport) -> Iterator[str]:
    """The verdict, where the time went, the worst episodes, what to change."""
    yield f"Why slow: {report.verdict}"
    for time in report.stages:
        if time.share >= _MIN_SHARE:
            words = STAGE_WORDS[time.stage]
            yield f"{_INDENT}{percent(time.share):>7} {duration(time.seconds):>11}  {words}"
    if report.between_s > 1.0:
        yield f"{_INDENT}and {duration(report.between_s)} between steps: checkpoints, evaluations"
    if report.worst:
        yield ""
        yield "Episodes that steps waited for longest"
        yield from (f"{_INDENT}{_episode(slow)}" for slow in report.worst)
    if report.advice:
        yield ""
        yield "What to change"
    for advice in report.advice:
        now = "" if advice.now is None else f" = {advice.now}"
        yield f"{_INDENT}{advice.key}{now}: {advice.change}"
        yield f"{_INDENT * 2}{advice.reason} ({percent(advice.share)} of the time)"


def flat_lines(report: FlatReport) -> Iterator[str]:
    """The verdict and what else holds, the groups, the filters, the tasks, the trouble."""
    yield f"Why flat: {report.verdict}"
    for finding in report.findings[1:]:
        yield f"{_INDENT}also: {finding.sentence}"
    for finding in report.findings:
        if finding.change is not None:
            yield f"{_INDENT}change: {finding.change}"
    if not report.steps:
        return
    yield ""
    num_groups = sum(report.groups.values())
    yield f"Groups: {count(num_groups)} in {plural(len(report.steps), 'step')}"
    for kind, words in KIND_WORDS.items():
        if found := report.groups.get(kind, 0):
            yield f"{_INDENT}{percent(found / num_groups):>7} {count(found):>6}  {words}"
    for reason, share in sorted(report.drop_shares.items(), key=lambda item: -item[1]):
        yield f"{_INDENT}{percent(share):>7} {count(report.drops[reason]):>6}  dropped as {reason}"
    yield (
        f"{_INDENT}effective batch {report.effective_batch:.1f} episodes a step "
        f"of {report.planned_batch} planned"
    )
    yield ""
    yield from _tasks(report)
    yield f"Tampered {count(report.num_tampered)}, infra errors {count(report.num_infra_errors)}"
    for error, times in report.errors:
        yield f"{_INDENT}{times} x {error}"


def _episode(slow: SlowEpisode) -> str:
    text = f"{slow.rollout_id} ({slow.instance_id}, step {slow.step}): {duration(slow.lasted_s)}"
    if slow.critical_s:
        text += f", waited for {duration(slow.critical_s)}"
    if slow.longest is not None:
        text += f"; {percent(slow.longest.share)} {slow.longest.stage.value}"
    command = slow.command
    if command is not None and command.duration_s >= _MIN_COMMAND_SHARE * slow.lasted_s:
        line = " ".join(command.command.split())
        cut = "…" if len(line) > _MAX_COMMAND_CHARS else ""
        text += f"; longest command {duration(command.duration_s)}: "
        text += f"{line[:_MAX_COMMAND_CHARS]!a}{cut}"
    return text


def _tasks(report: FlatReport) -> Iterator[str]:
    tasks = report.tasks
    again = count(tasks.num_seen_twice)
    yield f"Tasks: {count(tasks.num_seen)} seen, {again} of them twice or more"
    for names, words in (
        (tasks.never, "never solved"),
        (tasks.always, "always solved"),
        (tasks.newly_solved, "newly solved"),
        (tasks.forgotten, "forgotten"),
    ):
        shown = ", ".join(names[:_MAX_NAMED])
        more = f", … {count(len(names) - _MAX_NAMED)} more" if len(names) > _MAX_NAMED else ""
        yield f"{_INDENT}{count(len(names)):>6}  {words}{': ' if names else ''}{shown}{more}"
