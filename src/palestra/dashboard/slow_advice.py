"""What of a recipe to change so that a run gets faster: keys, numbers and reasons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from palestra.config import Recipe
from palestra.dashboard.critical_path import Stage
from palestra.dashboard.run_log import EpisodeEntry, StepEntry
from palestra.report.words import duration, percent

MIN_SHARE = 0.1
"""A stage with a smaller share of the time is not worth a change."""
_FULL_LAG = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One thing to change.

    Attributes:
        key: of the recipe, or a command.
        now: its value in this run; ``None`` for a command.
        change: what to do with it.
        reason: what was seen, with numbers.
        share: of the steps' time that it is about.
    """

    key: str
    now: str | None
    change: str
    reason: str
    share: float


def advise(
    recipe: Recipe, steps: Sequence[StepEntry], shares: Mapping[Stage, float]
) -> tuple[Advice, ...]:
    """Say what to change, what concerns the largest share first; never more than is known.

    Args:
        recipe: of the run.
        steps: that were looked at.
        shares: of their time, by stage.
    """
    episodes = [episode for step in steps for episode in step.episodes]
    found = [
        *_places(recipe, steps, shares),
        *_images(recipe, episodes, shares),
        *_starts(recipe, episodes, shares),
        *_model(recipe, steps, shares),
        *_overlap(recipe, steps),
        *_staleness(recipe, steps),
        *_commands(recipe, episodes, shares),
        *_grading(recipe, episodes, shares),
        *_learning(recipe, steps, shares),
        *_waste(recipe, steps, shares),
        *_trouble(recipe, episodes, shares),
    ]
    return tuple(sorted(found, key=lambda advice: -advice.share))


def _places(
    recipe: Recipe, steps: Sequence[StepEntry], shares: Mapping[Stage, float]
) -> Iterator[Advice]:
    wanted = recipe.rollouts.groups_per_step * recipe.rollouts.group_size
    given = recipe.environment.concurrency
    waited = sum(
        shares.get(s, 0.0)
        for s in (Stage.START, Stage.COMMAND, Stage.GRADING, Stage.PULL, Stage.QUEUE)
    )
    if wanted > given and waited >= MIN_SHARE:
        yield Advice(
            key="environment.concurrency",
            now=str(given),
            change=f"raise it towards {wanted}, as far as cores and memory of the environment go",
            reason=f"a step runs {wanted} episodes, {given} at once: "
            f"{-(-wanted // given)} rounds one after the other",
            share=waited,
        )
    if shares.get(Stage.QUEUE, 0.0) >= MIN_SHARE:
        yield Advice(
            key="palestra serve --concurrency",
            now=None,
            change="raise it, or give the run a server of its own",
            reason="episodes waited for a place that other clients of the server held",
            share=shares[Stage.QUEUE],
        )


def _images(
    recipe: Recipe, episodes: Sequence[EpisodeEntry], shares: Mapping[Stage, float]
) -> Iterator[Advice]:
    share = shares.get(Stage.PULL, 0.0)
    if share < MIN_SHARE:
        return
    waits = [e.timings.image_s for e in episodes if e.timings and e.timings.image_s]
    yield Advice(
        key=f"palestra images pull {recipe.tasks.train}",
        now=None,
        change="bring the images before the run",
        reason=f"episodes waited {duration(sum(waits) / max(1, len(waits)))} on average "
        f"for their image, {duration(max(waits, default=0.0))} at most",
        share=share,
    )


def _starts(
    recipe: Recipe, episodes: Sequence[EpisodeEntry], shares: Mapping[Stage, float]
) -> Iterator[Advice]:
    share = shares.get(Stage.START, 0.0)
    if share < MIN_SHARE:
        return
    starts = [e.timings.start_s for e in episodes if e.timings and e.timings.start_s is not None]
    mean_s = sum(starts) / max(1, len(starts))
    yield Advice(
        key="sandbox.backend",
        now=recipe.sandbox.backend,
        change="bubblewrap starts in some 10 ms where the machine allows it (palestra doctor)",
        reason=f"a sandbox took {duration(mean_s)} to start on average",
        share=share,
    )


def _model(
    recipe: Recipe, steps: Sequence[StepEntry], shares: Mapping[Stage, float]
) -> Iterator[Advice]:
    share = shares.get(Stage.MODEL, 0.0)
    if share < MIN_SHARE:
        return
    at_once = min(
        recipe.environment.concurrency,
        recipe.rollouts.groups_per_step * recipe.rollouts.group_size,
    )
    if recipe.engine.kind == "local" and recipe.engine.max_batch < at_once:
        yield Advice(
            key="engine.max_batch",
            now=str(recipe.engine.max_batch),
            change=f"raise it to {at_once}, as far as memory goes",
            reason=f"{at_once} episodes are at work at once, "
            f"but {recipe.engine.max_batch} sequences are decoded together",
            share=share,
        )
    turns = [e.num_turns for step in steps for e in step.episodes]
    limit = recipe.agent.step_limit
    at_limit = sum(count >= limit for count in turns)
    if turns and at_limit >= MIN_SHARE * len(turns):
        yield Advice(
            key="agent.step_limit",
            now=str(limit),
            change="lower it, if episodes that come this far are hardly ever solved",
            reason=f"{percent(at_limit / len(turns))} of the episodes used all {limit} turns",
            share=share,
        )


def _overlap(recipe: Recipe, steps: Sequence[StepEntry]) -> Iterator[Advice]:
    trained_s = sum(s.metrics.get("time/train_s", 0.0) for s in steps)
    waited_s = sum(s.metrics.get("rollout/wait_s", 0.0) for s in steps)
    if recipe.rollouts.max_off_policy_steps == 0 and min(trained_s, waited_s) > 0:
        saved = min(trained_s, waited_s) / (trained_s + waited_s)
        if saved >= MIN_SHARE:
            yield Advice(
                key="rollouts.max_off_policy_steps",
                now="0",
                change="1 lets the next step's episodes run while this one is trained",
                reason=f"training took {duration(trained_s)} and episodes {duration(waited_s)}, "
                f"one after the other: at best {percent(saved)} is saved",
                share=saved,
            )


def _staleness(recipe: Recipe, steps: Sequence[StepEntry]) -> Iterator[Advice]:
    """Where groups are trained on as late as they may be, and steps wait for them all the same."""
    allowed = recipe.rollouts.max_off_policy_steps
    lags = [
        s.metrics["rollout/off_policy_steps_mean"]
        for s in steps
        if "rollout/off_policy_steps_mean" in s.metrics
    ]
    total_s = sum(s.metrics.get("time/step_s", 0.0) for s in steps)
    waited_s = sum(s.metrics.get("rollout/wait_s", 0.0) for s in steps)
    if not (allowed and lags and total_s):
        return
    lag = sum(lags) / len(lags)
    # So many steps is what a group has; one more spreads its slowest episode over them.
    saved = waited_s / total_s / (allowed + 2)
    if lag >= allowed - _FULL_LAG and saved >= MIN_SHARE:
        yield Advice(
            key="rollouts.max_off_policy_steps",
            now=str(allowed),
            change=f"{allowed + 1} gives slow episodes one more step of time",
            reason=f"groups were trained on {lag:.1f} versions late, which is all they may, and "
            f"steps still waited {duration(waited_s)} of {duration(total_s)} for episodes: at "
            f"best {percent(saved)} is saved",
            share=saved,
        )


def _commands(
    recipe: Recipe, episodes: Sequence[EpisodeEntry], shares: Mapping[Stage, float]
) -> Iterator[Advice]:
    share = shares.get(Stage.COMMAND, 0.0)
    if share < MIN_SHARE:
        return
    times = [e.timings.env_s for e in episodes if e.timings and e.timings.env_s is not None]
    if not times:
        return
    limit_s = recipe.environment.step_timeout_s
    yield Advice(
        key="environment.step_timeout_s",
        now=f"{limit_s:g}",
        change="lower it below what the worst commands take, if they never end well",
        reason=f"commands took {duration(sum(times) / len(times))} of an episode on average, "
        f"{duration(max(times))} of the worst; one may take {duration(limit_s)}",
        share=share,
    )


def _grading(
    recipe: Recipe, episodes: Sequence[EpisodeEntry], shares: Mapping[Stage, float]
) -> Iterator[Advice]:
    share = shares.get(Stage.GRADING, 0.0)
    if share < MIN_SHARE:
        return
    times = [e.timings.eval_s for e in episodes if e.timings and e.timings.eval_s is not None]
    if not times:
        return
    spent = f"grading took {duration(sum(times) / len(times))} on average, {duration(max(times))} "
    spent += "at most"
    if not recipe.environment.reuse_verdicts:
        yield Advice(
            key="environment.reuse_verdicts",
            now="false",
            change="true grades equal patches of a task once, where its tests never flake",
            reason=spent,
            share=share,
        )
    if max(times) > 3 * sum(times) / len(times):
        yield Advice(
            key="environment.eval_timeout_s",
            now=f"{recipe.environment.eval_timeout_s:g}",
            change="lower it, or leave tasks with slow tests out "
            "(palestra certify --fit lists their times)",
            reason=spent,
            share=share,
        )


def _learning(
    recipe: Recipe, steps: Sequence[StepEntry], shares: Mapping[Stage, float]
) -> Iterator[Advice]:
    share = shares.get(Stage.TRAIN, 0.0)
    if share >= MIN_SHARE:
        seconds = [s.metrics["time/train_s"] for s in steps if "time/train_s" in s.metrics]
        mean_s = duration(sum(seconds) / max(1, len(seconds)))
        yield Advice(
            key="training.microbatch_tokens",
            now=str(recipe.training.microbatch_tokens),
            change="raise it, as far as memory goes",
            reason=f"a step trained for {mean_s} on average",
            share=share,
        )
    share = shares.get(Stage.PUBLISH, 0.0)
    if share >= MIN_SHARE:
        seconds = [s.metrics["time/publish_s"] for s in steps if "time/publish_s" in s.metrics]
        mean_s = duration(sum(seconds) / max(1, len(seconds)))
        yield Advice(
            key="runs",
            now=str(recipe.runs),
            change="put the run directory on a faster disk, or in memory",
            reason=f"writing weights and handing them to the engine took {mean_s} a step",
            share=share,
        )


def _waste(
    recipe: Recipe, steps: Sequence[StepEntry], shares: Mapping[Stage, float]
) -> Iterator[Advice]:
    groups = [group for step in steps for group in step.groups]
    equal = sum(group.drop_reason == "all_equal" for group in groups)
    if not groups or equal < 0.25 * len(groups):
        return
    waited = 1.0 - shares.get(Stage.TRAIN, 0.0) - shares.get(Stage.PUBLISH, 0.0)
    yield Advice(
        key="tasks.train",
        now=recipe.tasks.train,
        change="leave out tasks that are never or always solved "
        "(palestra why tells which); or lower rollouts.max_refill",
        reason=f"{equal} of {len(groups)} groups had equal rewards: their episodes ran for nothing",
        share=waited * equal / len(groups),
    )


def _trouble(
    recipe: Recipe, episodes: Sequence[EpisodeEntry], shares: Mapping[Stage, float]
) -> Iterator[Advice]:
    share = shares.get(Stage.RETRY, 0.0)
    if share < MIN_SHARE:
        return
    retried = sum(e.num_retries > 0 for e in episodes)
    yield Advice(
        key="rollouts.infra_retries",
        now=str(recipe.rollouts.infra_retries),
        change="mend what fails first (its error is in the event log, kind rollout.retry)",
        reason=f"{retried} of {len(episodes)} episodes were run again",
        share=share,
    )
