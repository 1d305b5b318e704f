"""What a project's tests import, where the project forgets to say that they need it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement

# Packages that tests are often written with, by what they are imported or asked for as.
_BY_MODULE = {
    "hypothesis": "hypothesis",
    "freezegun": "freezegun",
    "parameterized": "parameterized",
    "ddt": "ddt",
    "mock": "mock",
    "yaml": "pyyaml",
    "attr": "attrs",
    "attrs": "attrs",
    "dateutil": "python-dateutil",
    "pytz": "pytz",
    "simplejson": "simplejson",
    "typing_extensions": "typing-extensions",
    "numpy": "numpy",
    "wcwidth": "wcwidth",
    "sortedcontainers": "sortedcontainers",
    "pytest_mock": "pytest-mock",
    "anyio": "anyio",
}
_BY_FIXTURE = {
    "mocker": "pytest-mock",
    "benchmark": "pytest-benchmark",
    "subtests": "pytest-subtests",
}
_IMPORT = re.compile(rb"^[ \t]*(?:import|from)[ \t]+(\w+)", re.MULTILINE)
_TEST = re.compile(rb"^[ \t]*(?:async[ \t]+)?def[ \t]+test\w*\(([^)]*)\)", re.MULTILINE)
_MAX_BYTES = 1 << 20


def imported_by(tree: Path, tests: Iterable[str]) -> tuple[Requirement, ...]:
    """Well-known packages that test files and their conftests import or ask for as fixtures."""
    files = {tree / path for path in tests}
    files |= {folder / "conftest.py" for file in files for folder in (file.parent, tree)}
    wanted: set[str] = set()
    for file in files:
        try:
            data = file.read_bytes()[:_MAX_BYTES]
        except OSError:
            continue
        modules = {name.decode() for name in _IMPORT.findall(data)}
        wanted |= {_BY_MODULE[name] for name in modules & _BY_MODULE.keys()}
        asked = b",".join(_TEST.findall(data)).decode("utf-8", "replace")
        fixtures = {word.strip() for word in asked.split(",")}
        wanted |= {_BY_FIXTURE[name] for name in fixtures & _BY_FIXTURE.keys()}
    return tuple(Requirement(name) for name in sorted(wanted))
