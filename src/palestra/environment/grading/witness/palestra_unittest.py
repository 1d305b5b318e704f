"""Reports the tests of unittest, and of what is built on it, under a key. Python 3.6+."""

import functools

MODULES = ("unittest.runner",)


def installer(seal):
    """What is to be done with ``unittest.runner`` when it is there."""

    def install(module):
        import unittest

        witness = Witness(seal, unittest)
        run = module.TextTestRunner.run

        @functools.wraps(run)
        def watched(self, test):
            return witness.run(self, test, run)

        module.TextTestRunner.run = watched

    return install


class Witness:
    """Watches the first run of a runner; what tests run inside is theirs."""

    def __init__(self, seal, unittest):
        self._seal = seal
        self._unittest = unittest
        self._ends = []  # (verbose word, description)
        self._canaries = []
        self._is_used = False

    def run(self, runner, test, run):
        if self._is_used:
            return run(runner, test)
        self._is_used = True
        make = runner._makeResult
        runner._makeResult = lambda: self._watch(make())
        last = self._make_canary()
        # The first failure may be the run's last test.
        tests = [test, last] if runner.failfast else [self._make_canary(), test, last]
        try:
            return run(runner, self._unittest.TestSuite(tests))
        finally:
            self._seal(self._report())

    def _make_canary(self):
        class Canary(self._unittest.TestCase):
            def test_fails(self):
                self.assertEqual([1, 2], [2, 1])

            def test_fails_plainly(self):
                assert not "this"

        class Broken(self._unittest.TestCase):
            def setUp(self):
                raise RuntimeError("as it must")

            def test_errs(self):
                pass

        tests = [Canary("test_fails"), Canary("test_fails_plainly"), Broken("test_errs")]
        for test in tests:
            entry = [test, "MISSING"]
            self._canaries.append(entry)
        return self._unittest.TestSuite(tests)

    def _watch(self, result):
        words = {
            "addSuccess": "ok",
            "addFailure": "FAIL",
            "addError": "ERROR",
            "addSkip": "skipped",
            "addExpectedFailure": "expected failure",
            "addUnexpectedSuccess": "unexpected success",
        }
        for name, word in words.items():
            self._wrap(result, name, word)
        add = result.addSubTest

        @functools.wraps(add)
        def add_sub_test(test, subtest, error):
            if error is not None:
                self._note(result, test, "FAIL")
            return add(test, subtest, error)

        result.addSubTest = add_sub_test
        return result

    def _wrap(self, result, name, word):
        add = getattr(result, name)

        @functools.wraps(add)
        def watched(test, *rest):
            self._note(result, test, word)
            return add(test, *rest)

        setattr(result, name, watched)

    def _note(self, result, test, word):
        for entry in self._canaries:
            if entry[0] is test:
                entry[1] = {"ok": "PASSED", "FAIL": "FAILED"}.get(word, word)
                return
        describe = getattr(result, "getDescription", str)
        self._ends.append((word, str(describe(test)).split("\n")[-1].strip()))

    def _report(self):
        head = ["canary " + status for _, status in self._canaries]
        # A test that failed in one part did not pass in another.
        ends = sorted(self._ends, key=lambda end: end[0] != "ok")
        return "\n".join(head + [""] + ["%s ... %s" % (what, word) for word, what in ends])
