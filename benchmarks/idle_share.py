"""How long GPUs do nothing while a run trains: synchronous against asynchronous.

The training loop, the scheduler and the collector are the real ones. Episodes come from a scripted
environment in which one in five takes five times as long, drawn from a seed. By default GPUs are
clocks on which sampling and training take given seconds of virtual time, so the numbers are those
of the schedule, not of this machine. A GPU is idle while it neither samples nor trains: with a GPU
for each half each is looked at alone; one GPU for both trains and samples in turns. Modes take
turns in one process; the first steps are not counted.

    python benchmarks/idle_share.py [--steps 10] [--rounds 1] [--train 1.2]
    python benchmarks/idle_share.py --device cuda [--model FOLDER] [--engine URL]

On a real GPU the same episodes talk to a real gateway and engine, and steps are the real trainer's
(idle_cuda.py). A normal episode's commands then take two thirds of what its turns take when all
episodes of a step are sampled at once, which is measured first. What the driver calls busy is read
besides.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from idle_parts import (
    EpisodeShape,
    Gpu,
    Record,
    StepClock,
    VirtualLoop,
    result_of,
    scripted_task,
)

from palestra.config import CheckpointSection, Recipe, RolloutsSection, SamplingSection
from palestra.learning.fake import FakeLearner, FakePublisher
from palestra.learning.loop import TrainingLoop
from palestra.learning.protocols import Learner, WeightPublisher
from palestra.learning.rollouts.collector import RolloutCollector
from palestra.learning.rollouts.fake import FakeGateway
from palestra.learning.rollouts.protocol import Environment, Gateway
from palestra.learning.rollouts.scheduler import RolloutScheduler
from palestra.learning.rollouts.task_order import TaskOrder
from palestra.records import EpisodeResult, Group, Task

WARMUP_STEPS = 3
NUM_TASKS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One mode of a run.

    Attributes:
        ahead: max_off_policy_steps.
        colocated: whether one GPU does both.
        train_s: of a step.
        groups: of a step.
        group_size: episodes of a group.
        concurrency: most episodes at once; 0: all that the scheduler wants.
        places: sequences that the engine samples at once.
        steps: to measure, after the first few.
        seed: of the episodes.
        shape: of the episodes.
        sampling: of each turn.
    """

    ahead: int
    colocated: bool
    train_s: float
    groups: int
    group_size: int
    concurrency: int
    places: int
    steps: int
    seed: int
    shape: EpisodeShape
    sampling: SamplingSection = field(default_factory=SamplingSection)

    @property
    def name(self) -> str:
        """As the table calls it."""
        return "synchronous" if self.ahead == 0 else f"asynchronous, {self.ahead}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a mode came to, per step and as shares of the time."""

    step_s: float
    engine_idle: float
    trainer_idle: float
    both_idle: float
    sequences: float
    lag: float
    stale: float
    train_s: float
    driver_idle: float | None = None


class ScriptedEnvironment:
    """Plays episodes of a shape on a GPU that is a clock."""

    def __init__(self, setting: Setting, gpu: Gpu, gateway: FakeGateway) -> None:
        self._setting = setting
        self._gpu = gpu
        self._gateway = gateway
        self._counts: dict[str, int] = {}

    async def run(
        self, task: Task, *, sglang_url: str, sampling: SamplingSection, idempotency_key: str
    ) -> EpisodeResult:
        """Play the next episode of a task."""
        shape, session_id = self._setting.shape, sglang_url.split("/")[-2]
        number = self._counts[task.instance_id] = self._counts.get(task.instance_id, -1) + 1
        factor, reward = shape.drawn(self._setting.seed, task, number)
        for _ in range(shape.num_turns):
            await self._gpu.sample(shape.model_s)
            self._gateway.sample(session_id)
            await asyncio.sleep(shape.command_s * factor)
        await asyncio.sleep(shape.grading_s * factor)
        return result_of(task, idempotency_key, reward, shape.num_turns)


class TimedLearner(FakeLearner):
    """Learns nothing, for a given time, on a GPU that is a clock."""

    def __init__(self, gpu: Gpu, train_s: float) -> None:
        super().__init__()
        self._gpu = gpu
        self._train_s = train_s

    def train_step(self, groups: Sequence[Group]) -> dict[str, float]:
        """Take the time of a step."""
        self._gpu.train(self._train_s)
        return super().train_step(groups)


async def on_clock(setting: Setting, folder: Path) -> Seen:
    """Run one mode on GPUs that are a clock."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    record, gateway = Record(loop.time), FakeGateway()
    gpu = Gpu(record, places=setting.places, colocated=setting.colocated, loop=loop)
    clock = await train(
        setting,
        folder,
        clock=StepClock(loop.time),
        environment=ScriptedEnvironment(setting, gpu, gateway),
        gateway=gateway,
        learner=TimedLearner(gpu, setting.train_s),
        publisher=FakePublisher(gateway),
    )
    return seen(record, clock)


async def on_device(setting: Setting, recipe: Recipe, folder: Path) -> Seen:
    """Run one mode on a real device."""
    from idle_cuda import driver_reading, real_parts

    record = Record()
    with driver_reading() as driver:
        async with real_parts(recipe, setting.shape, setting.seed, record, folder) as parts:
            clock = await train(
                setting,
                folder,
                clock=StepClock(time.monotonic),
                environment=parts.environment,
                gateway=parts.gateway,
                learner=parts.learner,
                publisher=parts.publisher,
            )
    found = seen(record, clock)
    busy = driver.busy(clock.ended_s[WARMUP_STEPS - 1], clock.ended_s[-1])
    return replace(found, driver_idle=None if busy is None else 1 - busy)


class NoCheckpoints:
    """Saves nothing."""

    def save(self, step: int, learner: Learner, progress: Mapping[str, Any], /) -> Path:
        """Save nothing."""
        return Path()


async def train(
    setting: Setting,
    folder: Path,
    *,
    clock: StepClock,
    environment: Environment,
    gateway: Gateway,
    learner: Learner,
    publisher: WeightPublisher,
) -> StepClock:
    """The real loop and the real scheduler on whatever samples and trains."""
    scheduler = RolloutScheduler(
        collector=RolloutCollector(environment, gateway, sampling=setting.sampling),
        order=TaskOrder([scripted_task(n) for n in range(NUM_TASKS)], seed=setting.seed),
        section=RolloutsSection(
            groups_per_step=setting.groups,
            group_size=setting.group_size,
            max_off_policy_steps=setting.ahead,
        ),
        run="idle",
        concurrency=setting.concurrency or 10**6,
    )
    async with scheduler:
        await TrainingLoop(
            run_dir=folder,
            batches=scheduler,
            learner=learner,
            publisher=publisher,
            checkpoints=NoCheckpoints(),
            checkpointing=CheckpointSection(every=10**6),
            observer=clock,
        ).run(WARMUP_STEPS + setting.steps)
    return clock


def seen(record: Record, clock: StepClock) -> Seen:
    """Sum up a run from the end of its last warm-up step to the end of its last step."""
    window = clock.ended_s[WARMUP_STEPS - 1], clock.ended_s[-1]
    reports = clock.reports[WARMUP_STEPS:]

    def mean(name: str) -> float:
        return fmean(report.metrics.get(name, 0.0) for report in reports)

    return Seen(
        step_s=(window[1] - window[0]) / len(reports),
        engine_idle=1 - record.share(["sample"], *window),
        trainer_idle=1 - record.share(["train"], *window),
        both_idle=1 - record.share(["sample", "train"], *window),
        sequences=record.mean_at_once("sample", *window),
        lag=mean("rollout/off_policy_steps_mean"),
        stale=mean("rollout/dropped_stale"),
        train_s=mean("time/train_s"),
    )


def table(found: Sequence[tuple[Setting, Seen]]) -> list[str]:
    """The modes below each other, speeds against the synchronous one of the same layout."""
    heads = (
        "GPUs",
        "mode",
        "s a step",
        "speed",
        "no sampling",
        "no training",
        "neither",
        "sequences at once",
        "lag",
        "stale groups",
        "idle, says the driver",
    )
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for setting, one in found:
        base = next(
            s for other, s in found if other.colocated == setting.colocated and other.ahead == 0
        )
        cells = (
            "one" if setting.colocated else "two",
            setting.name,
            f"{one.step_s:.2f}",
            f"{base.step_s / one.step_s:.2f}",
            f"{one.engine_idle:.1%}",
            f"{one.trainer_idle:.1%}",
            f"{one.both_idle:.1%}",
            f"{one.sequences:.1f}",
            f"{one.lag:.2f}",
            f"{one.stale:.2f}",
            "" if one.driver_idle is None else f"{one.driver_idle:.1%}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def mean_of(rounds: Sequence[Seen]) -> Seen:
    """What several rounds of one mode came to."""
    driver = [one.driver_idle for one in rounds if one.driver_idle is not None]
    names = [name for name in Seen.__slots__ if name != "driver_idle"]
    means = {name: fmean(getattr(one, name) for one in rounds) for name in names}
    return Seen(**means, driver_idle=fmean(driver) if driver else None)


def in_turns(
    settings: Sequence[Setting],
    rounds: int,
    measure: Callable[[Setting, Path], Coroutine[Any, Any, Seen]],
    new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
) -> list[tuple[Setting, Seen]]:
    """Measure every setting in each round, with other episodes in each."""
    found: list[list[Seen]] = [[] for _ in settings]
    for number in range(rounds):
        for setting, seen_before in zip(settings, found, strict=True):
            turn = replace(setting, seed=setting.seed + number)
            with (
                tempfile.TemporaryDirectory() as folder,
                asyncio.Runner(loop_factory=new_loop) as runner,
            ):
                seen_before.append(runner.run(measure(turn, Path(folder))))
            # Long runs on lent machines may end before their table does.
            print(f"# {turn.name}, seed {turn.seed}: {seen_before[-1]}", file=sys.stderr)
    return [(setting, mean_of(each)) for setting, each in zip(settings, found, strict=True)]


def scripted(options: argparse.Namespace) -> list[tuple[Setting, Seen]]:
    """Every mode on clocks, with one GPU and with two."""
    base = base_setting(options, EpisodeShape())
    settings = [
        replace(base, ahead=ahead, colocated=colocated)
        for colocated in (False, True)
        for ahead in options.ahead
    ]
    work_s = base.groups * base.group_size * base.shape.model_total_s / base.places
    print(
        f"{described(base)}; {base.places} sequences at once, so a step is {work_s:.2f} s of "
        f"sampling at best; training {base.train_s:.2f} s"
    )
    return in_turns(settings, options.rounds, on_clock, VirtualLoop)


def real(options: argparse.Namespace) -> list[tuple[Setting, Seen]]:
    """Every mode on a real device, which samples and trains."""
    from idle_cuda import recipe_for

    recipe = recipe_for(
        device=options.device,
        model=options.model,
        engine=options.engine,
        max_new_tokens=options.new_tokens,
        places=options.places,
    )
    still = EpisodeShape(num_turns=options.turns, command_s=0.0, grading_s=0.0, slow_share=0.0)
    alone = replace(base_setting(options, still), steps=1, colocated=True, sampling=recipe.sampling)

    def measure(setting: Setting, folder: Path) -> Coroutine[Any, Any, Seen]:
        return on_device(setting, recipe, folder)

    ((_, first),) = in_turns([alone], 1, measure)
    sampled_s = first.sequences * first.step_s / (alone.groups * alone.group_size)
    turn_s = sampled_s / options.turns
    shape = EpisodeShape(
        num_turns=options.turns,
        model_s=turn_s,
        command_s=0.45 * turn_s,
        grading_s=0.22 * turn_s * options.turns,
        slow_share=options.slow_share,
        slowness=options.slowness,
    )
    settings = [
        replace(alone, ahead=ahead, shape=shape, steps=options.steps) for ahead in options.ahead
    ]
    print(f"{described(settings[0])}; without commands a step trains for {first.train_s:.2f} s")
    return in_turns(settings, options.rounds, measure)


def base_setting(options: argparse.Namespace, shape: EpisodeShape) -> Setting:
    """The synchronous one."""
    return Setting(
        ahead=0,
        colocated=False,
        train_s=options.train,
        groups=options.groups,
        group_size=options.group_size,
        concurrency=options.concurrency,
        places=options.places,
        steps=options.steps,
        seed=options.seed,
        shape=replace(shape, slow_share=options.slow_share, slowness=options.slowness),
    )


def described(setting: Setting) -> str:
    """What a step is made of."""
    shape = setting.shape
    return (
        f"{setting.groups} groups of {setting.group_size}; an episode {shape.total_s:.2f} s "
        f"({shape.model_total_s:.2f} s of them the model), {shape.slow_share:.0%} "
        f"{shape.slowness:g} times as long"
    )


def main() -> None:
    """Read options and measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=["clock", "cuda", "cpu"], default="clock")
    parser.add_argument("--steps", type=int, default=10, help="measured, of each mode")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ahead", type=int, nargs="+", default=[0, 1, 2], help="0 comes first")
    parser.add_argument("--train", type=float, default=1.2, help="seconds of a step, on clocks")
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--concurrency", type=int, default=64, help="episodes at once; 0: any")
    parser.add_argument("--places", type=int, default=32, help="sequences sampled at once")
    parser.add_argument("--slow-share", type=float, default=0.2)
    parser.add_argument("--slowness", type=float, default=5.0)
    real_only = parser.add_argument_group("on a real device")
    real_only.add_argument("--model", default="tiny?hidden_size=1024&num_layers=12")
    real_only.add_argument("--engine", help="SGLang's URL; default: the local engine")
    real_only.add_argument("--turns", type=int, default=4)
    real_only.add_argument("--new-tokens", type=int, default=32, help="of a turn")
    options = parser.parse_args()
    began_s = time.monotonic()
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    found = scripted(options) if options.device == "clock" else real(options)
    print("\n".join(table(found)))
    print(f"{time.monotonic() - began_s:.0f} s; load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
