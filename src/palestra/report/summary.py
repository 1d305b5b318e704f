"""The few lines that a run ends with."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from palestra.report.comparison import Comparison, Measured, compare, outcome_counts
from palestra.report.run_record import RunRecord
from palestra.report.time_use import clock_stages, total_s
from palestra.report.words import (
    OUTCOMES,
    duration,
    from_here,
    interval_words,
    percent,
    plural,
)

_INDENT = "  "
_MIN_SHARE = 0.005


def summary_lines(record: RunRecord) -> list[str]:
    """What the run did, where it lies, and how to use it; aligned, no line is needed twice."""
    lines = [*_held_out(compare(record.evaluations))]
    if record.steps:
        lines += ["", "Training", *_training(record)]
    lines += ["", "Files", *_files(record)]
    return lines[1:] if lines and not lines[0] else lines


def evaluation_command(record: RunRecord, model: Path) -> str | None:
    """The ``palestra eval`` that measures ``model`` on the held-out tasks as the run did."""
    recipe = record.recipe
    if recipe.tasks.heldout is None:
        return None
    temperature = recipe.evaluation.temperature or recipe.sampling.temperature
    options = {
        "--agent": recipe.agent.name,
        "--prompt": recipe.agent.prompt,
        "--step-limit": recipe.agent.step_limit,
        "--model": from_here(model),
        "--max-context": recipe.model.max_context,
        "--max-tokens": recipe.sampling.max_new_tokens,
        "--temperature": f"{temperature:g}",
        "--step-timeout": f"{recipe.environment.step_timeout_s:g}",
        "--eval-timeout": f"{recipe.environment.eval_timeout_s:g}",
        "--sandbox": recipe.sandbox.backend,
        "--concurrency": recipe.environment.concurrency,
    }
    if recipe.evaluation.attempts > 1:
        options["--samples"] = recipe.evaluation.attempts
    words = ["palestra", "eval", recipe.tasks.heldout]
    for option, value in options.items():
        words += [option, str(value)]
    return shlex.join(words)


def _held_out(comparisons: tuple[Comparison, ...]) -> Iterator[str]:
    if comparisons:
        yield "Held-out tasks, share solved with its 95 % interval"
    for comparison in comparisons:
        ends = [m for m in (comparison.before, comparison.after) if m is not None]
        line = " → ".join(_rate(m) for m in ends)
        graded = " and ".join(dict.fromkeys(str(m.num_graded) for m in ends))
        yield f"{_INDENT}{comparison.mode:<9} {line} of {graded}{_verdict(comparison)}"
        for name, measured in (("before", comparison.before), ("after", comparison.after)):
            if measured is not None:
                yield f"{_INDENT}{'':<9} {name:<6} {_outcomes(measured)}"
                if measured.pass_at:
                    yield f"{_INDENT}{'':<9} {'':<6} {_pass_at(measured)}"


def _rate(measured: Measured) -> str:
    if measured.rate is None or measured.interval is None:
        return "nothing graded"
    return f"{percent(measured.rate)} ({interval_words(measured.interval)})"


def _verdict(comparison: Comparison) -> str:
    if comparison.is_separate is None:
        return ""
    if not comparison.is_like_with_like:
        return "; not comparable: other tasks or another temperature"
    words = "do not overlap" if comparison.is_separate else "overlap"
    return f"; the intervals {words}"


def _outcomes(measured: Measured) -> str:
    counts = outcome_counts(measured.evaluation.episodes)
    return ", ".join(f"{n} {OUTCOMES[outcome]}" for outcome, n in counts)


def _pass_at(measured: Measured) -> str:
    found = measured.pass_at.items()
    return ", ".join(
        f"pass@{k} {percent(p.share)} ({interval_words(p.interval)})" for k, p in found
    )


def _training(record: RunRecord) -> Iterator[str]:
    steps = plural(record.steps[-1].step, "step")
    parts = [steps]
    for name, noun in (
        ("rollout/episodes", "episode"),
        ("rollout/sampled_tokens_sum", "sampled token"),
    ):
        total = record.total(name)
        if total is not None:
            parts.append(plural(total, noun))
    yield f"{_INDENT}{'done':<11} {', '.join(parts)}"
    stages = sorted(clock_stages(record), key=lambda stage: -stage.seconds)
    shown = (f"{s.name} {duration(s.seconds)}" for s in stages if s.share > _MIN_SHARE)
    yield f"{_INDENT}{'time':<11} {duration(total_s(record))}: {', '.join(shown)}"


def _files(record: RunRecord) -> Iterator[str]:
    run = record.run
    yield f"{_INDENT}{'run':<11} {from_here(run.root)}"
    if run.report.exists():
        yield f"{_INDENT}{'report':<11} {from_here(run.report)}"
    if record.checkpoint is None:
        return
    model = run.checkpoints / str(record.checkpoint) / "model"
    yield f"{_INDENT}{'checkpoint':<11} {from_here(model)}"
    command = evaluation_command(record, model)
    if command is not None:
        yield f"{_INDENT}{'use it':<11} {command}"
