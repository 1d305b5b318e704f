"""What a candidate patch may name, and how its headers are read."""

import subprocess
from pathlib import Path

import pytest
from grading_toys import GOLD, toy_task

from palestra.environment.grading.patches import (
    clear_command,
    encode,
    is_empty,
    is_plain_text,
    refusal,
    touched_paths,
    touches_build,
    write_command,
)


def patch_of(path: str, *, other: str | None = None) -> str:
    other = other or path
    return f"diff --git a/{path} b/{other}\n--- a/{path}\n+++ b/{other}\n@@ -1 +1 @@\n-a\n+b\n"


@pytest.mark.parametrize(
    "patch",
    [
        patch_of("../outside.py"),
        patch_of("src/../../outside.py"),
        patch_of("fine.py", other="../outside.py"),
        "--- a/x\n+++ b/../../etc/passwd\n@@ -1 +1 @@\n-a\n+b\n",
        "--- /etc/passwd\n+++ /etc/passwd\n@@ -1 +1 @@\n-a\n+b\n",
        "diff --git a/x b/y\nsimilarity index 100%\nrename from x\nrename to ../y\n",
        "diff --git a/x b/y\nsimilarity index 100%\ncopy from /etc/passwd\ncopy to y\n",
        'diff --git "a/\\056\\056/x" "b/\\056\\056/x"\nnew file mode 100644\n',
        "diff --git a/x b/x\ndeleted file mode 100644\n" + patch_of("../outside.py"),
        patch_of("fine.py") + patch_of("../outside.py"),
        patch_of("fine.py").replace("\n", "\r\n") + patch_of("../outside.py"),
    ],
)
def test_places_outside_the_repository_are_refused(patch: str) -> None:
    reason = refusal(patch)
    assert reason is not None
    assert "outside the repository" in reason


@pytest.mark.parametrize("path", [".git/hooks/post-checkout", "sub/.git/config", ".GIT/config"])
def test_gits_own_files_are_refused(path: str) -> None:
    reason = refusal(patch_of(path))
    assert reason is not None
    assert "git's own files" in reason


@pytest.mark.parametrize(
    "patch",
    [
        "",
        GOLD,
        patch_of(".github/workflows/ci.yml"),
        patch_of(".gitignore"),
        patch_of("a..b/c...py"),
        # Lines of a hunk may look like headers of any kind.
        "--- a/x\n+++ b/x\n@@ -1,3 +1,3 @@\n--- /etc/passwd\n-a\n-b\n+++ /etc/passwd\n+a\n+b\n",
        "--- a/x\n+++ b/x\n@@ -1 +1,2 @@\n diff --git a/../y b/../y\n+z\n",
        "--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n\\ No newline at end of file\n+b\n",
    ],
)
def test_honest_patches_are_not_refused(patch: str) -> None:
    assert refusal(patch) is None


def test_touched_paths_reads_every_kind_of_header() -> None:
    patch = (
        patch_of("src/a.py")
        + "diff --git a/old.py b/new.py\nrename from old.py\nrename to new.py\n"
        + 'diff --git "a/caf\\303\\251.py" "b/caf\\303\\251.py"\nnew file mode 100644\n'
        + '--- /dev/null\n+++ "b/caf\\303\\251.py"\n@@ -0,0 +1 @@\n+x\n'
        + "--- a/plain.txt\t2024-01-01 00:00:00\n+++ b/plain.txt\t2024-01-01 00:00:00\n"
    )
    assert touched_paths(patch) == (
        "src/a.py",
        "old.py",
        "new.py",
        "café.py",
        "plain.txt",
    )


@pytest.mark.parametrize(
    ("path", "touches"),
    [
        ("src/a.py", False),
        ("docs/index.rst", False),
        ("setup.py", True),
        ("pyproject.toml", True),
        ("setup.cfg", True),
        ("pandas/_libs/x.pyx", True),
    ],
)
def test_only_some_patches_touch_the_build(path: str, *, touches: bool) -> None:
    assert touches_build(patch_of(path)) is touches
    assert not touches_build("")


def test_encode_ends_the_last_line_and_keeps_odd_bytes() -> None:
    assert encode("+a") == b"+a\n"
    assert encode("+a\n") == b"+a\n"
    assert encode(b"+\xff".decode(errors="surrogateescape")) == b"+\xff\n"
    assert is_empty(" \n")
    assert not is_empty("x")


@pytest.mark.parametrize(
    "lay",
    ["true", "echo x >test_calc.py", "ln -s nowhere test_calc.py", "mkdir -p test_calc.py/a"],
    ids=["nothing", "file", "broken link", "folder"],
)
def test_what_lies_where_hidden_tests_go_is_cleared_and_nothing_else(
    lay: str, tmp_path: Path
) -> None:
    script = f"{lay}; echo x >other.py; {clear_command(toy_task())} && ls -A"
    for shell in ("bash", "sh"):
        told = subprocess.run(
            [shell, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert (told.stdout, told.stderr, told.returncode) == ("other.py\n", "", 0), shell


ODD_TEXTS = ("it's\n", "$x `y` \\n %s %%\n", "no newline", "-n\n", "ü\t\r\n\n")


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_a_plain_patch_is_written_as_it_is(text: str, tmp_path: Path) -> None:
    assert is_plain_text(text)
    for shell in ("bash", "sh"):
        subprocess.run([shell, "-c", write_command(text, f"{tmp_path}/p")], check=True)
        assert (tmp_path / "p").read_bytes() == encode(text), shell
    assert not is_plain_text("a\0b")
    assert not is_plain_text(b"\xff".decode(errors="surrogateescape"))


def test_a_patch_that_cannot_be_written_ends_the_run_before_the_tests() -> None:
    script = f"{write_command(GOLD, '/nowhere/p')}; echo tests"
    told = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert (told.stdout, told.returncode) == ("", 1)
