"""What katas promise: determinism, variety, disjoint splits, derivable one-line fixes."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator

import pytest

from palestra.tasks.katas.callers import HELDOUT_CALLERS, TRAIN_CALLERS
from palestra.tasks.katas.catalog import CATALOGS
from palestra.tasks.katas.draw import Draw
from palestra.tasks.katas.family import Family
from palestra.tasks.katas.observe import define, observe
from palestra.tasks.source import iter_rows, load_tasks

TRAIN, HELDOUT = CATALOGS["train"], CATALOGS["heldout"]
ALL_FAMILIES = [
    *(family for catalog in (TRAIN, HELDOUT) for family in catalog.families),
    *(family for catalog in (TRAIN, HELDOUT) for family in catalog.level0),
]
BUGS = [(family, bug) for family in ALL_FAMILIES for bug in family.bugs]


def normalised(source: str) -> str:
    """The source without docstring, with its own names and its numbers replaced."""
    tree = ast.parse(source)
    function = tree.body[0]
    assert isinstance(function, ast.FunctionDef)
    function.body = function.body[1:]
    bound = {a.arg for a in ast.walk(tree) if isinstance(a, ast.arg)}
    bound |= {
        n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    }
    bound.add(function.name)
    numbers: dict[str, str] = {}

    def name_of(name: str) -> str:
        return numbers.setdefault(name, f"v{len(numbers)}") if name in bound else name

    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.name = name_of(node.name)
        elif isinstance(node, ast.arg):
            node.arg = name_of(node.arg)
        elif isinstance(node, ast.Name):
            node.id = name_of(node.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, int):
            node.value = 1
    return ast.dump(tree)


def sources(families: Iterable[Family], *, buggy: bool) -> Iterator[str]:
    for family in families:
        function = family.draw(Draw(family.name))
        assert function is not None
        if buggy:
            yield from (normalised(function.source(bug)) for bug in family.bugs)
        else:
            yield normalised(function.source())


def test_there_are_enough_families_and_kinds_of_bugs() -> None:
    assert len(TRAIN.families) >= 24
    assert len(HELDOUT.families) >= 12
    for catalog in (TRAIN, HELDOUT):
        assert len({bug.kind for family in catalog.families for bug in family.bugs}) >= 15


def test_train_and_heldout_share_no_name() -> None:
    def names(split: str) -> set[str]:
        catalog = TRAIN if split == "train" else HELDOUT
        callers = TRAIN_CALLERS if split == "train" else HELDOUT_CALLERS
        found = [(f.name, f.names) for f in (*catalog.level0, *catalog.families)]
        found += [(caller.name, caller.names) for caller in callers]
        return {word for name, words in found for word in (name, *words.split())}

    assert not names("train") & names("heldout")
    assert not set(TRAIN.modules) & set(HELDOUT.modules)


@pytest.mark.parametrize("buggy", [False, True], ids=["functions", "bug sites"])
def test_train_and_heldout_share_no_source(buggy: bool) -> None:
    train = set(sources((*TRAIN.level0, *TRAIN.families), buggy=buggy))
    heldout = set(sources((*HELDOUT.level0, *HELDOUT.families), buggy=buggy))
    assert len(train) > 24
    assert not train & heldout


def test_normalising_sees_through_names_and_numbers() -> None:
    one = 'def f(a, b):\n    """x"""\n    return a + b * 2\n'
    assert normalised(one) == normalised(one.replace("a", "q").replace("2", "7").replace("q", "q"))
    assert normalised(one) != normalised(one.replace("+", "-"))


def test_functions_of_one_split_have_different_names() -> None:
    for catalog in (TRAIN, HELDOUT):
        counts = Counter(name for f in catalog.families for name in f.names.split())
        counts.update(name for caller in catalog.callers for name in caller.names.split())
        assert max(counts.values()) == 1, counts.most_common(3)


def test_modules_do_not_shadow_the_standard_library() -> None:
    modules = {"calc", *TRAIN.modules, *HELDOUT.modules}
    assert not modules & set(sys.stdlib_module_names)


@pytest.mark.parametrize(
    ("family", "bug"), BUGS, ids=[f"{f.name}-{b.kind}-{i}" for i, (f, b) in enumerate(BUGS)]
)
def test_every_bug_shows_on_some_call_and_hides_on_another(family: Family, bug: object) -> None:
    assert bug in family.bugs
    draw = Draw(f"{family.name} {bug}")
    agreed = []
    for _ in range(40):
        function = family.draw(draw)
        assert function is not None
        arguments = function.arguments(draw)
        right = define(function.source())[function.name]
        wrong = define(function.source(bug))[function.name]  # type: ignore[arg-type]
        expected = observe(right, arguments)
        assert expected.error is None, (function.source(), arguments)
        assert expected.arguments == arguments, "the right code changed its argument"
        agreed.append(expected.agrees(observe(wrong, arguments)))
    assert not all(agreed), "the bug never shows"


def test_bugs_of_low_tiers_are_one_line() -> None:
    for family, bug in BUGS:
        lines = bug.right.count("\n"), bug.wrong.count("\n")
        assert lines == (0, 0) or bug.tier == 4, (family.name, bug)


@pytest.mark.parametrize("level", range(5))
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_tasks_of_a_source_differ_and_a_longer_one_begins_alike(split: str, level: int) -> None:
    long = list(iter_rows(f"katas:{split}?seed=3&n=120&level={level}"))
    assert len({row["problem_statement"] for row in long}) == 120
    assert list(iter_rows(f"katas:{split}?seed=3&n=10&level={level}")) == long[:10]
    assert long[5]["instance_id"] == f"kata-{split}-s3-l{level}-000005"
    other = list(iter_rows(f"katas:{split}?seed=4&n=10&level={level}"))
    assert [r["files"] for r in other] != [r["files"] for r in long[:10]]


def test_mixed_levels_take_turns_and_equal_ids_are_equal_tasks() -> None:
    mixed = list(iter_rows("katas:train?n=8&levels=0-3"))
    assert [row["level"] for row in mixed] == [0, 1, 2, 3] * 2
    (first, second) = iter_rows("katas:train?n=2&level=2")
    assert [row for row in mixed if row["level"] == 2] == [first, second]


def test_rows_are_json_and_the_same_in_another_process() -> None:
    spec = "katas:heldout?seed=1&n=25&levels=0-4"
    program = (
        "import json, sys; from palestra.tasks.source import iter_rows; "
        "print(json.dumps(list(iter_rows(sys.argv[1]))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, spec],
        env={"PYTHONHASHSEED": "12345"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert json.loads(done.stdout) == list(iter_rows(spec))


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_level_0_is_one_file_and_six_edits(split: str) -> None:
    edits = set()
    for task in load_tasks(f"katas:{split}?n=300&level=0"):
        assert [file.path for file in task.files] == ["calc.py"]
        assert len(task.problem_statement) < 160
        old, new = re.findall(r"^[-+](?![-+])(.*)$", task.gold_patch, re.MULTILINE)
        ((before, after),) = [
            (a, b) for a, b in zip(old.split(), new.split(), strict=True) if a != b
        ]
        edits.add((before, after))
        assert f" {before} " in old
    assert edits == {(a, b) for a in "+-*" for b in "+-*" if a != b}


def test_level_3_shows_the_bug_in_another_module() -> None:
    for task in load_tasks("katas:train?n=40&level=3"):
        modules = [file.path for file in task.files if file.path.endswith(".py")]
        (patched,) = re.findall(r"^--- a/(.*)$", task.gold_patch, re.MULTILINE)
        assert len(modules) == 2
        (symptom,) = [path for path in modules if path != patched]
        assert f" in {symptom} " in task.problem_statement
        assert patched not in task.problem_statement


def test_level_4_needs_more_than_one_changed_line() -> None:
    for task in load_tasks("katas:heldout?n=40&level=4"):
        removed = re.findall(r"^-(?!-)", task.gold_patch, re.MULTILINE)
        added = re.findall(r"^\+(?!\+)", task.gold_patch, re.MULTILINE)
        assert (len(removed), len(added)) != (1, 1)


def test_the_repository_does_not_hold_the_hidden_tests() -> None:
    for task in load_tasks("katas:train?n=50&levels=0-4"):
        assert not [file.path for file in task.files if "test" in file.path]


def test_draws_are_what_they_were() -> None:
    draw = Draw("palestra")
    drawn = [draw.number(1, 100) for _ in range(4)]
    assert drawn == [Draw("palestra").number(1, 100), *drawn[1:]]
    assert sorted(draw.shuffled(range(10))) == list(range(10))
    assert set(draw.sample("abc", 2)) <= set("abc")
