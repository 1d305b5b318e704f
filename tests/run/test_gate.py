"""Training begins with certified tasks only, unless the recipe says otherwise."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest

from palestra.addresses import URL_VARIABLE
from palestra.config import Recipe
from palestra.environment.grading.certificates import (
    Certificate,
    CertificateFile,
    GradedRun,
    certificate,
)
from palestra.errors import TaskError
from palestra.recipe_files import parse_recipe
from palestra.records import HOST_IMAGE, Task
from palestra.run.gate import Ground, conditions_of, refused, require_certificates

ORIGIN = Path("real.toml")


def task_of(name: str, **changes: object) -> Task:
    plain = Task(
        instance_id=name,
        repo="toy/toy",
        base_commit="0" * 40,
        problem_statement="broken",
        image=HOST_IMAGE,
        fail_to_pass=("flips",),
        pass_to_pass=("holds",),
        gold_patch=f"gold of {name}",
        test_patch="",
        eval_script="",
        log_parser="",
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def recipe_of(file: Path | None, **more: str | int) -> Recipe:
    overrides = [f"{key.replace('__', '.')}={value}" for key, value in more.items()]
    overrides += [f"tasks.certificates={file}"] if file else []
    return parse_recipe({}, ["tasks.train=rows.jsonl", *overrides])


def certified(
    task: Task,
    recipe: Recipe,
    *,
    backend: str = "bubblewrap",
    identity: str = "host",
    gold: Sequence[bool] = (True,),
    noop: bool = False,
) -> Certificate:
    def run(patch: str, resolved: bool) -> GradedRun:
        failed = () if resolved else ("flips",)
        return GradedRun(patch=patch, resolved=resolved, duration_s=1.0, failed=failed)

    runs = [run("noop", noop), *(run("gold", resolved) for resolved in gold)]
    return certificate(task, conditions_of(recipe, backend), runs, image_identity=identity)


def reason(
    *certificates: Certificate, task: Task | None = None, identity: str | None = "host"
) -> str | None:
    identities = {} if identity is None else {HOST_IMAGE: identity}
    ground = Ground(conditions=conditions_of(RECIPE, "bubblewrap"), identities=identities)
    found = refused([task or task_of("one")], certificates, ground)
    return found[0].reason if found else None


RECIPE = recipe_of(None)
ONE = task_of("one")


def test_a_valid_certificate_lets_a_task_in() -> None:
    assert reason(certified(ONE, RECIPE)) is None


def test_the_newest_certificate_counts() -> None:
    failed = certified(ONE, RECIPE, gold=[False])
    assert reason(certified(ONE, RECIPE), failed) == "its gold patch fails"
    assert reason(failed, certified(ONE, RECIPE)) is None


@pytest.mark.parametrize(
    ("held", "why"),
    [
        (certified(ONE, RECIPE, gold=[False]), "its gold patch fails"),
        (certified(ONE, RECIPE, gold=[True, False]), "its tests do not repeat"),
        (certified(ONE, RECIPE, noop=True), "passes with nothing done"),
        (certified(ONE, RECIPE, backend="docker"), "other conditions"),
        (certified(ONE, recipe_of(None, sandbox__memory_mb=64)), "other conditions"),
        (certified(ONE, recipe_of(None, environment__eval_timeout_s=5)), "other conditions"),
        (certified(ONE, recipe_of(None, grading__on_refused="tampered")), "other conditions"),
        (certified(ONE, RECIPE, identity="sha256:2"), "its image has changed"),
        (certified(task_of("one", gold_patch="other"), RECIPE), "its row has changed"),
        (certified(task_of("two"), RECIPE), "no certificate"),
    ],
)
def test_a_certificate_of_something_else_does_not(held: Certificate, why: str) -> None:
    said = reason(held)
    assert said is not None
    assert why in said


def test_an_image_that_is_not_here_is_no_image_that_was_certified() -> None:
    assert "not here" in str(reason(certified(ONE, RECIPE), identity=None))


def test_a_backend_elsewhere_is_not_compared() -> None:
    ground = Ground(conditions=conditions_of(RECIPE, ""), identities=None)
    held = certified(ONE, RECIPE, backend="podman", identity="sha256:9")
    assert refused([ONE], [held], ground) == []
    tighter = certified(ONE, recipe_of(None, sandbox__num_pids=20))
    assert len(refused([ONE], [tighter], ground)) == 1


async def test_a_refusal_names_the_first_tasks_and_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(URL_VARIABLE, "http://127.0.0.1:1")
    file = CertificateFile(path=tmp_path / "c.jsonl")
    recipe = recipe_of(file.path)
    tasks = [task_of(name) for name in ("one", "two", "three", "four", "five")]
    file.append([certified(tasks[0], recipe)])
    overrides = ["sandbox.memory_mb=2048", "tasks.train=my rows.jsonl"]
    with pytest.raises(TaskError) as refusal:
        await require_certificates(recipe, tasks, origin=ORIGIN, overrides=overrides)
    message, hint = refusal.value.message, str(refusal.value.hint)
    assert message.startswith("4 of 5 tasks have no valid certificate")
    assert "two (no certificate), three (no certificate), four (no certificate) and 1" in message
    assert (
        "palestra certify --recipe real.toml --set sandbox.memory_mb=2048 "
        "--set 'tasks.train=my rows.jsonl'" in hint
    )
    file.append([certified(task, recipe) for task in tasks])
    await require_certificates(recipe, tasks, origin=ORIGIN)


async def test_without_a_file_the_command_says_where_to() -> None:
    with pytest.raises(TaskError, match=r"tasks\.certificates names no file") as refusal:
        await require_certificates(RECIPE, [ONE], origin=ORIGIN)
    assert "certify --recipe real.toml --out certificates.jsonl" in str(refusal.value.hint)


@pytest.mark.parametrize(
    "told", [{"tasks__uncertified": "train"}, {"tasks__train": "katas:train?seed=0&n=4"}]
)
async def test_it_asks_for_nothing_when_told_so_or_for_katas(told: dict[str, str]) -> None:
    recipe = parse_recipe({}, [f"{key.replace('__', '.')}={value}" for key, value in told.items()])
    await require_certificates(recipe, [ONE], origin=ORIGIN)
