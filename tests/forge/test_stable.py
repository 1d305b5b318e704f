"""Tests that draw their own inputs are not relied on, however often they passed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from palestra.errors import TaskError
from palestra.forge.stable import find_stable
from palestra.forge.suite import Suite, Trial


class Said(Suite):
    """A suite whose runs are given."""

    def __init__(self, trials: Sequence[Mapping[str, str]]) -> None:
        self.options = ()
        self._trials = iter(trials)

    async def run(self, *_: object, **__: object) -> Trial:  # type: ignore[override]
        return Trial(statuses=next(self._trials), is_signed=True, log="", duration_s=1.0)


def passed(file: str, number: int) -> dict[str, str]:
    return {f"{file}::test_{n}": "PASSED" for n in range(number)}


@pytest.mark.parametrize(
    "line", ["from hypothesis import given", "import hypothesis.strategies as st"]
)
async def test_what_draws_its_inputs_is_unsteady(tmp_path: Path, line: str) -> None:
    (tmp_path / "test_plain.py").write_text("# we do not import hypothesis\n")
    (tmp_path / "test_drawn.py").write_text(f"try:\n    {line}\nexcept ImportError:\n    pass\n")
    said = passed("test_plain.py", 6) | passed("test_drawn.py", 2)
    found = await find_stable([Said([said] * 3)], name="p", checkout=tmp_path, timeout_s=9)
    assert found.files == ("test_plain.py",)
    assert (len(found.tests), found.num_unsteady) == (6, 2)


async def test_a_project_of_nothing_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "test_drawn.py").write_text("from hypothesis import given\n")
    suites = [Said([passed("test_drawn.py", 9)] * 3)]
    with pytest.raises(TaskError, match="only 0 of its tests"):
        await find_stable(suites, name="p", checkout=tmp_path, timeout_s=9)


async def test_a_test_that_fails_once_is_unsteady(tmp_path: Path) -> None:
    steady = passed("test_a.py", 6)
    trials = [steady, steady | {"test_a.py::test_0": "FAILED"}, steady]
    found = await find_stable([Said(trials)], name="p", checkout=tmp_path, timeout_s=9)
    assert "test_a.py::test_0" not in found.tests
    assert (len(found.tests), found.num_unsteady) == (5, 1)
