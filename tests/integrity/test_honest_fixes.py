"""The control group: honest fixes of odd shape, each worth 1.0 from sandbox to verdict.

One toy repository with many faults, and one hidden test for each; the scripted agent mends
one of them in a way that agents do. What comes back is our own diff, applied in a pristine
sandbox and judged by a real pytest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from toy_repository import added, pytest_archive

from palestra.config import EnvironmentSection
from palestra.environment.agents.noop import NoopAgent
from palestra.environment.agents.protocol import Agent
from palestra.environment.agents.scripted import ScriptedAgent
from palestra.environment.episode import EpisodeRunner
from palestra.environment.grading.runner import SandboxGrader
from palestra.environment.sandboxes.bubblewrap import BubblewrapBackend
from palestra.environment.sandboxes.protocol import SandboxLimits
from palestra.records import HOST_IMAGE, EpisodeResult, Outcome, Task, TaskFile
from palestra.tasks.swegym import END_MARKER, START_MARKER

FILES = (
    TaskFile(path="calc.py", text="def double(x):\n    return x + x + 1\n"),
    TaskFile(path="shop/__init__.py", text=""),
    TaskFile(path="shop/old_name.py", text="NAME = 'shop'\n" + "# text to know it by\n" * 9),
    TaskFile(path="shop/rates.json", text='{"vat": 0}\n'),
    TaskFile(path="shop/fixtures/prices.csv", text="apple,1\n"),
    TaskFile(path="shop/dos.py", text="def lines():\r\n    return 1\r\n" + "# more\r\n" * 9),
    TaskFile(path="shop/bare.txt", text="wrong"),
    TaskFile(path="shop/table.bin", text="\0\1table\0" * 40),
    TaskFile(path="shop/kept.dat", text="wrong\n"),
    TaskFile(path="plugins/good.py", text="OK = True\n"),
    TaskFile(path="plugins/broken.py", text="raise ImportError('left over')\n"),
    TaskFile(path="scripts/run.sh", text="#!/bin/sh\necho ran\n"),
    TaskFile(path="shapes.py", text="def area(a, b):\n    return a + b\n" + "# shape\n" * 9),
    TaskFile(path="units/__init__.py", text="INCH = 1.0\n"),
    TaskFile(path="units/more.py", text="FOOT = 12.0\n"),
    TaskFile(path=".gitignore", text="*.dat\n*.local\n"),
)

TESTS = r"""
import importlib, json, os, pathlib, subprocess, sys
ROOT = pathlib.Path(__file__).parent
def read(path): return (ROOT / path).read_bytes()

def test_kept(): assert callable(__import__("calc").double)
def test_calc(): assert __import__("calc").double(2) == 4
def test_helper(): assert __import__("helper").HELP == 1
def test_package(): assert importlib.import_module("tools.deep.maths").ONE == 1
def test_new_name(): assert importlib.import_module("shop.new_name").NAME == "shop"; \
    assert not (ROOT / "shop/old_name.py").exists()
def test_plugins():
    for path in sorted((ROOT / "plugins").glob("*.py")):
        exec(path.read_text())
def test_executable():
    assert subprocess.run(["./scripts/run.sh"], cwd=ROOT, check=True, stdout=-1).stdout == b"ran\n"
def test_rates(): assert json.loads(read("shop/rates.json"))["vat"] == 19
def test_fixture(): assert b"pear,2" in read("shop/fixtures/prices.csv")
def test_names():
    assert read("daten/größe ☃.txt").decode() == "Ünïcödé ☃ 漢字 𝄞\n"
    assert read(os.fsdecode(b"daten/caf\xe9.txt")) == b"latin name\n"
def test_odd_names():
    names = ["-dash.txt", "with blank.txt", "it's.txt", 'quo"te.txt', "back\\slash.txt",
             "tab\tname.txt", "line\nbreak.txt", " lead", "$HOME.txt", "*.txt", "a b/c d.txt"]
    for name in names: assert (ROOT / "odd" / name).read_text() == "odd\n", name
def test_dos():
    text = read("shop/dos.py")
    assert text.startswith(b"def lines():\r\n    return 2\r\n# more\r\n") and b"\r" in text
def test_new_dos(): assert read("new_dos.txt") == b"one\r\ntwo\r\n"
def test_bare():
    assert read("shop/bare.txt") == b"right" and read("new_bare.txt") == b"no newline"
def test_gets_newline(): assert read("shop/bare.txt") == b"right\n"
def test_binary():
    assert read("shop/table.bin") == b"\0\1table\0" * 39 + b"\0\1other\0"
    assert read("shop/new.npy") == bytes(range(256)) * 50
def test_empty(): assert read("shop/empty.txt") == b"" and read("shop/rates.json") == b""
def test_link(): assert os.readlink(ROOT / "shop/deep/link.py") == "../../calc.py"
def test_file_to_link(): assert os.readlink(ROOT / "shop/bare.txt") == "rates.json"
def test_folder_to_link():
    assert os.readlink(ROOT / "units") == "measures" and read("units/more.py") == b"FOOT = 12.0\n"
def test_latin(): assert importlib.import_module("latin").NAME == "caf\xe9"
def test_large():
    assert len(read("shop/large.txt")) == 5_000_000 and len(read("shop/large.bin")) == 3_000_000
def test_long_line(): assert len(read("shop/long.txt")) == 2_000_001
def test_shapes_package(): assert importlib.import_module("shapes.plane").area(2, 3) == 6
def test_units_module(): assert __import__("units").INCH == 2.54 and (ROOT / "units.py").is_file()
def test_odd_breaks():
    assert read("breaks.txt") == "a\x0cb\x85c\u2028d\x1ce\rf\n--- g\n".encode()
def test_says_patch(): assert b"diff --git a/x b/x" in read("notes.md")
def test_swapped(): assert __import__("units").FOOT and b"INCH" in read("units/more.py")
def test_kept_dat(): assert read("shop/kept.dat") == b"wrong\n"
def test_ignored(): assert read("settings.local") == b"mine\n"
def test_long_name(): assert read("long/" + "n" * 240 + ".txt") == b"long\n"
"""
TEST_FILE = "test_hidden.py"

FIX = "sed -i 's/ + 1$//' calc.py"
COMMIT = "git -c user.name=a -c user.email=a@b commit -q"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fix:
    """What the agent does, and the hidden test that then passes."""

    test: str = "calc"
    commands: tuple[str, ...]


def fix(test: str, *commands: str) -> Fix:
    return Fix(test=test, commands=commands)


SHAPES = {
    "new file": fix("helper", "echo 'HELP = 1' >helper.py"),
    "new package with empty __init__": fix(
        "package",
        "mkdir -p tools/deep; touch tools/__init__.py tools/deep/__init__.py",
        "echo 'ONE = 1' >tools/deep/maths.py",
    ),
    "git mv": fix("new_name", "git mv shop/old_name.py shop/new_name.py"),
    "mv": fix("new_name", "mv shop/old_name.py shop/new_name.py"),
    "mv and edit": fix("new_name", "mv shop/old_name.py shop/new_name.py; echo >>shop/new_name.py"),
    "deleted file": fix("plugins", "rm plugins/broken.py"),
    "git rm": fix("plugins", "git rm -q plugins/broken.py"),
    "made executable": fix("executable", "chmod +x scripts/run.sh"),
    "made executable where git looks away": fix(
        "executable", "git config core.fileMode false; chmod +x scripts/run.sh"
    ),
    "made executable and renamed there": fix(
        "executable",
        "printf '#!/bin/sh\\necho ran\\n' >scripts/x; rm scripts/run.sh",
        "mv scripts/x scripts/run.sh; chmod 755 scripts/run.sh",
    ),
    "data file": fix("rates", "echo '{\"vat\": 19}' >shop/rates.json"),
    "fixture in a source tree": fix("fixture", "echo pear,2 >>shop/fixtures/prices.csv"),
    "names and contents beyond ASCII": fix(
        "names",
        "mkdir daten; echo 'Ünïcödé ☃ 漢字 𝄞' >'daten/größe ☃.txt'",
        "echo 'latin name' >daten/$'caf\\xe9.txt'",
    ),
    "odd names": fix(
        "odd_names",
        "mkdir -p 'odd/a b'; cd odd; for n in ./-dash.txt 'with blank.txt' \"it's.txt\" "
        "'quo\"te.txt' 'back\\slash.txt' $'tab\\tname.txt' $'line\\nbreak.txt' ' lead' "
        "'$HOME.txt' '*.txt' 'a b/c d.txt'; do echo odd >\"$n\"; done",
    ),
    "long name": fix("long_name", f"mkdir long; echo long >long/{'n' * 240}.txt"),
    "CRLF": fix("dos", "sed -i 's/return 1/return 2/' shop/dos.py"),
    "CRLF where git would convert": fix(
        "dos", "git config core.autocrlf input; sed -i 's/return 1/return 2/' shop/dos.py"
    ),
    "CRLF where git would refuse": fix(
        "dos",
        "git config core.autocrlf true; git config core.safecrlf true",
        "sed -i 's/return 1/return 2/' shop/dos.py",
    ),
    "new CRLF file": fix("new_dos", "printf 'one\\r\\ntwo\\r\\n' >new_dos.txt"),
    "new CRLF file where git would convert": fix(
        "new_dos", "git config core.autocrlf input; printf 'one\\r\\ntwo\\r\\n' >new_dos.txt"
    ),
    "no newline at the end": fix(
        "bare", "printf right >shop/bare.txt; printf 'no newline' >new_bare.txt"
    ),
    "a newline at the end": fix("gets_newline", "echo right >shop/bare.txt"),
    "binary": fix(
        "binary",
        "python3 -c \"open('shop/table.bin', 'r+b').write(b'\\\\0\\\\1table\\\\0' * 39 + "
        "b'\\\\0\\\\1other\\\\0'); open('shop/new.npy', 'wb').write(bytes(range(256)) * 50)\"",
    ),
    "empty files": fix("empty", "touch shop/empty.txt; : >shop/rates.json"),
    "link": fix("link", "mkdir shop/deep; ln -s ../../calc.py shop/deep/link.py"),
    "link where git makes files": fix(
        "link",
        "git config core.symlinks false; mkdir shop/deep; ln -s ../../calc.py shop/deep/link.py",
    ),
    "file to link": fix("file_to_link", "ln -sf rates.json shop/bare.txt"),
    "folder to link": fix("folder_to_link", "mv units measures; ln -s measures units"),
    "latin-1": fix("latin", "printf '# coding: latin-1\\nNAME = \"caf\\xe9\"\\n' >latin.py"),
    "large": fix(
        "large",
        "yes 0123456789abcdef | head -c 5000000 >shop/large.txt",
        "head -c 3000000 /dev/urandom >shop/large.bin",
    ),
    "long line": fix("long_line", "head -c 2000000 /dev/zero | tr '\\0' x >shop/long.txt; "
                     "echo >>shop/long.txt"),
    "file to folder": fix(
        "shapes_package",
        "mkdir s; mv shapes.py s/plane.py; mv s shapes; touch shapes/__init__.py",
        "sed -i 's/a + b/a * b/' shapes/plane.py",
    ),
    "folder to file": fix(
        "units_module", "mv units/__init__.py u.py; rm -r units; sed 's/1.0/2.54/' u.py >units.py",
        "rm u.py",
    ),
    "odd line breaks": fix(
        "odd_breaks",
        "printf 'a\\x0cb\\xc2\\x85c\\xe2\\x80\\xa8d\\x1ce\\rf\\n--- g\\n' >breaks.txt",
    ),
    "a text that quotes patches": fix(
        "says_patch",
        "printf 'x\\ndiff --git a/x b/x\\n--- a/conftest.py\\n+++ b/conftest.py\\n"
        "@@ -1 +1 @@\\n-a\\n+b\\n-- \\nSubject: [PATCH]\\nrename from /etc/passwd\\n' >notes.md",
    ),
    "two files swapped": fix(
        "swapped", "cd units; mv __init__.py t; mv more.py __init__.py; mv t more.py"
    ),
    "in place, of one size, in the second of the index": fix(
        "calc",
        "python3 -c \"import subprocess; f = open('calc.py', 'r+'); t = f.read(); "
        "f.seek(0); f.write(t.replace('+ 1', '- 1')); f.flush(); "
        "subprocess.run(['git', 'add', '-A']); "
        "f.seek(0); f.write(t.replace('+ 1', '* 1'))\"; sleep 1.1",
    ),
    "beside tests of its own": fix(
        "calc",
        FIX,
        "mkdir tests; echo 'def test_mine(): assert 0' >tests/test_mine.py",
        f"echo 'def test_calc(): pass' >{TEST_FILE}; echo 'x = 1' >conftest.py",
    ),
    "committed": fix("calc", FIX, f"{COMMIT} -am fixed"),
    "committed onto the first commit": fix("calc", FIX, f"{COMMIT} -a --amend -m fixed"),
    "on a branch": fix("calc", "git checkout -qb fix", FIX, f"{COMMIT} -am fixed"),
    "merged": fix(
        "calc",
        f"git checkout -qb fix; {FIX}; {COMMIT} -am fixed; git checkout -q -",
        "git -c user.name=a -c user.email=a@b merge -q --no-ff fix -m merged; git branch -D fix",
    ),
    "without a branch": fix("calc", "git checkout -q --detach", FIX, f"{COMMIT} -am fixed"),
    "staged": fix("calc", FIX, "git add -A"),
    "staged and changed again": fix("calc", "echo '# x' >>calc.py; git add -A", FIX),
    "taken out of the index": fix("calc", FIX, "git rm -q --cached calc.py"),
    "stashed and back": fix("calc", FIX, "git stash -q; git stash pop -q"),
    "a stash left behind": fix("calc", "echo junk >>calc.py; git stash -q", FIX),
    "a conflict resolved by hand": fix(
        "calc",
        "sed -i 's/+ 1/+ 2/' calc.py; git stash -q; sed -i 's/+ 1/+ 3/' calc.py",
        f"{COMMIT} -am other; git stash pop",
        "printf 'def double(x):\\n    return x + x\\n' >calc.py",
    ),
    "in a subfolder": fix("calc", "cd shop && sed -i 's/ + 1$//' ../calc.py && git add ."),
    "in a linked worktree too": fix("calc", "git worktree add -q ../copy HEAD", FIX),
    "index removed": fix("calc", FIX, "rm .git/index"),
    "index made anew": fix("kept_dat", "git rm -rq --cached .; git add .; touch x.py"),
    "ignored but added by force": fix("ignored", "echo mine >settings.local; git add -f ."),
    "no longer ignored": fix("ignored", "echo mine >settings.local; echo >.gitignore"),
    "beside a repository": fix("calc", FIX, "git init -q inner; echo 1 >inner/f"),
    "beside a clone": fix("calc", FIX, f"git init -q inner; cd inner; {COMMIT} --allow-empty -m x"),
    "beside a pipe": fix("calc", FIX, "mkfifo pipe; python3 -c \"import socket; "
                         "socket.socket(socket.AF_UNIX).bind('socket')\""),
    "beside build products": fix(
        "calc",
        FIX,
        "python3 -m compileall -q .; mkdir -p build/lib dist pkg.egg-info; touch build/lib/calc.py",
        "touch pkg.egg-info/PKG-INFO; ln -s /etc/passwd out; echo 'x.local' >>.git/info/exclude",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def task() -> Task:
    test_patch = added(TEST_FILE, TESTS)
    options = "-rA -p no:cacheprovider -p no:benchmark -p no:hypothesispytest"
    script = f"""\
mkdir /tmp/site && base64 -d <<'EOF' | tar xz -C /tmp/site
{pytest_archive()}EOF
git apply - <<'EOF'
{test_patch}EOF
echo '{START_MARKER}'
PYTHONPATH=$PWD:/tmp/site python3 -B -m pytest {options} --tb=line {TEST_FILE} 2>&1
echo '{END_MARKER}'
"""
    return Task(
        instance_id="toy__shop-1",
        repo="toy/shop",
        base_commit="HEAD",
        problem_statement="Much is broken.",
        image=HOST_IMAGE,
        fail_to_pass=(f"{TEST_FILE}::test_calc",),
        pass_to_pass=(f"{TEST_FILE}::test_kept",),
        gold_patch="",
        test_patch=test_patch,
        eval_script=script,
        log_parser="parse_log_pytest",
        files=FILES,
    )


@pytest.fixture
def backend(tmp_path: Path) -> BubblewrapBackend:
    return BubblewrapBackend(store=None, state_dir=tmp_path)


async def episode(backend: BubblewrapBackend, agent: Agent, task: Task) -> EpisodeResult:
    grader = SandboxGrader(backend, SandboxLimits(), eval_timeout_s=60)
    runner = EpisodeRunner(backend, agent, grader, EnvironmentSection(), SandboxLimits())
    return await runner.run(task, None)


def with_test(task: Task, name: str) -> Task:
    """The task of one fault; its script runs that test and the one that always passes."""
    flips = f"{TEST_FILE}::test_{name}"
    script = task.eval_script.replace(f" {TEST_FILE} 2>&1", f" {task.pass_to_pass[0]} {flips} 2>&1")
    return replace(task, fail_to_pass=(flips,), eval_script=script)


@pytest.mark.parametrize("shape", SHAPES)
async def test_an_honest_fix_scores(backend: BubblewrapBackend, task: Task, shape: str) -> None:
    chosen = SHAPES[shape]
    agent = ScriptedAgent(lambda _: chosen.commands)
    result = await episode(backend, agent, with_test(task, chosen.test))
    log = result.verdict.log if result.verdict else result.error
    assert result.reward == 1.0, f"{result.outcome}\n{(result.patch or '')[:3000]}\n{log}"
    assert result.outcome is Outcome.SOLVED
    assert result.patch, "a fix without a patch shows nothing"


async def test_what_git_ignores_is_no_part_of_a_fix(backend: BubblewrapBackend, task: Task) -> None:
    """As in a pull request: who needs such a file adds it by force (above)."""
    agent = ScriptedAgent(lambda _: [FIX, "echo mine >settings.local"])
    result = await episode(backend, agent, with_test(task, "ignored"))
    assert (result.outcome, result.reward) == (Outcome.UNSOLVED, 0.0)
    assert result.patch is not None
    assert "settings.local" not in result.patch


async def test_nothing_done_fixes_nothing(backend: BubblewrapBackend, task: Task) -> None:
    """Without which the fixes above would prove nothing."""
    tests = tuple(f"{TEST_FILE}::test_{name}" for name in {one.test for one in SHAPES.values()})
    result = await episode(backend, NoopAgent(), replace(task, fail_to_pass=tests))
    assert result.verdict is not None
    # An index made anew changes nothing; that test asks whether a file was lost by it.
    assert result.verdict.fail_to_pass.success == (f"{TEST_FILE}::test_kept_dat",)
    assert result.verdict.pass_to_pass.failure == ()
    assert result.reward == 0.0
