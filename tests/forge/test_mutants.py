"""Bugs are seeded byte-exactly: they parse, change only their site, and can be taken back."""

from __future__ import annotations

import ast
import heapq
import itertools
import textwrap
from collections import Counter
from pathlib import Path

import pytest

from palestra.errors import TaskError
from palestra.forge.mutants import KINDS, Mutant, Site, mutants, sites
from palestra.forge.source import Edit, Source

REAL = [Path(textwrap.__file__), Path(heapq.__file__), Path(Counter.__init__.__code__.co_filename)]

EXAMPLES = {
    "operator": ("return a + b", "return a - b"),
    "comparison": ("return a == b", "return a != b"),
    "boundary": ("return a < b", "return a <= b"),
    "off_by_one": ("return a[1]", "return a[2]"),
    "wrong_constant": ("return True", "return False"),
    "swapped_arguments": ("return f(a, b)", "return f(b, a)"),
    "dropped_argument": ("return f(a, key=b)", "return f(a)"),
    "dropped_condition": ("return a and (b or 1)", "return a"),
    "inverted_branch": ("if a: return b", "if not (a): return b"),
    "dropped_unary": ("return not (a)", "return (a)"),
    "dropped_call": ("return (a).copy()", "return (a)"),
    "lost_edge_case": ("return a if b else 0", "return 0"),
    "removed_guard": ("if a:\n        return b", "pass"),
    "wrong_exception": ("raise KeyError(a)", "raise IndexError(a)"),
    "shuffled_lines": ("a = b  \n    b = a", "b = a  \n    a = b"),
    "stale_cache": ("self.x[a] = b", "pass"),
    "removed_body": ("x = a\n    return x", "raise NotImplementedError"),
    "loop_exit": ("for x in a:\n        break", "for x in a:\n        continue"),
    "lost_branch": (
        "if a:\n        f()\n    else:\n        f(b)",
        "if a:\n        f()\n    else:\n        pass",
    ),
}


def _function(body: str) -> bytes:
    return f'def g(self, a, b):\n    "é, not a place"\n    {body}\n'.encode()


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_writes_what_it_says(kind: str) -> None:
    before, after = (_function(body) for body in EXAMPLES[kind])
    source = Source.parse(before)
    assert after in {edit.apply(before) for edit in KINDS[kind](source)}


@pytest.mark.parametrize("path", REAL, ids=lambda p: p.name)
def test_real_modules_change_at_the_site_only_and_come_back(path: Path) -> None:
    source = Source.parse(path.read_bytes())
    seen = set()
    for mutant in itertools.islice(mutants(source, seed="real"), 40):
        (site,) = mutant.sites
        mutated = mutant.apply(source.data)
        ast.parse(mutated)
        assert mutated[: site.edit.start] == source.data[: site.edit.start]
        assert mutated[site.edit.start + len(site.edit.new) :] == source.data[site.edit.end :]
        assert mutant.undo(mutated) == source.data
        seen.add(mutated)
    assert len(seen) >= 20
    assert len(seen) == len(list(itertools.islice(mutants(source, seed="real"), 40)))


def test_a_real_module_has_most_kinds() -> None:
    found = {site.kind for path in REAL for site in sites(Source.parse(path.read_bytes()))}
    assert len(found) >= len(KINDS) - 3, set(KINDS) - found


def test_the_seed_decides() -> None:
    source = Source.parse(REAL[0].read_bytes())

    def ids(seed: str) -> list[str]:
        return [m.id for m in itertools.islice(mutants(source, seed=seed, level=2), 8)]

    assert ids("a") == ids("a")
    assert ids("a") != ids("b")


def test_several_bugs_at_once_do_not_touch_and_come_back() -> None:
    source = Source.parse(REAL[0].read_bytes())
    for mutant in itertools.islice(mutants(source, seed="s", level=3), 10):
        assert len(mutant.sites) == 3
        for one, other in itertools.pairwise(mutant.sites):
            assert one.edit.end < other.edit.start
        assert mutant.undo(mutant.apply(source.data)) == source.data


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_line_ends_and_wide_characters_keep_their_bytes(ending: str) -> None:
    text = "def f(a):\n    s = 'äöü€'; b = a + 1\n    # ü\n    return b * 2\n"
    data = text.replace("\n", ending).encode()
    found = {edit.apply(data) for edit in KINDS["operator"](Source.parse(data))}
    assert found == {data.replace(b"a + 1", b"a - 1"), data.replace(b"b * 2", b"b + 2")}


def test_docstrings_annotations_decorators_and_f_strings_are_left_alone() -> None:
    data = b'@d(1)\ndef f(a: "1" = 1, *b: d[2 + 3]) -> d[4]:\n    "1 + 1"\n    return f"{a + 1}"\n'
    assert sites(Source.parse(data)) == ()


def test_bytes_that_are_no_module_are_refused() -> None:
    for data in (b"def", b"\xff", b"\xef\xbb\xbfx = 1\n", b"x\0"):
        with pytest.raises(TaskError):
            Source.parse(data)


def test_an_edit_refuses_other_bytes() -> None:
    site = Site(kind="operator", edit=Edit(start=0, end=1, old=b"a", new=b"b"))
    with pytest.raises(TaskError, match="not what the edit replaces"):
        Mutant(sites=(site,)).apply(b"xyz")
