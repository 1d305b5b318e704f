"""``report.html``: one file that needs nothing else and runs no script."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from palestra.config import Recipe
from palestra.errors import HostError
from palestra.report.comparison import Comparison, compare
from palestra.report.examples import choose_examples
from palestra.report.figures import health_figures, learning_figures
from palestra.report.interval_chart import interval_chart
from palestra.report.run_record import RunRecord
from palestra.report.summary import evaluation_command
from palestra.report.time_use import clock_stages, episode_stages, total_s
from palestra.report.visible import diff_line, shown
from palestra.report.words import count, duration, from_here, interval_words, percent, plural

_TEMPLATES = "templates"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A line of the table of facts."""

    name: str
    value: str


def write_report(record: RunRecord) -> Path:
    """Write the page of a run into its directory; it is whole or not there.

    Raises:
        HostError: it cannot be written.
    """
    target = record.run.report
    temporary = target.with_name(f".report-{os.getpid()}.tmp")
    try:
        # What a model wrote may hold half a character; the page says so and goes on.
        temporary.write_text(render(record), encoding="utf-8", errors="backslashreplace")
        temporary.replace(target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise HostError.from_os(error, doing="cannot write the report") from error
    return target


def render(record: RunRecord) -> str:
    """The page as text."""
    comparisons = compare(record.evaluations)
    measured = [c for c in comparisons if any(_has_rate(m) for m in (c.before, c.after))]
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            name=record.recipe.name,
            when=_when(record),
            steps=record.steps[-1].step if record.steps else 0,
            planned_steps=record.recipe.training.steps,
            did=_did(record),
            comparisons=measured,
            headline=_headline(measured),
            charts={c.mode: interval_chart(c) for c in measured},
            learning=learning_figures(record, comparisons),
            health=health_figures(record),
            examples=choose_examples(comparisons),
            clock=clock_stages(record),
            clock_total_s=total_s(record),
            inside=episode_stages(record),
            facts=_facts(record),
            settings=_settings(record.recipe),
        )
    )


def _has_rate(measured: object) -> bool:
    return getattr(measured, "rate", None) is not None


def _headline(comparisons: list[Comparison]) -> str:
    """One honest sentence; the numbers stand below it."""
    verdicts = [_verdict(comparison) for comparison in comparisons]
    if not comparisons:
        return "This run evaluated no held-out tasks."
    if all(c.after is None for c in comparisons):
        return "Measured before training; there is no held-out evaluation after it."
    if any(verdict is None for verdict in verdicts):
        return "Held-out solve rates; not every mode has a before and an after to compare."
    if all(verdict == "up" for verdict in verdicts):
        return "The agent solves more held-out tasks than before, beyond the 95 % intervals."
    if all(verdict == "down" for verdict in verdicts):
        return "The agent solves fewer held-out tasks than before, beyond the 95 % intervals."
    if all(verdict == "same" for verdict in verdicts):
        return "The 95 % intervals overlap: this run does not show that the agent changed."
    changed = ", ".join(
        f"{c.mode} {_WORDS[v]}" for c, v in zip(comparisons, verdicts, strict=True) if v
    )
    return f"The modes differ: {changed}."


_WORDS = {
    "up": "rises beyond its 95 % intervals",
    "down": "falls beyond its 95 % intervals",
    "same": "has overlapping intervals",
}


def _verdict(comparison: Comparison) -> str | None:
    before, after = comparison.before, comparison.after
    if not comparison.is_like_with_like or before is None or after is None:
        return None
    if before.rate is None or after.rate is None:
        return None
    if not comparison.is_separate:
        return "same"
    return "up" if after.rate > before.rate else "down"


def _when(record: RunRecord) -> str:
    if not record.processes:
        return ""
    ended = datetime.fromtimestamp(record.processes[-1].ended_s, tz=UTC)
    return ended.strftime("%-d %B %Y, %H:%M UTC")


def _did(record: RunRecord) -> str:
    parts = [plural(record.steps[-1].step, "step")] if record.steps else []
    for name, noun in (
        ("rollout/episodes", "episode"),
        ("rollout/sampled_tokens_sum", "sampled token"),
    ):
        total = record.total(name)
        if total is not None:
            parts.append(plural(total, noun))
    if record.processes:
        parts.append(duration(total_s(record)))
    return " · ".join(parts)


def _facts(record: RunRecord) -> tuple[Fact, ...]:
    """What the run stood on, and how to use what it left; an unknown fact is left out."""
    found = next((p.facts for p in reversed(record.processes) if p.facts), None)
    facts = []
    if found is not None:
        memory = f", {count(found.memory_bytes / 2**30)} GiB" if found.memory_bytes else ""
        machine = f"{found.processor}, {plural(found.num_cpus, 'core')}{memory}"
        facts += [
            Fact(name="Command", value=found.command),
            Fact(name="Versions", value=", ".join(found.versions)),
            Fact(name="Machine", value=", ".join([machine, *found.accelerators])),
            Fact(name="System", value=found.system),
        ]
    if len(record.processes) > 1:
        facts.append(Fact(name="Resumed", value=plural(len(record.processes) - 1, "time")))
    if record.checkpoint is not None:
        model = record.run.checkpoints / str(record.checkpoint) / "model"
        facts.append(Fact(name="Checkpoint", value=from_here(model)))
        command = evaluation_command(record, model)
        if command is not None:
            facts.append(Fact(name="Measure it", value=command))
    return tuple(facts)


def _settings(recipe: Recipe) -> tuple[Fact, ...]:
    rollouts, training = recipe.rollouts, recipe.training
    correction = training.correction
    temperature = recipe.evaluation.temperature or recipe.sampling.temperature
    pairs = {
        "Seed": str(recipe.seed),
        "Training tasks": recipe.tasks.train,
        "Held-out tasks": recipe.tasks.heldout or "none",
        "Model": recipe.model.path,
        "Agent": f"{recipe.agent.name}, prompt {recipe.agent.prompt}, "
        f"at most {plural(recipe.agent.step_limit, 'turn')}",
        "Sandbox": recipe.sandbox.backend,
        "A step": f"{plural(rollouts.groups_per_step, 'group')} of "
        f"{rollouts.group_size} episodes at temperature {recipe.sampling.temperature:g}",
        "Staleness": f"at most {plural(rollouts.max_off_policy_steps, 'step')} off policy",
        "Optimizer": f"learning rate {training.lr:g} ({training.lr_decay}), "
        f"KL weight {training.kl_coef:g}",
        "Loss": f"{training.loss}: advantages {training.objective.advantage}, ratios of each "
        f"{training.objective.ratio}, {training.objective.aggregation}",
        "Correction": correction.mode
        if correction.mode == "off"
        else f"{correction.mode} where the importance ratio is outside {correction.low:g} to "
        f"{correction.high:g}",
        "Evaluation": f"sampled at temperature {temperature:g}, "
        f"{plural(recipe.evaluation.attempts, 'attempt')} a task; greedy at 0",
    }
    return tuple(Fact(name=name, value=value) for name, value in pairs.items())


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_template),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "interval": interval_words,
        "duration": duration,
        "shown": shown,
        "diff_line": diff_line,
    }
    environment.globals["style"] = Markup(_template("style.css"))  # our own file
    return environment


def _template(name: str) -> str:
    return files("palestra.report").joinpath(_TEMPLATES, name).read_text(encoding="utf-8")
