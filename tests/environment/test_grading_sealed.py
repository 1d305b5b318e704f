"""Signed reports: what opens, what does not, and what a script looks like around them."""

from __future__ import annotations

import base64
import subprocess
from hashlib import blake2b

import pytest

from palestra.environment.grading.script import Runner, Steps, compose, runner_of, witness_steps
from palestra.environment.grading.sealed import SEAL_MARK, new_key, open_sealed, without_seals
from palestra.tasks.swegym import END_MARKER, START_MARKER

KEY = new_key()
REPORT = "finding it was odd\ncanary FAILED\ncanary ERROR\n\nPASSED a::b\nFAILED a::c"


def signed(report: str, key: str = KEY) -> str:
    data = report.encode()
    signature = blake2b(data, key=key.encode()).hexdigest()
    return f"{SEAL_MARK}{signature} {base64.b64encode(data).decode()}"


def test_a_signed_report_is_read() -> None:
    report = open_sealed(f"noise\n{signed(REPORT)}\nnoise", KEY)
    assert report is not None
    assert report.log == "PASSED a::b\nFAILED a::c"
    assert report.canaries == ("FAILED", "ERROR")
    assert report.findings == ("it was odd",)
    assert not report.is_spread


def test_a_report_without_a_head_or_without_tests_is_read() -> None:
    report = open_sealed(signed("\nPASSED a::b"), KEY)
    assert report is not None
    assert (report.log, report.canaries) == ("PASSED a::b", ())
    report = open_sealed(signed("spread\n\n"), KEY)
    assert report is not None
    assert (report.log, report.is_spread) == ("", True)


@pytest.mark.parametrize(
    "line",
    [
        signed(REPORT, new_key()),
        signed(REPORT)[:-8],
        signed(REPORT).replace(SEAL_MARK, SEAL_MARK.lower()),
        SEAL_MARK + "00 AAAA",
        SEAL_MARK,
        SEAL_MARK + "\u2603 \u2603",
        SEAL_MARK + "0" * 128 + " ====",
        "",
    ],
)
def test_what_is_not_signed_does_not_open(line: str) -> None:
    assert open_sealed(line, KEY) is None


def test_a_forged_line_does_not_hide_the_signed_one() -> None:
    forged = signed(REPORT.replace("FAILED a::c", "PASSED a::c"), new_key())
    report = open_sealed(f"{forged}\nxx{signed(REPORT)}", KEY)
    assert report is not None
    assert report.log.endswith("FAILED a::c")


def test_readers_of_the_log_see_no_reports() -> None:
    assert without_seals(f"a\n{signed(REPORT)}\nb") == "a\nb"
    assert without_seals("a\n") == "a\n"


def test_who_runs_the_tests_follows_from_the_parser() -> None:
    assert runner_of("parse_log_pytest_v2") is Runner.PYTEST
    assert runner_of("parse_log_django") is Runner.UNITTEST
    assert runner_of("parse_log_sympy") is Runner.SYMPY
    assert runner_of("parse_log_signed") is Runner.OWN


SCRIPT = f"""\
set -x
echo installing
git checkout abc tests/a.py
: '{START_MARKER}'
PYTHONPATH=src run; NOT_PYTHONPATH=x
: '{END_MARKER}'
git checkout abc tests/a.py
"""


def steps(*, first: bool = False, witness: str = "echo witness") -> Steps:
    return Steps(apply="echo patch", apply_first=first, witness=witness, witness_folder="/tmp/here")


def places(text: str, *words: str) -> list[int]:
    found = [text.index(word) for word in words]
    assert all(text.count(word) == 1 for word in words), text
    return found


def test_the_patch_goes_in_behind_the_installation_and_the_witness_before_the_tests() -> None:
    text = compose(SCRIPT, steps())
    order = places(text, "palestra_key <&7", "installing", "echo patch", "echo witness", "run;")
    assert order == sorted(order)
    assert text.index("git checkout abc") > order[2]
    assert "PYTHONPATH=/tmp/here:src run; NOT_PYTHONPATH=x" in text


def test_a_patch_of_the_build_goes_in_before_the_installation() -> None:
    text = compose(SCRIPT, steps(first=True))
    order = places(text, "palestra_key <&7", "echo patch", "installing", "echo witness", "run;")
    assert order == sorted(order)


def test_without_a_witness_there_is_no_key_and_the_paths_stay() -> None:
    text = compose(SCRIPT, steps(witness=""))
    assert "palestra_key" not in text
    assert "\nPYTHONPATH=src run" in text


def test_the_steps_leave_no_trace_and_the_scripts_options_alone() -> None:
    script = SCRIPT.replace("set -x", "set -xeu").replace(
        "git checkout abc tests/a.py", "git apply"
    )
    script = script.replace("PYTHONPATH=src run; NOT_PYTHONPATH=x", "echo $- $UNSET")
    script = f"cd /tmp\ngit() {{ echo git in $PWD; }}\n{script}"
    text = compose(script, steps(witness="false; true $UNSET"))
    done = subprocess.run(
        ["bash", "-c", f"exec 7</dev/null; {text}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd="/",
        check=False,
    )
    lines = done.stdout.splitlines()
    assert "patch" in lines, done.stdout
    assert "git in /tmp" in lines, done.stdout
    assert not any("palestra" in line or "witness" in line for line in lines), done.stdout
    assert "unbound" in lines[-1], "the script's options came back"
    assert done.returncode != 0


@pytest.mark.parametrize("runner", Runner)
def test_the_steps_of_every_runner_are_bash(runner: Runner) -> None:
    text = witness_steps(runner, hidden=["tests/a b.py"], changed=["x'y.py"], folder="/tmp/f")
    subprocess.run(["bash", "-n", "-c", text], check=True)
    assert ("exec 7<" in text) is (runner is not Runner.OWN)
