"""What every sandbox backend promises, asked in each place that can start one here.

``places`` says which places there are, and what is missing where one is skipped.
"""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

import pytest
from places import ENGINES, output, run

from palestra.config import EnvironmentSection
from palestra.environment.agents.gold import GoldAgent
from palestra.environment.agents.noop import NoopAgent
from palestra.environment.agents.protocol import Agent
from palestra.environment.episode import EpisodeRunner
from palestra.environment.grading.runner import SandboxGrader
from palestra.environment.sandboxes.engine import OWNER_LABEL
from palestra.environment.sandboxes.engine_api import open_engine
from palestra.environment.sandboxes.processes import command_lines
from palestra.environment.sandboxes.protocol import (
    Sandbox,
    SandboxBackend,
    SandboxLimits,
    SandboxSpec,
)
from palestra.errors import ImageError, SandboxDied
from palestra.records import Outcome
from palestra.tasks.source import load_tasks


def names_below(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*")]


# --- commands -----------------------------------------------------------------


async def test_a_secret_is_read_once_and_stands_nowhere_else(box: Sandbox) -> None:
    secret = "0123456789abcdef" * 4
    seen = "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ /dev/palestra/*.in 2>/dev/null"
    again = "cat <&7; timeout 1 cat /proc/$$/fd/7"
    done = await box.run(
        f"{seen} | tr '\\0' '\\n' | grep -c '[6]789abc'; cat <&7; {again}; echo end",
        timeout_s=30,
        secret=secret,
    )
    counted, said, end = done.output.splitlines()
    assert counted == "0", done
    assert (said, end) == (secret, "end")
    assert (await run(box, "cat <&7")).exit_code != 0, "the next command has a secret too"


@pytest.mark.parametrize(
    ("command", "exit_code", "said"),
    [
        ("exit 3", 3, ""),
        ("kill -9 $$", 137, ""),
        ("kill -9 0", 137, ""),
        ("for i in 1 2 3; do echo o$i; echo e$i >&2; done", 0, "o1\ne1\no2\ne2\no3\ne3\n"),
        ("printf 'a\\xffb\\0c'", 0, "a\ufffdb\0c"),
        ("cat; read x; echo $?", 0, "1\n"),
        ("echo a\0b", 0, "ab\n"),
        ("cat <<'X'\n$y `z`\n\nX\n", 0, "$y `z`\n\n"),
        ("exec >&- 2>&-; sleep 0.1", 0, ""),
        ("", 0, ""),
        ("echo $FROM_SPEC", 0, "it came along\n"),
    ],
)
async def test_endings(box: Sandbox, command: str, exit_code: int, said: str) -> None:
    done = await run(box, command)
    assert (done.exit_code, done.output, done.timed_out) == (exit_code, said, False)
    assert await output(box, "echo usable") == "usable\n"


async def test_nothing_persists_but_files(box: Sandbox) -> None:
    await run(box, "echo kept >new; cd /; export A=1; set -e; umask 077; trap 'echo T' EXIT")
    assert await output(box, 'pwd; echo "[$A]"; umask; trap; cat new') == (
        f"{box.workdir}\n[]\n0022\nkept\n"
    )


@pytest.mark.parametrize("size", [4000, 99_000, 101_000, 1 << 20])
async def test_long_commands(box: Sandbox, size: int) -> None:
    done = await run(box, f"x='{'é' * (size // 2)}'; printf %s \"$x\" | wc -c; cat; exit 4")
    assert (done.output.split(), done.exit_code) == ([str(size)], 4)


async def test_output_is_held_to_head_and_tail(box: Sandbox) -> None:
    done = await box.run(
        "echo HEAD; head -c 20000000 /dev/zero | tr '\\0' a; echo TAIL",
        timeout_s=60,
        output_limit_bytes=100_000,
    )
    assert done.output.startswith("HEAD\naaa")
    assert done.output.endswith("aaaTAIL\n")
    assert done.elided_bytes == 20_000_010 - 100_000


async def test_timeout_kills_the_tree_and_keeps_what_was_printed(box: Sandbox) -> None:
    started_s = time.monotonic()
    done = await run(
        box,
        "trap '' TERM; echo begun; (setsid sleep 7717 &); sleep 7718 & sleep 7719",
        timeout_s=0.7,
    )
    assert time.monotonic() - started_s < 15
    assert (done.exit_code, done.timed_out, done.output) == (-1, True, "begun\n")
    await asyncio.sleep(0.1)
    left = [args for _, args in command_lines() if args[0] == "sleep" and "771" in args[1]]
    assert left == []
    assert await output(box, "echo usable") == "usable\n"


async def test_background_child_holds_nothing_up_and_is_not_heard(box: Sandbox) -> None:
    started_s = time.monotonic()
    assert await output(box, "(sleep 0.2; echo LATE; touch late; sleep 60) & echo now") == "now\n"
    assert time.monotonic() - started_s < 10
    for _ in range(300):
        listed = await output(box, "ls; sleep 0.01")
        assert "LATE" not in listed
        if "late" in listed:
            return
    pytest.fail("the background child did not live on to touch its file")


async def test_cancelled_command_is_killed_and_the_next_one_is_right(box: Sandbox) -> None:
    for delay_s in (0, 0.001, 0.002, 0.004, 0.01, 0.05):
        task = asyncio.create_task(run(box, f"sleep 8855; echo WRONG\n#{'x' * 50_000}"))
        await asyncio.sleep(delay_s)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await output(box, "echo right") == "right\n"
    assert [args for _, args in command_lines() if args[:2] == ["sleep", "8855"]] == []


# --- files and what is visible ------------------------------------------------


@pytest.mark.usefixtures("needs_git")
async def test_files_are_a_clean_repository(box: Sandbox) -> None:
    assert await output(box, "git status --porcelain; git diff; git fsck --strict 2>&1") == ""
    assert await output(box, "./pkg/inner/run.sh; sed -i 's/a - b/a + b/' calc.py") == "ran\n"
    assert "+    return a + b" in await output(box, "git diff")
    commit = "git -c user.name=x -c user.email=x@y commit -qam mine"
    assert await output(box, f"{commit}; git log --format=%s | head -1") == "mine\n"


async def test_files_there_and_back(box: Sandbox) -> None:
    data = random.Random(0).randbytes(300_000)
    for path in (f"{box.workdir}/new/deep/a b'c\"$x", f"{box.workdir}/ü"):
        await box.write_file(path, data)
        assert await box.read_file(path) == data
        await box.write_file(path, b"")
        assert await box.read_file(path) == b""
    with pytest.raises(FileNotFoundError):
        await box.read_file(f"{box.workdir}/none")
    with pytest.raises(FileNotFoundError):
        await box.read_file(box.workdir)
    await box.write_file(f"{box.workdir}/ten", b"x" * 10)
    with pytest.raises(ValueError, match="larger than 9"):
        await box.read_file(f"{box.workdir}/ten", max_bytes=9)
    with pytest.raises(ValueError, match="absolute"):
        await box.write_file("relative", b"")


async def test_no_secrets_of_the_caller(
    backend: SandboxBackend, spec: SandboxSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    async with backend.start(spec) as box:
        assert "hunter2" not in await output(box, "env")
        assert str(Path.home()) not in await output(box, "cd ~ && ls -A; [ $HOME != /root ] || :")


@pytest.mark.usefixtures("isolated")
async def test_no_power(box: Sandbox) -> None:
    status = await output(box, "cat /proc/self/status")
    assert "CapEff:\t" + "0" * 16 in status
    assert "NoNewPrivs:\t1" in status
    assert await output(box, "tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '") == "lo\n"


# --- deaths -------------------------------------------------------------------


async def test_nothing_is_left(backend: SandboxBackend, spec: SandboxSpec, tmp_path: Path) -> None:
    async with backend.start(spec) as box:
        await run(box, "sleep 6655 & setsid sleep 6655 & echo x >y")
    left = [args for _, args in command_lines() if args[:2] == ["sleep", "6655"]]
    assert left == []
    assert box.sandbox_id not in "\n".join(names_below(tmp_path))
    with pytest.raises(SandboxDied):
        await run(box, "true")
    if backend.name in ENGINES:
        async with open_engine(ENGINES[backend.name]) as api:
            assert box.sandbox_id not in str(await api.labelled(OWNER_LABEL))


async def test_killed_from_outside(backend: SandboxBackend, spec: SandboxSpec) -> None:
    if backend.name not in ENGINES:
        pytest.skip("bubblewrap's own tests do this; local has nothing that could be killed")
    async with backend.start(spec) as box:
        task = asyncio.create_task(run(box, "sleep 60"))
        await asyncio.sleep(0.1)
        async with open_engine(ENGINES[backend.name]) as api:
            await api.remove(f"palestra-{box.sandbox_id}")
        with pytest.raises(SandboxDied):
            async with asyncio.timeout(20):
                await task
        with pytest.raises(SandboxDied):
            await run(box, "true")


async def test_unknown_image(backend: SandboxBackend) -> None:
    with pytest.raises(ImageError, match="palestra-test/no-such"):
        async with backend.start(SandboxSpec(image="palestra-test/no-such:1", workdir="/")):
            pass


@pytest.mark.usefixtures("needs_git")
@pytest.mark.parametrize(
    ("agent", "expected"), [(GoldAgent(), Outcome.SOLVED), (NoopAgent(), Outcome.UNSOLVED)]
)
async def test_katas(backend: SandboxBackend, agent: Agent, expected: Outcome) -> None:
    section = EnvironmentSection()
    limits = SandboxLimits(memory_bytes=1 << 30)
    grader = SandboxGrader(backend, limits, eval_timeout_s=60)
    runner = EpisodeRunner(backend, agent, grader, section, limits)
    slots = asyncio.Semaphore(4)
    tasks = load_tasks("katas:train?seed=0&n=8")

    async def attempt(number: int) -> tuple[Outcome, str | None]:
        async with slots:
            episode = await runner.run(tasks[number], None)
        return episode.outcome, episode.error

    assert await asyncio.gather(*map(attempt, range(8))) == [(expected, None)] * 8
