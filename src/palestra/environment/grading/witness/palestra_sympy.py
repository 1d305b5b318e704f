"""Reports the tests of sympy's own runner under a key. Python 3.6+."""

import functools
import os

FOLDER = os.path.dirname(os.path.abspath(__file__))
MODULES = ("sympy.testing.runtests", "sympy.utilities.runtests")
STATUSES = {"ok": "PASSED", "F": "FAILED", "E": "ERROR"}
CANARIES = """\
def test_%s():
    assert [1, 2] == [2, 1]


def test_%s():
    raise RuntimeError("as it must")
"""


def installer(seal):
    """What is to be done with the module of the runner when it is there."""

    def install(module):
        reporter = getattr(module, "PyTestReporter", None)
        if reporter is None or reporter.__module__ != module.__name__:
            return  # an old name that forwards to the new one
        Witness(seal).watch(module.SymPyTests, reporter)

    return install


class Witness:
    """Notes what the reporter is told."""

    def __init__(self, seal):
        self._seal = seal
        self._test = ""
        self._may_fail = False
        self._ends = []  # (letter, name)
        self._canaries = {}

    def watch(self, tests, reporter):
        run = tests.test

        @functools.wraps(run)
        def watched(runner, *args, **kwargs):
            runner._testfiles.insert(0, self._make_canaries())
            runner._testfiles.append(self._make_canaries())
            try:
                return run(runner, *args, **kwargs)
            finally:
                self._seal(self._report())

        tests.test = watched
        self._wrap_entering(reporter)
        letters = {"test_pass": "ok", "test_fail": "F", "test_exception": "E"}
        letters.update(test_xfail="f", test_xpass="X", test_skip="s")
        for name, letter in letters.items():
            self._wrap(reporter, name, letter)

    def _make_canaries(self):
        names = [os.urandom(4).hex() for _ in range(2)]
        self._canaries.update({"test_" + name: "MISSING" for name in names})
        path = os.path.join(FOLDER, "test_%s.py" % names[0])
        with open(path, "w") as file:
            file.write(CANARIES % tuple(names))
        return path

    def _wrap_entering(self, reporter):
        enter = reporter.entering_test

        @functools.wraps(enter)
        def watched(this, function):
            self._test = function.__name__
            # What may fail is wrapped; others cannot say so of themselves.
            self._may_fail = hasattr(function, "__wrapped__")
            return enter(this, function)

        reporter.entering_test = watched

    def _wrap(self, reporter, name, letter):
        add = getattr(reporter, name)

        @functools.wraps(add)
        def watched(this, *args, **kwargs):
            self._note(letter)
            return add(this, *args, **kwargs)

        setattr(reporter, name, watched)

    def _note(self, letter):
        if letter == "f" and not self._may_fail:
            letter = "F"
        if self._test in self._canaries:
            self._canaries[self._test] = STATUSES.get(letter, letter)
        else:
            self._ends.append((letter, self._test))

    def _report(self):
        head = ["canary " + status for status in self._canaries.values()]
        ends = sorted(self._ends, key=lambda end: end[0] != "ok")
        return "\n".join(head + [""] + ["%s %s" % (name, letter) for letter, name in ends])
