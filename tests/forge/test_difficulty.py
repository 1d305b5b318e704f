"""Difficulty is measured from what a bug and its failures show."""

from __future__ import annotations

import dataclasses

import pytest

from palestra.forge.difficulty import measure, relevel
from palestra.forge.mutants import Mutant, Site
from palestra.forge.records import Candidate, Failure, Frame
from palestra.forge.source import Source
from palestra.tasks.difficulty import level_of

MODULE = b"""\
def first(a):
    if a > 1:
        return second(a)
    return a


def second(a):
    b = a + 1
    return third(b)


def third(b):
    c = b * 2
    d = c - 1
    return d
"""
LONG = b"def f(a):\n" + b"".join(b"    a = a + %d\n" % i for i in range(80)) + b"    return a\n"


def bug(module: bytes, old: bytes, new: bytes, kind: str = "operator") -> Site:
    start = module.index(old)
    return Site(kind=kind, edit=Source.parse(module).edit((start, start + len(old)), new))


def failure(*frames: tuple[str, int, str]) -> Failure:
    found = tuple(Frame(path=path, line=line, function=name) for path, line, name in frames)
    return Failure(test="t.py::test", error="E", message="", frames=found)


def candidate(
    sites: list[Site], *failures: Failure, path: str = "m.py", failing: tuple[str, ...] = ("t",)
) -> Candidate:
    mutant = Mutant(sites=tuple(sorted(sites, key=lambda s: s.edit)))
    return Candidate(mutants={path: mutant}, failing=failing, holding=(), failures=failures)


TEST = ("t.py", 3, "test")


@pytest.mark.parametrize(
    ("frames", "calls"),
    [
        ([TEST], None),
        ([TEST, ("other.py", 1, "f")], None),
        ([TEST, ("m.py", 3, "first"), ("m.py", 8, "second")], 0),
        ([TEST, ("m.py", 8, "second"), ("m.py", 13, "third")], 1),
        ([TEST, ("m.py", 8, "second"), ("m.py", 13, "third"), ("x.py", 1, "g")], 2),
        ([TEST, ("m.py", 3, "first")], 1),
    ],
)
def test_the_distance_from_the_innermost_frame(
    frames: list[tuple[str, int, str]], calls: int | None
) -> None:
    site = bug(MODULE, b"a + 1", b"a - 1")
    one = candidate([site], failure(*frames))
    assert measure(one, {"m.py": site.edit.apply(MODULE)}).trace_distance == calls


def test_the_nearest_of_several_failures_counts() -> None:
    site = bug(MODULE, b"a + 1", b"a - 1")
    one = candidate([site], failure(TEST), failure(TEST, ("m.py", 8, "second")))
    assert measure(one, {"m.py": site.edit.apply(MODULE)}).trace_distance == 0


def test_lines_of_the_functions_with_a_bug_and_on_the_way() -> None:
    site = bug(MODULE, b"b * 2", b"b / 2")
    alone = measure(candidate([site], failure(TEST)), {"m.py": site.edit.apply(MODULE)})
    assert alone.lines_to_read == 4
    frames = [TEST, ("m.py", 3, "first"), ("m.py", 8, "second")]
    way = measure(candidate([site], failure(*frames)), {"m.py": site.edit.apply(MODULE)})
    assert way.lines_to_read == 4 + 4 + 3


def test_bugs_after_one_that_moved_the_text_are_found() -> None:
    removed = bug(MODULE, b"if a > 1:\n        return second(a)\n    return a", b"pass")
    late = bug(MODULE, b"c - 1", b"c + 1")
    one = candidate([removed, late], failure(TEST))
    text = next(iter(one.mutants.values())).apply(MODULE)
    found = measure(one, {"m.py": text})
    assert (found.num_sites, found.lines_to_read) == (2, 2 + 4)


def test_levels_from_easy_to_hard() -> None:
    near = failure(TEST, ("m.py", 8, "second"))
    small = bug(MODULE, b"a + 1", b"a - 1")
    shown = measure(candidate([small], near), {"m.py": small.edit.apply(MODULE)})
    hidden = measure(candidate([small], failure(TEST)), {"m.py": small.edit.apply(MODULE)})
    far = bug(LONG, b"a + 40\n", b"a - 40\n")
    long = measure(candidate([far], failure(TEST)), {"m.py": far.edit.apply(LONG)})
    body = LONG[LONG.index(b"a = a + 0") : LONG.index(b"    return")]
    sites = [bug(LONG, b"a + %d\n" % n, b"a - %d\n" % n) for n in (10, 20, 30, 40)]
    many = candidate(sites, failure(TEST))
    several = measure(many, {"m.py": many.mutants["m.py"].apply(LONG)})
    gone = bug(LONG, body, b"raise NotImplementedError\n", kind="removed_body")
    removed = measure(candidate([gone], failure(TEST)), {"m.py": gone.edit.apply(LONG)})
    assert [shown.level, hidden.level, long.level, several.level] == [1, 2, 4, 5]
    assert removed.level > hidden.level


def test_a_bug_outside_of_any_function_and_a_module_that_is_no_python() -> None:
    top = b"LIMIT = 3\n"
    site = bug(top, b"3", b"4")
    assert measure(candidate([site], failure(TEST)), {"m.py": b"LIMIT = 4\n"}).lines_to_read == 1
    assert measure(candidate([site], failure(TEST)), {"m.py": b"LIMIT (= 4\n"}).level == 2


@pytest.mark.parametrize(
    ("level", "solved", "attempts", "then"),
    [
        (3, 0, 0, 3),
        (3, 8, 8, 1),
        (3, 0, 8, 5),
        (1, 0, 4, 3),
        (5, 8, 8, 2),
        (1, 0, 100, 5),
        (5, 100, 100, 1),
        (3, 1, 2, 3),
    ],
)
def test_what_was_solved_moves_the_level(level: int, solved: int, attempts: int, then: int) -> None:
    assert relevel(level, solved, attempts) == then


@pytest.mark.parametrize(
    ("level", "solved", "attempts"), [(0, 0, 0), (6, 0, 0), (1, 2, 1), (1, -1, 1)]
)
def test_impossible_counts_are_refused(level: int, solved: int, attempts: int) -> None:
    with pytest.raises(ValueError, match=r"level|attempts"):
        relevel(level, solved, attempts)


@pytest.mark.parametrize(
    ("stated", "level"),
    [(1, 1), (5, 5), (9, 5), (0, 1), (0.0, 1), (1.0, 5), (0.5, 3), (0.2, 2), (True, 3), ("x", 3)],
)
def test_the_level_that_a_row_states(stated: object, level: int) -> None:
    assert level_of({"difficulty": stated}) == level
    assert level_of({}) == 3


def test_a_difficulty_is_hashable_and_equal_by_value() -> None:
    site = bug(MODULE, b"a + 1", b"a - 1")
    one = measure(candidate([site], failure(TEST)), {"m.py": site.edit.apply(MODULE)})
    assert dataclasses.replace(one) == one
