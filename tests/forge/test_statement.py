"""Statements say what a user would see, made from real test runs, and give nothing away."""

from __future__ import annotations

import ast
import dataclasses
import re
import subprocess
import sys
from collections import Counter

import pytest
from pytest_project import CORE, Run, make_run

from palestra.forge.examples import example_of
from palestra.forge.explanations import Call, Compared, calls, compared
from palestra.forge.failures import read_failures
from palestra.forge.mutants import Mutant, Site
from palestra.forge.records import Candidate, Failure, Frame
from palestra.forge.source import Source
from palestra.forge.statement import MAX_EXAMPLES, leaks, write_statement

ORIGINAL = CORE.replace("size + 1", "size")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("statement") / "project")


@pytest.fixture(scope="module")
def failures(run: Run) -> dict[str, Failure]:
    return {failure.test: failure for failure in read_failures(run.log)}


def seeded() -> Mutant:
    source = Source.parse(ORIGINAL.encode())
    start = source.data.index(b", size)]") + len(b", size")
    return Mutant(sites=(Site(kind="off_by_one", edit=source.edit((start, start), b" + 1")),))


def candidate(*failures: Failure) -> Candidate:
    failing = tuple(failure.test for failure in failures)
    return Candidate(mutants={"stock.py": seeded()}, failing=failing, holding=(), failures=failures)


def statement(run: Run, *failures: Failure, seed: str = "0") -> str:
    one = candidate(*failures)
    return write_statement(run.project, one, test_source=run.source, seed=seed)


def blocks(text: str, language: str = "") -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)\n```$", text, re.MULTILINE | re.DOTALL)
    return [block for name, block in found if name == language]


SHOWN = {
    "test_plain": (
        "items = [1, 2, 3, 4]\nout = chunk(items, 2)\nout",
        ["[[1, 2], [3, 4]]", "[[1, 2], [4]]"],
    ),
    "test_where": ("len(chunk([1, 2, 3], 1))", ["3", "2"]),
    "test_reversed": ("chunk([1, 2], 1)", ["[[1], [2]]", "[[1]]"]),
    "test_fixture": ("numbers = [1, 2, 3]\nchunk(numbers, 2)", ["[[1, 2], [3]]", "[[1, 2]]"]),
    "test_deep_fixture": (
        "numbers = [1, 2, 3]\nmade = numbers\nchunk(made, 2)",
        ["[[1, 2], [3]]", "[[1, 2]]"],
    ),
    "test_parameters[1-expected0]": ("chunk([1, 2], 1)", ["[[1], [2]]", "[[1]]"]),
    "test_blanks[a": ("chunk('a b', 1)", ["['a', ' ', 'b']", "['a', 'b']"]),
    "test_stacked[9-1]": ("chunk([9, 0, 0, 0], 1)[1]", ["[0, 9]", "[0]"]),
    "TestOuter::test_method": ("stock.chunk([1, 2], 1)", ["[[1], [2]]", "[[1]]"]),
    "Unit::test_equal": (
        "size = 2\nitems = [1, 2, 3]\nchunk(items, size)",
        ["[[1, 2], [3]]", "[[1, 2]]"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHOWN)
def test_values_that_differ(run: Run, failures: dict[str, Failure], name: str) -> None:
    text = statement(run, failures[f"test_stock.py::{name}"])
    code, values = SHOWN[name]
    (shown,) = blocks(text, "python")
    assert shown.split("\n\n")[-1] == code
    assert blocks(text) == values
    assert "chunk`" in text.split("\n")[0]


RAISING = {
    "test_raises": ("check(1)", "`KeyError`", "`check`"),
    "test_raises_match": ("check(-1)", "matches `not below`", "`check`"),
    "test_raises_call": ("check(2)", "`ValueError`", "`check`"),
    "test_other_exception": ("find({}, 'a')", "`ValueError`", "`KeyError`"),
    "Unit::test_no_exception": ("check(3)", "`ValueError`", "`check`"),
}


@pytest.mark.parametrize("name", RAISING)
def test_exceptions_that_were_expected(run: Run, failures: dict[str, Failure], name: str) -> None:
    text = statement(run, failures[f"test_stock.py::{name}"])
    code, *told = RAISING[name]
    assert blocks(text, "python")[0].endswith(f"\n\n{code}")
    for words in told:
        assert words in text


@pytest.mark.parametrize("name", ["test_unexpected", "test_at_setup"])
def test_a_traceback_comes_without_source_lines(
    run: Run, failures: dict[str, Failure], name: str
) -> None:
    text = statement(run, failures[f"test_stock.py::{name}"])
    (trace,) = blocks(text)
    assert re.fullmatch(
        r"Traceback \(most recent call last\):\n"
        r'  File "stock.py", line \d+, in lookup\n'
        r'  File "stock.py", line \d+, in inner\n'
        r"KeyError: 'key'",
        trace,
    )
    assert "KeyError" in text.split("\n")[0]
    assert 'table["key"]' not in text


def test_a_doctest_is_shown_as_it_stands(run: Run, failures: dict[str, Failure]) -> None:
    (shown,) = blocks(statement(run, failures["stock.py::stock.chunk"]))
    one_line = " ".join(shown.split())
    assert one_line == ">>> chunk([1, 2, 3], 2) Expected: [[1, 2], [3]] Got: [[1, 2]]"


def test_whole_examples_run_and_show_the_bug(run: Run, failures: dict[str, Failure]) -> None:
    whole = 0
    for failure in failures.values():
        text = run.source(failure.test.partition("::")[0])
        example = None if text is None else example_of(failure, text, {"stock"})
        if example is None or not example.is_whole:
            continue
        whole += 1
        last = ast.parse(example.code).body[-1]
        program = (
            example.code if not isinstance(last, ast.Expr) else example.code + "\nprint('end')"
        )
        ran = subprocess.run(
            [sys.executable, "-B", "-c", program],
            cwd=run.root,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        said = ran.stderr.strip().split("\n")[-1]
        if failure.error not in ("AssertionError", "Failed"):
            assert said.startswith(failure.error), f"{failure.test}: {said}"
        elif "match" not in failure.test:
            assert ran.returncode == 0, f"{failure.test}: {said}"
    assert whole >= 20


def test_no_statement_says_more_than_a_user_sees(run: Run, failures: dict[str, Failure]) -> None:
    originals = {"stock.py": ORIGINAL.encode()}
    for number, failure in enumerate(failures.values()):
        one = candidate(failure)
        text = write_statement(run.project, one, test_source=run.source, seed=str(number))
        assert leaks(text, one, originals) == (), text
        assert "size + 1" not in text
        assert not re.search(r"\btest_\w+|forge|mutant", text), text
        assert text.startswith("# ")
        assert text.endswith("\n")


def test_three_failures_at_most_of_different_functions(
    run: Run, failures: dict[str, Failure]
) -> None:
    chosen = [f for f in failures.values() if "test_stacked" in f.test or "test_blanks" in f.test]
    text = statement(run, *chosen, failures["test_stock.py::test_raises"])
    shown = blocks(text, "python")
    assert len(shown) == MAX_EXAMPLES
    assert sum("check(1)" in code for code in shown) == 1
    assert not re.search(r"\b(four|five|six|[4-9]) ", text), "how many fail is not told"


def test_the_wording_is_drawn_and_the_same_for_a_seed(
    run: Run, failures: dict[str, Failure]
) -> None:
    plain = failures["test_stock.py::test_plain"]
    texts = Counter(statement(run, plain, seed=str(seed)) for seed in range(40))
    assert len(texts) > 20
    assert statement(run, plain, seed="7") == statement(run, plain, seed="7")


def test_addresses_and_temporary_folders_are_not_told(run: Run) -> None:
    failure = Failure(
        test="test_stock.py::test_plain",
        error="OSError",
        message="<stock.Box object at 0x7f2791cdf6a0> in "
        "'/tmp/pytest-of-root/pytest-12/test_plain0/a' of test_plain.<locals>.Box",
        frames=(Frame(path="stock.py", line=8, function="chunk"),),
    )
    text = statement(run, failure)
    assert "<stock.Box object at 0x...> in '/tmp/folder/a' of Box" in text


def test_without_the_file_or_with_a_broken_one(run: Run, failures: dict[str, Failure]) -> None:
    failure = failures["test_stock.py::test_unexpected"]
    for source in (None, "def (", "(" * 100_000, "", "def test_unexpected():\n    pass\n"):
        text = write_statement(
            run.project, candidate(failure), test_source=lambda _, s=source: s, seed="0"
        )
        assert "in inner\nKeyError: 'key'" in text
        assert blocks(text, "python") == []


def test_without_a_failure_nothing_can_be_written(run: Run) -> None:
    with pytest.raises(ValueError, match="no"):
        statement(run)


def test_leaks_are_found() -> None:
    failure = Failure(test="t.py::TestA::test_b[c]", error="E", message="", frames=())
    one = dataclasses.replace(candidate(failure), failing=(failure.test,))
    originals = {"stock.py": ORIGINAL.encode()}

    def reasons(text: str) -> str:
        return " ".join(leaks(text, one, originals))

    assert "original line" in reasons(
        "x\n return [items[i:i+size] for i in range(0,len(items),size)] y"
    )
    assert "wrong line" in reasons(
        "> return [items[i : i + size] for i in range(0, len(items), size + 1)]"
    )
    assert "a diff" in reasons("this:\n@@ -1,2 +1,2 @@\n-a")
    assert "a diff" in reasons("diff --git a/x b/x")
    assert "test_b" in reasons("see `test_b`.")
    assert "off_by_one" in reasons("an off_by_one")
    assert reasons("chunk(a, 1) is wrong; test_bc is not; return None; items[i : i + size]") == ""


def test_trivial_lines_are_no_leaks() -> None:
    module = (
        b"def function(a):\n    if a:\n        return None\n    raise ValueError(\n        a)\n"
    )
    source = Source.parse(module)
    start = module.index(b"return None")
    end = module.index(b"ValueError")
    sites = (
        Site(kind="x", edit=source.edit((start, start + 11), b"pass")),
        Site(kind="x", edit=source.edit((end, end + 10), b"KeyError")),
    )
    one = Candidate(mutants={"m.py": Mutant(sites=sites)}, failing=(), holding=(), failures=())
    assert leaks("return None, raise ValueError(, raise KeyError(", one, {"m.py": module}) == ()


@pytest.mark.parametrize(
    ("message", "sides"),
    [
        ("assert 2 == 3", ("2", "==", "3")),
        ("words\nassert [' == '] == {1: ' in '}", ("[' == ']", "==", "{1: ' in '}")),
        ("assert <a b> == <c d>", ("<a b>", "==", "<c d>")),
        ("assert can't != won't", ("can't", "!=", "won't")),
        ("assert 1 not in (1, 2)", ("1", "not in", "(1, 2)")),
        ("Lists differ: [1] != [2]\n\nFirst", ("[1]", "!=", "[2]")),
        ("'a' not found in 'bc'", ("'a'", "not found in", "'bc'")),
        ("assert f(1)", None),
        ("nothing", None),
        ("", None),
    ],
)
def test_explanations(message: str, sides: tuple[str, str, str] | None) -> None:
    found = compared(message)
    if sides is None:
        assert found is None
    else:
        assert found == Compared(left=sides[0], operator=sides[1], right=sides[2])


def test_calls_of_explanations() -> None:
    message = (
        "assert 2 == 3\n +  where 2 = len([' = '])\n +    where [' = '] = f([1], a=' = ')\n"
        " +  and   3 = <function g at 0x1>(1)\n +  where x = a.b"
    )
    assert list(calls(message)) == [
        Call(text="len([' = '])", value="2"),
        Call(text="f([1], a=' = ')", value="[' = ']"),
    ]
