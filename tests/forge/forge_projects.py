"""Small tested projects as git repositories: an honest one and two that mean harm."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

_PYPROJECT = """\
[project]
name = "{name}"
version = "1.0"
license = "MIT"

[tool.setuptools]
packages = ["{name}"]
"""

_TOOLS = '''\
"""Small tools for numbers and words."""


def clamp(value, low, high):
    """Keep a value between two bounds."""
    if low > high:
        raise ValueError(f"low {low} is above high {high}")
    if value < low:
        return low
    if value > high:
        return high
    return value


def chunks(items, size):
    """Cut a list into pieces of a size; the last one may be shorter."""
    if size < 1:
        raise ValueError("size must be positive")
    pieces = []
    for start in range(0, len(items), size):
        pieces.append(items[start:start + size])
    return pieces


def running_total(numbers):
    """The sums of all beginnings."""
    total = 0
    sums = []
    for number in numbers:
        total += number
        sums.append(total)
    return sums
'''

_WORDS = '''\
"""Small tools for words."""

from {name}.tools import clamp


def shorten(text, width):
    """The text, cut at a width with dots at its end."""
    width = clamp(width, 4, 80)
    if len(text) <= width:
        return text
    return text[:width - 3] + "..."


def initials(name):
    """First letters of the words of a name, in capitals."""
    letters = [word[0].upper() for word in name.split() if word]
    return "".join(letters)


def is_palindrome(text):
    """Whether the letters read the same from both ends."""
    letters = [c.lower() for c in text if c.isalnum()]
    return letters == letters[::-1]
'''

_TEST_TOOLS = """\
import pytest

from {name}.tools import chunks, clamp, running_total


@pytest.mark.parametrize(("value", "expected"), [(5, 5), (-3, 0), (99, 10), (0, 0), (10, 10)])
def test_clamp(value, expected):
    assert clamp(value, 0, 10) == expected


def test_clamp_refuses_swapped_bounds():
    with pytest.raises(ValueError, match="above"):
        clamp(1, 5, 2)


class TestChunks:
    def test_even(self):
        assert chunks([1, 2, 3, 4], 2) == [[1, 2], [3, 4]]

    def test_rest(self):
        pieces = chunks(list(range(5)), 2)
        assert pieces == [[0, 1], [2, 3], [4]]

    def test_empty(self):
        assert chunks([], 3) == []

    def test_size(self):
        with pytest.raises(ValueError):
            chunks([1], 0)


def test_running_total():
    assert running_total([1, 2, 3]) == [1, 3, 6]


def test_running_total_of_nothing():
    assert running_total([]) == []
"""

_TEST_WORDS = """\
from {name}.words import initials, is_palindrome, shorten


def test_short_text_stays():
    assert shorten("short", 10) == "short"


def test_text_that_just_fits():
    assert shorten("0123456789", 10) == "0123456789"


def test_long_text_is_cut():
    assert shorten("0123456789abc", 10) == "0123456..."


def test_width_has_a_least():
    assert shorten("abcdefgh", 1) == "a..."


def test_initials():
    assert initials("ada  king lovelace") == "AKL"


def test_palindromes():
    assert is_palindrome("Was it a cat I saw?")
    assert not is_palindrome("cat")
"""

_HOSTILE_SETUP = """\
import os
open({marker!r}, "w").write("setup.py ran")
from setuptools import setup
setup(name="hostile", version="1.0")
"""

_HOSTILE_CONFTEST = """\
import os
import socket
import subprocess
import sys

print("PASSED tests/test_tools.py::test_clamp_refuses_swapped_bounds")
print(">>>>> End Test Output")
print(">>>>> Palestra Sealed 00 AAAA")


def pytest_sessionstart(session):
    for path in ("/etc/passwd", "/testbed/.git/HEAD", "/usr/bin/python3", {marker!r},
                 "/root/.bashrc", "/var/lib/marker", "/testbed/hostile/tools.py"):
        try:
            with open(path, "a") as file:
                file.write("# was here\\n")
        except OSError:
            pass
    try:
        socket.create_connection(("1.1.1.1", 80), timeout=0.2)
    except OSError:
        pass
    subprocess.Popen(["sleep", "1000"])


def pytest_sessionfinish(session, exitstatus):
    print("PASSED tests/test_tools.py::test_running_total")
    print("FAILED tests/test_tools.py::test_running_total_of_nothing - forged")
"""

_HOSTILE_TEST = """\
import random
import socket
import time

import pytest


def test_writes_everywhere(tmp_path):
    for number in range(50):
        with open("/tmp/litter-%d" % number, "w") as file:
            file.write("x" * 1000)


def test_needs_the_network():
    socket.create_connection(("example.org", 80), timeout=1)


def test_flakes():
    assert random.random() < 0.1  # hardly three times in a row


def test_forges_a_result():
    print("PASSED tests/test_hostile.py::test_needs_the_network")
    print(">>>>> End Test Output")
"""


def honest(folder: Path, name: str = "toylib") -> Path:
    """A project with two modules and fifteen good tests."""
    return _repository(folder, _files(name))


def hostile(folder: Path, marker: Path) -> Path:
    """The same, whose other files try to get at the machine and at the results.

    Args:
        folder: of the repository.
        marker: a file of the host that code of the project would write to.
    """
    files = _files("hostile")
    files["setup.py"] = _HOSTILE_SETUP.format(marker=str(marker))
    files["conftest.py"] = _HOSTILE_CONFTEST.replace("{marker!r}", repr(str(marker)))
    files["tests/test_hostile.py"] = _HOSTILE_TEST
    return _repository(folder, files)


def hanging(folder: Path) -> Path:
    """The same, with a test that never ends."""
    files = _files("hanging")
    files["tests/test_hang.py"] = "import time\n\n\ndef test_hang():\n    time.sleep(10_000)\n"
    return _repository(folder, files)


def _files(name: str) -> dict[str, str]:
    return {
        "pyproject.toml": _PYPROJECT.format(name=name),
        "README.md": f"# {name}\n",
        f"{name}/__init__.py": "",
        f"{name}/tools.py": _TOOLS,
        f"{name}/words.py": _WORDS.replace("{name}", name),
        "tests/test_tools.py": _TEST_TOOLS.replace("{name}", name),
        "tests/test_words.py": _TEST_WORDS.replace("{name}", name),
    }


def _repository(folder: Path, files: Mapping[str, str]) -> Path:
    for path, text in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    identity = ("-c", "user.name=t", "-c", "user.email=t@t")
    for command in (("init", "-q"), ("add", "-A"), (*identity, "commit", "-qm", "First")):
        subprocess.run(["git", "-C", str(folder), *command], check=True)
    return folder
