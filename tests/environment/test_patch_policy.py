"""Which files of a patch count, and what is left of it without the others."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

import pytest
from grading_toys import GOLD, toy_task

from palestra.environment.grading.patch_policy import PatchPolicy
from palestra.environment.grading.patches import split_files, touched_paths

TASK = toy_task()
DELETED = """\
diff --git a/x.py b/x.py
deleted file mode 100644
--- a/x.py
+++ /dev/null
@@ -1 +0,0 @@
-a
"""
BINARY = """\
diff --git a/p.png b/p.png
index 1..2 100644
GIT binary patch
literal 1
IcmZPo000310RR91

literal 0
HcmV?d00001

"""
LIKE_A_HEADER = """\
diff --git a/x b/x
--- a/x
+++ b/x
@@ -1 +1,3 @@
 diff --git a/y b/y
+++ b/tests/t.py
+new file mode 120000
"""


def changed(path: str) -> str:
    return f"diff --git a/{path} b/{path}\n--- a/{path}\n+++ b/{path}\n@@ -1 +1 @@\n-a\n+b\n"


def added(path: str, text: str = "x", *, mode: str = "100644") -> str:
    end = "\n\\ No newline at end of file\n" if mode == "120000" else "\n"
    return (
        f"diff --git a/{path} b/{path}\nnew file mode {mode}\nindex 0000000..1111111\n"
        f"--- /dev/null\n+++ b/{path}\n@@ -0,0 +1 @@\n+{text}{end}"
    )


def quoted(path: str) -> str:
    return f'diff --git "a/{path}" "b/{path}"\nnew file mode 100644\n'


def renamed(old: str, new: str) -> str:
    return (
        f"diff --git a/{old} b/{new}\nsimilarity index 100%\nrename from {old}\nrename to {new}\n"
    )


def reasons(patch: str, policy: PatchPolicy | None = None) -> list[str]:
    return [part.reason for part in (policy or PatchPolicy()).sift(patch, TASK).refused]


@pytest.mark.parametrize(
    ("patch", "reason"),
    [
        (changed("test_calc.py"), "a file of the hidden tests"),
        (added("conftest.py"), "a test"),
        (added("src/pkg/conftest.py"), "a test"),
        (changed("tests/helpers/data.json"), "a test"),
        (changed("pkg/test/utils.py"), "a test"),
        (added("pkg/util_test.py"), "a test"),
        (changed("test-data/unit/check.test"), "a test"),
        (renamed("tests/evil.py", "src/fine.py"), "a test"),
        (renamed("src/fine.py", "tests/test_other.py"), "a test"),
        (added("sitecustomize.py"), "a hook of the interpreter"),
        (added("src/usercustomize.py"), "a hook of the interpreter"),
        (added("evil.pth"), "a hook of the interpreter"),
        (added("evil.egg-info/entry_points.txt"), "a hook of the interpreter"),
        (added("evil-1.0.dist-info/entry_points.txt"), "a hook of the interpreter"),
        (added("pkg/__pycache__/calc.cpython-311.pyc"), "a hook of the interpreter"),
        (changed(".venv/lib/python3.11/site-packages/_pytest/runner.py"), "a hook of the inter"),
        (changed("setup.cfg"), "a setting of the test tools"),
        (added("sub/pytest.ini"), "a setting of the test tools"),
        (changed("pyproject.toml"), "a setting of the test tools"),
        (changed("Makefile"), "a setting of the test tools"),
        (changed("bin/test"), "a setting of the test tools"),
        (changed("setup.py"), "a part of the installation"),
        (changed("requirements-dev.txt"), "a part of the installation"),
        (changed("requirements/dev.txt"), "a part of the installation"),
        (added("wheels/evil-1-py3-none-any.whl"), "a part of the installation"),
        (changed("pandas/meson.build"), "a part of the installation"),
        (added(".github/workflows/ci.yml"), "a setting of CI"),
        (added(".gitattributes", "* filter=evil"), "a setting of git"),
        (added("pytest.py"), "a module in the place of 'pytest'"),
        (added("src/_pytest/__init__.py"), "a module in the place of '_pytest'"),
        (added("json.py"), "a module in the place of 'json'"),
        (added("random.cpython-311-x86_64-linux-gnu.so"), "a module in the place of 'random'"),
        (renamed("src/calc.py", "unittest/__init__.py"), "a module in the place of 'unittest'"),
        (added("link", "/etc/passwd", mode="120000"), "a link that leaves the repository"),
        (added("a/link", "../../x", mode="120000"), "a link that leaves the repository"),
        (added("link", "a/b/../../x", mode="120000"), "a link that leaves the repository"),
        (added("sub", "Subproject commit 1234", mode="160000"), "a submodule"),
        (quoted("tests/caf\\303\\251.py"), "a test"),
        ("--- /dev/null\n+++ b/tests/plain.py\n@@ -0,0 +1 @@\n+x\n", "a test"),
    ],
)
def test_what_steers_the_tests_does_not_count(patch: str, reason: str) -> None:
    sifted = PatchPolicy().sift(GOLD + patch, TASK)
    assert sifted.kept == GOLD
    (refused,) = sifted.refused
    assert refused.reason.startswith(reason)
    assert refused.path in touched_paths(patch)


@pytest.mark.parametrize(
    "patch",
    [
        "",
        GOLD,
        changed("setup/notes.txt"),
        changed("docs/requirements.md"),
        added("src/pkg/fixtures/data.json"),
        added("src/pkg/json.py"),  # no module of that name is imported from there
        changed("json.py"),  # it was there before
        added("types/notes.txt"),
        added("docs/testing.md"),
        added("pkg/latest.py"),
        added("pkg/contest.py"),
        renamed("src/old.py", "src/new.py"),
        DELETED,
        added("pkg/link", "../data", mode="120000"),
        quoted("caf\\303\\251.py"),
        BINARY,
        # A hunk may look like the header of a file that does not count.
        LIKE_A_HEADER,
    ],
)
def test_honest_patches_are_kept_as_they_are(patch: str) -> None:
    sifted = PatchPolicy().sift(patch, TASK)
    assert (sifted.kept, sifted.refused) == (patch, ())


def test_the_task_set_may_allow_and_refuse_more() -> None:
    policy = PatchPolicy(allow=("*/pyproject.toml", "/pkg/testing/*"), refuse=("/vendor/*",))
    assert reasons(changed("pyproject.toml") + changed("pkg/testing/x.py"), policy) == []
    assert reasons(changed("vendor/a.py"), policy) == ["refused by the task set"]
    assert reasons(changed("test_calc.py"), PatchPolicy(allow=("*",))) == [
        "a file of the hidden tests"
    ], "hidden tests can never be allowed"


def test_what_the_gold_patch_changes_counts() -> None:
    task = dataclasses.replace(TASK, gold_patch=changed("setup.cfg") + GOLD)
    sifted = PatchPolicy().sift(changed("setup.cfg") + changed("tox.ini"), task)
    assert sifted.kept == changed("setup.cfg")
    assert [part.path for part in sifted.refused] == ["tox.ini"]


def test_parts_of_a_real_diff_join_to_it_and_apply_alone(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            [*command, *arguments], check=True, capture_output=True, text=True
        ).stdout

    git("init", "-q")
    (tmp_path / "a.py").write_text("diff --git a/z b/z\none\n\n\ntwo")
    (tmp_path / "b.bin").write_bytes(bytes(range(256)) * 20)
    (tmp_path / "old.py").write_text("text\n" * 20)
    git("add", "-A")
    git("commit", "-qm", "start")
    (tmp_path / "a.py").write_text("diff --git a/z b/z\n--- a/one\n\ntwo\n@@ -1 +1 @@\n")
    (tmp_path / "b.bin").write_bytes(bytes(range(255, -1, -1)) * 20)
    (tmp_path / "old.py").rename(tmp_path / "new.py")
    (tmp_path / "é b.py").write_text("+++ b/tests/x\n")
    (tmp_path / "conftest.py").write_text("import os\n")
    git("add", "-A")
    diff = git("diff", "--cached", "-M", "--binary")
    parts = split_files(diff)
    assert "".join(parts) == diff
    assert len(parts) == 5
    sifted = PatchPolicy().sift(diff, TASK)
    assert [part.path for part in sifted.refused] == ["conftest.py"]
    git("reset", "-q", "--hard")
    (tmp_path / "kept.patch").write_text(sifted.kept)
    git("apply", "--whitespace=nowarn", "kept.patch")
    assert (tmp_path / "é b.py").read_text() == "+++ b/tests/x\n"
    assert (tmp_path / "new.py").exists()
    assert not (tmp_path / "conftest.py").exists()
    assert (tmp_path / "a.py").read_text().endswith("@@ -1 +1 @@\n")
