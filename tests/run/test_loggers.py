from __future__ import annotations

import importlib.util
import json
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from palestra.config import Recipe
from palestra.errors import ConfigError, MissingExtra
from palestra.events import MemoryEvents
from palestra.recipe_files import parse_recipe
from palestra.run.directory import RunDirectory
from palestra.run.loggers import background
from palestra.run.loggers.background import BackgroundLogger
from palestra.run.loggers.choose import logged, opener, require_loggers
from palestra.run.loggers.events import LoggedEvents
from palestra.run.loggers.fake import FakeLogger
from palestra.run.loggers.protocol import LoggedRun

METRICS = {"train/loss": 0.25, "rollout/episodes": 16.0}


def needs(package: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed")


@pytest.fixture
def run(tmp_path: Path) -> LoggedRun:
    return LoggedRun(name="run", project="palestra-test", folder=tmp_path, config={"seed": 1})


class Said(list[str]):
    def __call__(self, line: str) -> None:
        self.append(line)


# --- what every logger gets -----------------------------------------------------


def test_loggers_get_what_the_event_log_has(run: LoggedRun) -> None:
    fake, events, said = FakeLogger(), MemoryEvents(), Said()
    with BackgroundLogger("fake", lambda _: fake, run, say=said) as logger:
        sink = LoggedEvents(events, [logger])
        sink.emit("warmstart", step=1, metrics={"warmstart/loss": 2.0})
        sink.emit("rollout", rollout_id="run-0-0")
        sink.emit("step", step=1, version=1, trained=True, metrics=METRICS)
        sink.emit("evaluation", step=1, metrics={"eval/greedy/solve_rate": 0.5})
    assert fake.logged == [
        (1, {"warmstart/loss": 2.0}),
        (1, METRICS),
        (1, {"eval/greedy/solve_rate": 0.5}),
    ]
    assert fake.is_closed
    assert [event.kind for event in events.events] == [
        "warmstart",
        "rollout",
        "step",
        "evaluation",
    ]
    assert said == []


def test_a_logger_that_fails_in_the_middle_is_said_once_and_left(run: LoggedRun) -> None:
    fake, said = FakeLogger(fails_at=2), Said()
    other = FakeLogger()
    with (
        BackgroundLogger("bad", lambda _: fake, run, say=said) as bad,
        BackgroundLogger("good", lambda _: other, run, say=said) as good,
    ):
        sink = LoggedEvents(MemoryEvents(), [bad, good])
        for step in range(1, 5):
            sink.emit("step", step=step, metrics=METRICS)
    assert [step for step, _ in fake.logged] == [1]
    assert [step for step, _ in other.logged] == [1, 2, 3, 4]
    (line,) = said
    assert "logger bad failed" in line
    assert "ConnectionError" in line
    assert "the run goes on" in line


@pytest.mark.parametrize("error", [RuntimeError("no network"), SystemExit(1)])
def test_a_logger_that_cannot_be_opened_does_not_stop_the_run(
    run: LoggedRun, error: BaseException
) -> None:
    def broken(_: LoggedRun) -> FakeLogger:
        raise error

    said = Said()
    with BackgroundLogger("broken", broken, run, say=said) as logger:
        logger.log(1, METRICS)
    assert len(said) == 1


def test_a_logger_that_hangs_holds_nothing_up(run: LoggedRun) -> None:
    fake, said = FakeLogger(hangs_at=1), Said()
    began_s = time.monotonic()
    with BackgroundLogger("slow", lambda _: fake, run, say=said, close_timeout_s=0.3) as logger:
        for step in range(1, background.MAX_WAITING + 10):
            logger.log(step, METRICS)
    assert time.monotonic() - began_s < 20
    assert "left behind" in said[0]
    assert "lost" in said[1]
    fake.released.set()
    for thread in threading.enumerate():
        if thread.name == "logger slow":
            thread.join(10)
    assert fake.is_closed


# --- which ones -------------------------------------------------------------------


def test_without_loggers_the_sink_is_the_runs_own(tmp_path: Path) -> None:
    events = MemoryEvents()
    with logged(events, Recipe(), RunDirectory(tmp_path), say=print) as sink:
        assert sink is events


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb"])
def test_a_missing_package_is_named_before_the_run(name: str) -> None:
    recipe = parse_recipe({"logging": {"to": [name]}})
    if importlib.util.find_spec(name) is not None:
        require_loggers(recipe)
        return
    with pytest.raises(MissingExtra, match=rf"{name}.*pip install 'palestra\[{name}\]'"):
        require_loggers(recipe)


def test_unknown_and_doubled_loggers_are_refused() -> None:
    with pytest.raises(ConfigError):
        parse_recipe({"logging": {"to": ["mlflow"]}})
    with pytest.raises(ConfigError, match="twice"):
        parse_recipe({"logging": {"to": ["wandb", "wandb"]}})


def test_secrets_do_not_reach_loggers(tmp_path: Path) -> None:
    told: list[LoggedRun] = []

    def opened(run: LoggedRun) -> FakeLogger:
        told.append(run)
        return FakeLogger()

    recipe = parse_recipe({"logging": {"to": ["trackio"]}, "environment": {"token": "geheim"}})
    run = RunDirectory(tmp_path)
    with logged(MemoryEvents(), recipe, run, say=print, open_with=lambda _: opened) as sink:
        sink.emit("step", step=1, metrics=METRICS)
    assert "geheim" not in str(told)
    assert told[0].config["seed"] == 0


# --- the real packages --------------------------------------------------------------


@needs("tensorboard")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_has_the_same_names_and_numbers(run: LoggedRun) -> None:
    logger = opener("tensorboard")(run)
    logger.log(1, METRICS)
    logger.log(2, {"train/loss": 0.125})
    logger.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run.folder / "tensorboard"))
    found.Reload()
    assert set(found.Tags()["scalars"]) == set(METRICS)
    assert [(e.step, e.value) for e in found.Scalars("train/loss")] == [(1, 0.25), (2, 0.125)]


@needs("wandb")
def test_wandb_offline_has_the_same_names(run: LoggedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    logger = opener("wandb")(run)
    logger.log(1, METRICS)
    logger.log(1, {"eval/greedy/solve_rate": 0.5})
    logger.close()
    (written,) = (run.folder / "wandb").glob("offline-run-*/run-*.wandb")
    data = written.read_bytes()
    for name in (*METRICS, "eval/greedy/solve_rate"):
        assert name.encode() in data


@needs("trackio")
def test_trackio_has_the_same_names_and_numbers(
    run: LoggedRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    logger = opener("trackio")(run)
    logger.log(1, METRICS)
    logger.log(2, {"train/loss": 0.125})
    logger.close()
    assert capfd.readouterr().out == ""
    import trackio.utils

    database = Path(trackio.utils.TRACKIO_DIR) / f"{run.project}.db"
    rows = sqlite3.connect(database).execute("select step, metrics from metrics order by step")
    assert [(step, json.loads(text)) for step, text in rows] == [
        (1, METRICS),
        (2, {"train/loss": 0.125}),
    ]
