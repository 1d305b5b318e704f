"""Bugs are drawn the same way each time, spread over a project, and combined without a clash."""

from __future__ import annotations

from collections import Counter
from itertools import islice

from palestra.forge.drafts import MAX_PER_FUNCTION, combined, function_at, singles
from palestra.forge.source import Source

SMALL = b"""\
def clamp(value, low, high):
    if value < low:
        return low
    if value > high:
        return high
    return value
"""
LARGE = b"\n\n".join(
    b"def f%d(a, b):\n    if a > b and b != 0:\n        return a - b + %d\n    return a * b\n"
    % (i, i)
    for i in range(12)
)
MODULES = {"small.py": SMALL, "large.py": LARGE, "broken.py": b"def (:", "data.py": b"X = 1\n"}


def test_the_same_seed_gives_the_same_bugs_and_another_seed_others() -> None:
    first, again, other = (
        [draft.key for draft in islice(singles(MODULES, seed=seed), 20)] for seed in "aab"
    )
    assert first == again
    assert first != other


def test_no_bug_comes_twice_and_no_function_has_many() -> None:
    drafts = list(singles(MODULES, seed="0"))
    assert len({draft.key for draft in drafts}) == len(drafts)
    places: Counter[tuple[str, str]] = Counter()
    for draft in drafts:
        ((path, mutant),) = draft.mutants.items()
        source = Source.parse(MODULES[path])
        places[path, function_at(source, mutant.sites[0].edit.start)] += 1
    assert max(places.values()) <= MAX_PER_FUNCTION
    assert {path for path, _ in places} == {"small.py", "large.py"}


def test_combined_bugs_apply_together_and_are_taken_from_the_pool() -> None:
    pool = list(singles(MODULES, seed="0"))
    known = {site for draft in pool for m in draft.mutants.values() for site in m.sites}
    drafts = list(combined(pool, num_bugs=3, num_files=1, seed="0", tries=30))
    assert drafts
    assert len({draft.key for draft in drafts}) == len(drafts)
    for draft in drafts:
        ((path, mutant),) = draft.mutants.items()
        assert draft.num_sites == 3
        assert set(mutant.sites) <= known
        assert mutant.undo(mutant.apply(MODULES[path])) == MODULES[path]


def test_bugs_in_two_files_lie_in_two_files() -> None:
    pool = list(singles(MODULES, seed="0"))
    drafts = list(combined(pool, num_bugs=3, num_files=2, seed="0", tries=30))
    assert drafts
    assert all(set(draft.mutants) == {"small.py", "large.py"} for draft in drafts)
    assert all(draft.num_sites == 3 for draft in drafts)


def test_a_pool_that_is_too_small_gives_nothing() -> None:
    one = list(islice(singles({"small.py": SMALL}, seed="0"), 1))
    assert not list(combined(one, num_bugs=2, num_files=1, seed="0", tries=50))
    assert not list(combined(one, num_bugs=2, num_files=2, seed="0", tries=50))
    assert not list(combined([], num_bugs=2, num_files=1, seed="0", tries=50))
