"""The hidden tests of a kata and the script that runs them.

The script is one bash file that starts Python once. The tests reach the runner
on descriptor 3 and the runner reaches Python on stdin, so nothing is written
where the agent's code could find or change it.
"""

from __future__ import annotations

from collections.abc import Sequence

from palestra.tasks.katas.observe import Case
from palestra.tasks.swegym import END_MARKER, START_MARKER

TEST_LIMIT_S = 5

# Output of the code under test goes nowhere: only the runner's lines are read.
# Tests see the standard library before the repository, which cannot shadow it.
# posix and _signal are what os and signal wrap; the wrappers are a third of the run.
RUNNER = """\
import _signal, binascii, posix, sys
from _blake2 import blake2b

repo, path, limit_s = sys.argv[1], sys.argv[2], int(sys.argv[3])
try:
    key = posix.read(7, 256).strip()
    posix.close(7)
except OSError:
    key = b""
with open(3, encoding="utf-8") as file:
    text = file.read()
names = [line[4:line.index("(")] for line in text.splitlines() if line.startswith("def test_")]
lines = posix.dup(1)
posix.set_inheritable(lines, False)
posix.dup2(posix.open("/dev/null", posix.O_WRONLY), 1)
posix.dup2(1, 2)
sys.path.append(repo)


class Late(BaseException):
    pass


def late(signum, frame):
    raise Late(f"no answer within {limit_s} s")


def attempt(call, failed):
    _signal.setitimer(_signal.ITIMER_REAL, limit_s, 0.1)
    try:
        call()
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}".encode("ascii", "backslashreplace").decode()
        return failed, " - " + " ".join(reason.split())[:200]
    finally:
        _signal.setitimer(_signal.ITIMER_REAL, 0)
    return "PASSED", ""


def must_fail():
    assert [1, 2] == [2, 1]


def must_error():
    exec("raise SystemError", {})


def canaries():
    for call, failed in ((must_fail, "FAILED"), (must_error, "ERROR")):
        yield "canary " + attempt(call, failed)[0]


_signal.signal(_signal.SIGALRM, late)
scope = {"__name__": "hidden_tests"}
loaded, reason = attempt(lambda: exec(compile(text, path, "exec"), scope), "ERROR")
head, said = [*canaries()], []
for name in names:
    status = loaded
    if loaded == "PASSED":
        status, reason = attempt(scope[name], "FAILED")
    said.append(f"{status} {path}::{name}{reason}")
    posix.write(lines, f"{said[-1]}\\n".encode())
if key:
    report = "\\n".join([*head, *canaries(), "", *said]).encode()
    signature = blake2b(report, key=key).hexdigest().encode()
    sealed = b" ".join([signature, binascii.b2a_base64(report, newline=False)])
    posix.write(lines, b">>>>> Palestra Sealed " + sealed + b"\\n")
posix._exit(0)  # without tidying up, which nobody needs
"""


def test_name(case: Case, number: int) -> str:
    """The name of the test of ``case``."""
    return f"test_{case.name}_{number}"


test_name.__test__ = False  # type: ignore[attr-defined]  # the name looks like a test to pytest


def hidden_tests(module_of: dict[str, str], cases: Sequence[tuple[str, Case]]) -> str:
    """The text of the hidden test file.

    Args:
        module_of: module of each function that is called.
        cases: name of the test and the call that it makes.
    """
    imports = [
        f"from {module} import {name}"
        for name, module in sorted(module_of.items(), key=lambda item: (item[1], item[0]))
    ]
    return "\n\n\n".join(["\n".join(imports), *(_test(name, case) for name, case in cases)]) + "\n"


def _test(name: str, case: Case) -> str:
    value = repr(case.expected.value)
    check = (
        f"assert actual == {value}" if case.expected.value is not None else "assert actual is None"
    )
    return f"""\
def {name}():
    arguments = {case.arguments!r}
    actual = {case.name}(*arguments)
    {check}, f"{_quoted(case.call)} is {{actual!r}}, not {_quoted(value)}"
    assert arguments == {case.expected.arguments!r}, "an argument was changed\""""


def _quoted(text: str) -> str:
    """``text`` for the inside of an f-string in double quotes."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return escaped.replace("{", "{{").replace("}", "}}")


def eval_script(path: str, tests: str) -> str:
    """The bash script that runs ``tests``, known as ``path``, on the current directory."""
    return f"""\
#!/bin/bash
command -v python3 > /dev/null || {{ echo "no python3 in this sandbox" >&2; exit 127; }}
echo '{START_MARKER}'
python3 -I -S -B - "$PWD" {path} {TEST_LIMIT_S} 3<<'END_OF_TESTS' <<'END_OF_RUNNER'
{tests}END_OF_TESTS
{RUNNER}END_OF_RUNNER
echo '{END_MARKER}'
"""
