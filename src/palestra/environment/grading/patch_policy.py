"""What of a candidate patch counts: the source, and nothing that steers the tests.

A patch is cut into its files. Left out, and reported, are

1. files that the hidden tests bring or change;
2. links that leave the repository, and submodules;
3. what steers the tests by its name (:data:`STEERING`): tests and their fixtures, hooks of
   the interpreter, settings of test tools, of CI and of git;
4. new modules that would be imported in place of the standard library's or a test tool's.

A file that the gold patch changes always counts, unless rule 1 or 2 says otherwise; so do
files that the task set allows. The rest is graded as if nothing else had been handed in.
How the project is installed (setup.py, requirements) does not count: it could run before the
hidden tests are in place, which the modules under test do not.

A path is no proof of intent: an honest agent that adds a test of its own loses nothing by
this, since the hidden tests do not need it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import takewhile
from types import MappingProxyType

from palestra.environment.grading import patches
from palestra.records import RefusedPart, Task

STEERING: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "a test": (
            *(f"*/{name}/*" for name in ("test", "tests", "testing", "_testing", "e2e")),
            "*/test-data/*",
            "*/test_*.py",
            "*/*_test.py",
            "*/tests.py",
            "*/conftest.py",
        ),
        "a hook of the interpreter": (
            "*/sitecustomize.py",
            "*/usercustomize.py",
            "*.pth",
            "*.egg-link",
            "*.egg-info/*",
            "*.dist-info/*",
            "*/site-packages/*",
            "*/dist-packages/*",
            "*/__pycache__/*",
            "*.pyc",
        ),
        "a setting of the test tools": (
            "*/pytest.ini",
            "*/.pytest.ini",
            "*/pytest.toml",
            "*/.pytest.toml",
            "*/tox.ini",
            "*/tox.toml",
            "*/setup.cfg",
            "*/pyproject.toml",
            "*/noxfile.py",
            "*/.coveragerc",
            "*/runtests.py",
            "/bin/test*",
            "/Makefile",
        ),
        "a part of the installation": (
            "*/setup.py",
            "*/requirements*.txt",
            "*/requirements/*",
            "*.whl",
            "*.egg",
            "*/meson.build",
            "*/CMakeLists.txt",
            "*.cmake",
            "/build.py",
            "*/hatch_build.py",
            "*/_custom_build.py",
        ),
        "a setting of CI": (
            "/.github/*",
            "/.gitlab-ci.yml",
            "/.circleci/*",
            "/.travis.yml",
            "/appveyor.yml",
            "/azure-pipelines*.yml",
        ),
        "a setting of git": ("*/.gitattributes", "*/.gitmodules", "*/.lfsconfig"),
    }
)
"""Reason → patterns, matched against the path with a slash before it; ``*`` crosses slashes."""

TEST_TOOLS = frozenset(
    {"pytest", "_pytest", "py", "pluggy", "iniconfig", "packaging", "exceptiongroup", "tomli"}
    | {"xdist", "execnet", "pytest_order", "freezegun", "hypothesis", "nose", "tox", "coverage"}
    | {"pytest_cov", "pytest_asyncio", "pytest_mock", "pytest_rerunfailures", "attr", "attrs"}
)
"""Modules that run tests, besides the standard library's."""

_ROOTS = ("", "src/", "lib/")
_MODULE = re.compile(r"(\w+)(?:/__init__)?(?:\.py|\.pyw|(?:\.[\w-]+)?\.so)")
_LINK, _SUBMODULE = "120000", "160000"
_MODE = re.compile(r"(?:new file mode|new mode|index [0-9a-f]+\.\.[0-9a-f]+) (\d{6})\s*$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sifted:
    """A patch without its refused parts."""

    kept: str
    refused: tuple[RefusedPart, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchPolicy:
    """The rule for one task set.

    Attributes:
        refuse: further patterns of what does not count, as in :data:`STEERING`.
        allow: patterns of what counts against rules 3 and 4 and against ``refuse``.
    """

    refuse: Sequence[str] = ()
    allow: Sequence[str] = ()

    def sift(self, patch: str, task: Task) -> Sifted:
        """Leave out of ``patch`` what does not count for ``task``."""
        hidden = frozenset(patches.touched_paths(task.test_patch))
        gold = frozenset(patches.touched_paths(task.gold_patch))
        kept: list[str] = []
        refused: list[RefusedPart] = []
        for part in patches.split_files(patch):
            against = self._against(part, hidden=hidden, gold=gold)
            if against is None:
                kept.append(part)
            else:
                refused.append(against)
        return Sifted(kept="".join(kept), refused=tuple(refused))

    def _against(
        self, part: str, *, hidden: Collection[str], gold: Collection[str]
    ) -> RefusedPart | None:
        """What speaks against one file of a patch."""
        paths = patches.touched_paths(part)
        modes = {found[1] for line in patches.headers(part) if (found := _MODE.match(line))}
        for path in paths:
            if path in hidden:
                return RefusedPart(path=path, reason="a file of the hidden tests")
            if _SUBMODULE in modes:
                return RefusedPart(path=path, reason="a submodule")
            if _LINK in modes and any(_leaves(path, target) for target in _added(part)):
                return RefusedPart(path=path, reason="a link that leaves the repository")
        is_new = any(
            line.startswith(("new file", "rename to", "copy to")) for line in patches.headers(part)
        )
        for path in paths:
            if path not in gold and not _matches(path, self.allow):
                reason = self._steers(path) or (_shadows(path) if is_new else None)
                if reason is not None:
                    return RefusedPart(path=path, reason=reason)
        return None

    def _steers(self, path: str) -> str | None:
        for reason, patterns in STEERING.items():
            if _matches(path, patterns):
                return reason
        return "refused by the task set" if _matches(path, self.refuse) else None


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(f"/{path}", pattern) for pattern in patterns)


def _shadows(path: str) -> str | None:
    """Whether a new file is a module that comes before one of the same name."""
    for root in _ROOTS:
        module = _MODULE.fullmatch(path.removeprefix(root)) if path.startswith(root) else None
        if module and (module[1] in sys.stdlib_module_names or module[1] in TEST_TOOLS):
            return f"a module in the place of {module[1]!r}"
    return None


def _added(part: str) -> tuple[str, ...]:
    """What a part that makes a link makes it point to."""
    known = set(patches.headers(part))
    return tuple(line[1:] for line in part.split("\n") if line[:1] == "+" and line not in known)


def _leaves(path: str, target: str) -> bool:
    steps = target.split("/")
    ups = len(tuple(takewhile("..".__eq__, steps)))
    # Behind a name that is itself a link, ".." would lead somewhere else.
    return target.startswith("/") or ups > path.count("/") or ".." in steps[ups:]
