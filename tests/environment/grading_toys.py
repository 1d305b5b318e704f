"""A task of one module, and a grader on it, for the tests of grading."""

from __future__ import annotations

from palestra.config import GradingSection
from palestra.environment.grading.runner import SandboxGrader
from palestra.environment.sandboxes.protocol import SandboxBackend, SandboxLimits
from palestra.records import HOST_IMAGE, Task, TaskFile
from palestra.tasks.swegym import END_MARKER, START_MARKER

MODULE = "def double(x):\n    return x + x + 1\n"

GOLD = """\
diff --git a/calc.py b/calc.py
--- a/calc.py
+++ b/calc.py
@@ -1,2 +1,2 @@
 def double(x):
-    return x + x + 1
+    return x + x
"""

TEST_PATCH = """\
diff --git a/test_calc.py b/test_calc.py
new file mode 100644
--- /dev/null
+++ b/test_calc.py
@@ -0,0 +1,6 @@
+import calc
+def report(name, good):
+    print("PASSED" if good else "FAILED", f"test_calc.py::test_{name}", flush=True)
+report("kept", callable(calc.double))
+report("one", calc.double(1) == 2)
+report("two", calc.double(2) == 4)
"""

TESTS = f"""\
set -x
git apply -v - <<'EOF'
{TEST_PATCH}EOF
: '{START_MARKER}'
python3 -B test_calc.py
: '{END_MARKER}'
"""


def toy_task(*, eval_script: str = TESTS, log_parser: str = "parse_log_pytest") -> Task:
    """``double`` is one off; two tests shall flip, one shall hold."""
    return Task(
        instance_id="toy__calc-1",
        repo="toy/calc",
        base_commit="HEAD",
        problem_statement="double(1) is 3",
        image=HOST_IMAGE,
        fail_to_pass=("test_calc.py::test_one", "test_calc.py::test_two"),
        pass_to_pass=("test_calc.py::test_kept",),
        gold_patch=GOLD,
        test_patch=TEST_PATCH,
        eval_script=eval_script,
        log_parser=log_parser,
        files=(TaskFile(path="calc.py", text=MODULE),),
    )


def toy_grader(backend: SandboxBackend, *, eval_timeout_s: float = 20.0) -> SandboxGrader:
    section = GradingSection(signed=False)  # the toy prints what pytest would
    return SandboxGrader(backend, SandboxLimits(), eval_timeout_s=eval_timeout_s, section=section)
