"""Copies of a project among the packages that are installed beside it; pure reading.

Another distribution may carry the project's modules: a fork under the same name, which would be
imported in its place, or a vendored copy, in which an agent could read what a bug changed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from palestra.forge.layout import Layout
from palestra.forge.statement import is_telling

_MAX_BYTES = 300_000
_COPIED_SHARE = 0.5
_MIN_LINES = 8


def in_its_place(tree: Path, layout: Layout, site: Path) -> Iterator[Path]:
    """Files and folders of ``site`` that are imported as if they were the project's.

    Where neither has an ``__init__.py``, the package is one that several distributions share,
    and only the modules that both have are named.
    """
    for package in layout.packages:
        own, other = tree / layout.root / package, site / package
        if (single := other.with_name(f"{package}.py")).is_file():
            yield single
        if other.is_dir() and (other / "__init__.py").is_file():
            yield other
        elif other.is_dir():
            shared = (other / path.relative_to(own) for path in sorted(own.rglob("*.py")))
            yield from (path for path in shared if path.is_file())


def copies(tree: Path, sources: Iterable[str], folder: Path) -> Iterator[tuple[Path, str]]:
    """Modules below ``folder`` that hold half of a module of the project or more.

    Args:
        tree: the project.
        sources: its modules, relative to it.
        folder: of installed packages.

    Yields:
        The copy, and the module that it is one of.
    """
    of_line: dict[str, set[str]] = defaultdict(set)
    needed: dict[str, float] = {}
    for source in sources:
        lines = _lines(tree / source)
        needed[source] = max(_MIN_LINES, _COPIED_SHARE * len(lines))
        for line in lines:
            of_line[line].add(source)
    for path in sorted(folder.rglob("*.py")):
        held = Counter(source for line in _lines(path) for source in of_line.get(line, ()))
        source, count = next(iter(held.most_common(1)), ("", 0))
        if source and count >= needed[source]:
            yield path, source


def _lines(path: Path) -> frozenset[str]:
    """The lines that say something of their own; none of a file that is no plain module."""
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > _MAX_BYTES:
            return frozenset()
        text = path.read_text("utf-8", "replace")
    except OSError:
        return frozenset()
    stripped = {line.strip() for line in text.splitlines()}
    return frozenset(line for line in stripped if not line.startswith("#") and is_telling(line))
