"""The table of SWE-Gym's repositories and the scripts composed from it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from palestra.errors import TaskError
from palestra.tasks import swegym
from palestra.tasks.patches import PatchedFile, patched_files

PATCH = """\
diff --git a/tests/test_old.py b/tests/test_old.py
--- a/tests/test_old.py
+++ b/tests/test_old.py
@@ -1,3 +1,3 @@
 one
--- a/not/a/header.py
+++ b/not/a/header.py
 three
diff --git a/tests/test new.py b/tests/test new.py
new file mode 100644
--- /dev/null
+++ b/tests/test new.py
@@ -0,0 +1 @@
+hello
diff --git a/tests/test_gone.py b/tests/test_gone.py
deleted file mode 100644
--- a/tests/test_gone.py
+++ /dev/null
@@ -1 +0,0 @@
-gone
diff --git a/tests/data.json b/tests/data.json
new file mode 100644
--- /dev/null
+++ b/tests/data.json
@@ -0,0 +1 @@
+{}
"""
COMMANDS = {
    "getmoto/moto": "pytest -n0 -rA",
    "conan-io/conan": "pytest -n0 -rA",
    "dask/dask": "pytest -n0 -rA --color=no",
    "iterative/dvc": "pytest -rA",
    "Project-MONAI/MONAI": "pytest -rA",
    "bokeh/bokeh": "pytest -n0 -rA",
    "modin-project/modin": "pytest -n0 -rA",
    "pydantic/pydantic": "pytest -rA --tb=short -vv -o console_output_style=classic --no-header",
    "pandas-dev/pandas": "pytest -rA --tb=long",
    "facebookresearch/hydra": "pytest -rA --tb=long",
    "python/mypy": "pytest -n0 -rA",
}


def test_the_table_knows_the_eleven_repositories() -> None:
    assert {repo: spec.test_command for repo, spec in swegym.SPECS.items()} == COMMANDS


def test_headers_inside_hunks_are_not_headers() -> None:
    assert patched_files(PATCH) == (
        PatchedFile(before="tests/test_old.py", after="tests/test_old.py"),
        PatchedFile(before=None, after="tests/test new.py"),
        PatchedFile(before="tests/test_gone.py", after=None),
        PatchedFile(before=None, after="tests/data.json"),
    )


def test_tests_are_the_files_that_can_be_collected() -> None:
    command = swegym.test_command("dask/dask", PATCH, instance_id="x")
    assert command == "pytest -n0 -rA --color=no tests/test_old.py 'tests/test new.py'"


def test_mypy_is_selected_by_case() -> None:
    patch = PATCH + "+[case testOne]\n-[case testTwo-skip]\n [case testOne]\n"
    command = swegym.test_command("python/mypy", patch, instance_id="x")
    assert command == "pytest -n0 -rA -k 'testOne or testTwo-skip'"


def test_mypy_without_cases_is_selected_by_file() -> None:
    command = swegym.test_command("python/mypy", PATCH, instance_id="x")
    assert command == "pytest -n0 -rA tests/test_old.py 'tests/test new.py'"


def test_an_unknown_repository_is_an_error() -> None:
    with pytest.raises(TaskError, match=r"it-1.*'some/repo'"):
        swegym.test_command("some/repo", PATCH, instance_id="it-1")


@pytest.mark.parametrize("repo", sorted(COMMANDS))
def test_scripts_are_valid_bash(repo: str) -> None:
    patch = PATCH + "+EOF_114329324912\nEOF_114329324912\n"
    script = swegym.eval_script(instance_id="x", repo=repo, base_commit="abc", test_patch=patch)
    subprocess.run(["bash", "-n"], input=script, text=True, check=True, timeout=10)


def run(command: str, cwd: Path) -> str:
    done = subprocess.run(
        ["bash", "-c", command], cwd=cwd, capture_output=True, text=True, timeout=30, check=False
    )
    return done.stdout + done.stderr


def test_a_script_applies_runs_and_restores(tmp_path: Path) -> None:
    repo = tmp_path / "testbed"
    (repo / "tests").mkdir(parents=True)
    (repo / "tests/test_old.py").write_text("one\n")
    (repo / "tests/test_gone.py").write_text("gone\n")
    run("git init -q . && git add -A && git -c user.name=a -c user.email=a@b commit -qm x", repo)
    patch = """\
diff --git a/tests/test_old.py b/tests/test_old.py
--- a/tests/test_old.py
+++ b/tests/test_old.py
@@ -1 +1,2 @@
 one
+two
diff --git a/tests/test_new.py b/tests/test_new.py
new file mode 100644
--- /dev/null
+++ b/tests/test_new.py
@@ -0,0 +1 @@
+new
"""
    # What an agent may have left where the tests go.
    (repo / "tests/test_old.py").write_text("mine\n")
    (repo / "tests/test_new.py").write_text("mine too\n")
    script = swegym.eval_script(
        instance_id="x", repo="getmoto/moto", base_commit="HEAD", test_patch=patch
    )
    shims = 'make() { false; }; conda() { :; }; pytest() { echo "ran $*"; cat tests/test_*.py; }\n'
    script = script.replace("/testbed", str(repo)).replace("source /opt", ": /opt")
    script = script.replace("git config --global", ": git config --global")
    out = run(shims + script, repo)
    inside = out.partition("Start Test Output")[2].partition("End Test Output")[0]
    assert "ran -n0 -rA tests/test_old.py tests/test_new.py" in out, out
    for line in ("one", "two", "new"):
        assert line in out.splitlines(), out
    assert "mine" not in inside
    assert (repo / "tests/test_old.py").read_text() == "one\n"
    assert not (repo / "tests/test_new.py").exists()
