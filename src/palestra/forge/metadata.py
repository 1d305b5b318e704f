"""What a project says of itself: name, licence, what it and its tests need; nothing is run."""

from __future__ import annotations

import configparser
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import Any

from packaging.markers import UndefinedComparison, UndefinedEnvironmentName
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

_TEST_GROUP = re.compile(r"tests?|testing|pytest|unit[-_]?tests?|check", re.IGNORECASE)
_DEV_GROUP = re.compile(r"dev|develop|development", re.IGNORECASE)
_TEST_FILE = re.compile(
    r"(?:requirements|reqs)?[-_/]?(?:tests?|testing)(?:[-_]?requirements)?\.txt"
)
# Of no use to a test run, and heavy.
_TOOLS = re.compile(
    r"sphinx|furo|mkdocs|myst|black|ruff|flake8|pylint|mypy|pyright|isort|tox|nox|pre-commit"
    r"|twine|build|wheel|bump|commitizen|codecov|coveralls|hatch|pip|setuptools|types-|jupyter"
    r"|pytest-(?:ruff|mypy|black|flake8|checkdocs|enabler|pylint|perf)",
    re.IGNORECASE,
)
_SECTION = re.compile(r"\[([^\]:]*)(?::([^\]]*))?\]")
# Names become parts of paths on this machine.
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?")
_LICENCE_CLASS = "License :: OSI Approved :: "


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """Of a project.

    Attributes:
        name: as it writes it; ``None`` where it does not say.
        version: the same.
        licence: the same.
        requirements: of the project itself.
        test_requirements: of its tests, as far as it says.
        entry_points: text of ``entry_points.txt``; empty where there are none.
        top_level: names of its modules, where it says.
    """

    name: str | None
    version: str | None
    licence: str | None
    requirements: tuple[Requirement, ...]
    test_requirements: tuple[Requirement, ...]
    entry_points: str
    top_level: tuple[str, ...]


def read_metadata(tree: Path, environment: Mapping[str, str]) -> Metadata:
    """Read what lies in an unpacked source.

    Args:
        tree: the source.
        environment: of markers (``python_version`` and so on), where the project will run.
    """
    info = _package_info(tree)
    project = _toml(tree / "pyproject.toml")
    table = dict(_tables(project.get("project")))
    egg = next(iter(sorted([*tree.glob("*.egg-info"), *tree.glob("*/*.egg-info")])), None)
    groups = _Groups(environment)
    groups.add_all("", info.get_all("Requires-Dist", []))
    if not info.get_all("Requires-Dist"):
        groups.add_all("", _strings(table.get("dependencies")))
        for extra, lines in _tables(table.get("optional-dependencies")):
            groups.add_all(extra, _strings(lines))
        if egg is not None:
            groups.add_egg(_text(egg / "requires.txt"))
    for name, lines in _tables(project.get("dependency-groups")):
        groups.add_all(name, _strings(lines))
    groups.add_poetry(dict(_tables(dict(_tables(project.get("tool"))).get("poetry"))))
    groups.add_setup_cfg(tree / "setup.cfg")
    for path in sorted([*tree.glob("*.txt"), *tree.glob("requirements/*.txt")]):
        if _TEST_FILE.fullmatch(str(path.relative_to(tree))):
            groups.add_all("test", _text(path).splitlines())
    return Metadata(
        name=_name(info["Name"] or table.get("name")),
        version=_version(info["Version"] or table.get("version")),
        licence=_licence(info, table),
        requirements=groups.own,
        test_requirements=groups.of_tests,
        entry_points=_entry_points(egg, table),
        top_level=_modules(_text(egg / "top_level.txt")) if egg else (),
    )


class _Groups:
    """Requirements by the extra or group that asks for them."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._found: dict[str, dict[str, Requirement]] = {}

    def add_all(self, group: str, lines: Iterable[str]) -> None:
        for line in lines:
            self._add(group, line.partition(" #")[0].strip())

    def _add(self, group: str, line: str) -> None:
        try:
            wanted = Requirement(line)
        except InvalidRequirement:
            return  # an option of pip, a path, an address
        if wanted.url is not None:
            return
        for extra in (group, *self._extras(wanted)):
            if self._applies(wanted, extra):
                wanted.marker = None
                self._found.setdefault(extra, {})[str(wanted)] = wanted
                return

    def _applies(self, wanted: Requirement, extra: str) -> bool:
        if wanted.marker is None:
            return True
        try:
            return wanted.marker.evaluate({**self._environment, "extra": extra})
        except (UndefinedComparison, UndefinedEnvironmentName, InvalidVersion):
            return False  # makes no sense anywhere

    @staticmethod
    def _extras(wanted: Requirement) -> list[str]:
        return re.findall(r"extra\s*==\s*['\"]([^'\"]+)['\"]", str(wanted.marker or ""))

    def add_egg(self, text: str) -> None:
        extra, marker = "", ""
        for line in text.splitlines():
            if section := _SECTION.fullmatch(line.strip()):
                extra, marker = section[1], section[2] or ""
            elif line.strip():
                self._add(extra, f"{line.strip()}; {marker}" if marker else line.strip())

    def add_poetry(self, table: Mapping[str, Any]) -> None:
        self.add_all("", _poetry(table.get("dependencies")))
        self.add_all("dev", _poetry(table.get("dev-dependencies")))
        for name, group in _tables(table.get("group")):
            if isinstance(group, Mapping):
                self.add_all(name, _poetry(group.get("dependencies")))

    def add_setup_cfg(self, path: Path) -> None:
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read_string(_text(path))
        except configparser.Error:
            return
        self.add_all("", parser.get("options", "install_requires", fallback="").splitlines())
        self.add_all("test", parser.get("options", "tests_require", fallback="").splitlines())
        if parser.has_section("options.extras_require"):
            for name, lines in parser.items("options.extras_require"):
                self.add_all(name, lines.splitlines())

    @property
    def own(self) -> tuple[Requirement, ...]:
        return tuple(self._found.get("", {}).values())

    @property
    def of_tests(self) -> tuple[Requirement, ...]:
        """Of the groups for tests; of those for development where there is none."""
        names = [name for name in self._found if _TEST_GROUP.fullmatch(name)]
        names = names or [name for name in self._found if _DEV_GROUP.fullmatch(name)]
        wanted = {str(one): one for name in names for one in self._found[name].values()}
        return tuple(one for one in wanted.values() if not _TOOLS.match(one.name))


def _package_info(tree: Path) -> Message:
    text = _text(tree / "PKG-INFO")
    if not text:
        found = sorted([*tree.glob("*.egg-info/PKG-INFO"), *tree.glob("*/*.egg-info/PKG-INFO")])
        text = _text(found[0]) if found else ""
    return Parser().parsestr(text, headersonly=True)


def _name(said: object) -> str | None:
    text = str(said).strip()
    return text if said and _NAME.fullmatch(text) else None


def _version(said: object) -> str | None:
    text = str(said).strip()
    try:
        Version(text)
    except InvalidVersion:
        return None
    return text


def _modules(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split() if name.isidentifier())


def _licence(info: Message, table: Mapping[str, Any]) -> str | None:
    if info["License-Expression"]:
        return str(info["License-Expression"])
    classes = [c for c in info.get_all("Classifier", []) if c.startswith(_LICENCE_CLASS)]
    if classes:
        return " and ".join(c.removeprefix(_LICENCE_CLASS) for c in classes)
    said = table.get("license")
    if isinstance(said, Mapping):
        said = said.get("text")
    said = said or info["License"]
    line = str(said).strip().splitlines()[0] if said and str(said).strip() else None
    return line[:100] if line and line != "UNKNOWN" else None


def _entry_points(egg: Path | None, table: Mapping[str, Any]) -> str:
    written = _text(egg / "entry_points.txt") if egg is not None else ""
    if written:
        return written
    groups = dict(_tables(table.get("entry-points")))
    for key, group in (("scripts", "console_scripts"), ("gui-scripts", "gui_scripts")):
        if isinstance(table.get(key), Mapping):
            groups[group] = table[key]
    parts = []
    for group, points in groups.items():
        if isinstance(points, Mapping):
            lines = [f"{name} = {target}" for name, target in points.items()]
            parts.append("\n".join([f"[{group}]", *lines]))
    return "\n\n".join(parts) + "\n" if parts else ""


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_text(path))
    except (tomllib.TOMLDecodeError, RecursionError):
        return {}


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""


def _strings(value: Any) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _tables(value: Any) -> Iterator[tuple[str, Any]]:
    yield from value.items() if isinstance(value, Mapping) else ()


def _poetry(value: Any) -> Iterator[str]:
    """Names only: poetry's own way to write versions is not worth reading."""
    for name, wanted in _tables(value):
        optional = isinstance(wanted, Mapping) and wanted.get("optional")
        if canonicalize_name(name) != "python" and not optional:
            yield name
