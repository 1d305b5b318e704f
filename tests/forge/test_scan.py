"""The original lines are found wherever an agent could read them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from palestra.forge.scan import scan, scan_command

ORIGINAL = "def area(width, height):\n    return width * height + margin(width)\n"
WRONG = ORIGINAL.replace(" * ", " + ")
LINE = "return width * height + margin(width)"
PATCH = f"""\
diff --git a/src/shapes/core.py b/src/shapes/core.py
index 1111111..2222222 100644
--- a/src/shapes/core.py
+++ b/src/shapes/core.py
@@ -1,4 +1,6 @@
 def area(width, height):
-    return width + height + margin(width)
+    {LINE}
+    return None
+++x
 a
"""


def make_row(**changes: Any) -> dict[str, Any]:
    row = {"problem_statement": "`area` is wrong", "patch": PATCH, "workdir": "/testbed"}
    return row | changes


MODULE = ("src/shapes/core.py", WRONG.encode())


@pytest.mark.parametrize(
    ("path", "data", "found"),
    [
        ("README.md", b"see the code", ()),
        ("docs/a.py", f"x\n  {LINE}  \n".encode(), ("duplicate: /testbed/docs/a.py: holds",)),
        ("docs/a.py", f"x = '{LINE}'\n".encode(), ()),  # part of another line
        ("/opt/x.txt", f"{LINE}\r\n".encode(), ("/opt/x.txt: holds the line",)),
        (".git/lost", f"{LINE}\n".encode(), ("/testbed/.git/lost: holds",)),
        ("src/shapes/__pycache__/core.cpython-311.pyc", b"", ("bytecode of src/shapes/core.py",)),
        ("src/shapes/core.pyc", b"", ("bytecode of src/shapes/core.py",)),
        ("src/other/__pycache__/core.cpython-311.pyc", b"", ()),
        ("src/shapes/__pycache__/core_more.cpython-311.pyc", b"", ()),
        ("/usr/lib/python3/dist-packages/shapes/core.py", b"x", ("an installed copy of",)),
        ("build/lib/shapes/core.py", b"x", ("an installed copy of",)),
        ("/usr/lib/other/core.py", b"x", ()),
        ("/root/.cache/shapes-1.0-py3-none-any.whl", b"", ("an archive that may hold",)),
        ("/root/fix.patch", b"", ()),
    ],
)
def test_where_the_line_may_stand(path: str, data: bytes, found: tuple[str, ...]) -> None:
    findings = scan(make_row(), [MODULE, (path, data)])
    assert len(findings) == len(found), findings
    for words, finding in zip(found, findings, strict=True):
        assert words in finding


def test_a_line_that_stands_elsewhere_in_the_module_does_not_count() -> None:
    module = (MODULE[0], f"{WRONG}\ndef other(width, height):\n    {LINE}\n".encode())
    row = make_row(problem_statement=f"Use {LINE}")
    assert scan(row, [("/opt/x.txt", LINE.encode()), module]) == ()


def test_the_statement_is_looked_at_whatever_its_blanks() -> None:
    row = make_row(problem_statement="so: return width*height\n  +margin(width) is it")
    (finding,) = scan(row, [MODULE])
    assert finding.startswith("statement: holds the line")


def test_short_lines_and_headers_do_not_count() -> None:
    row = make_row(problem_statement="return None; ++x")
    assert scan(row, [MODULE, ("/a", b"return None\n++x\n")]) == ()


def test_the_command_scans_the_machine_it_runs_on(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    (repository / "src/shapes").mkdir(parents=True)
    (repository / MODULE[0]).write_text(ORIGINAL)
    git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *command], check=True)
    (repository / MODULE[0]).write_bytes(MODULE[1])
    subprocess.run([*git, "commit", "-qam", "two"], check=True)
    (tmp_path / "notes.txt").write_text(f"{LINE}\n")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo")
    command = scan_command(make_row(workdir=str(repository)), roots=[str(tmp_path)])
    ran = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["num_files"] > 3
    findings = "\n".join(found["findings"])
    assert f"{tmp_path}/notes.txt: holds the line" in findings
    assert f"{repository}/.git/objects/" in findings, "a blob of the past"
    assert len(found["findings"]) == 2, findings
