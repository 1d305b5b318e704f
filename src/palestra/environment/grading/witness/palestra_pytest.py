"""A pytest plugin that reports every test under a key. Runs inside the sandbox, Python 3.6+.

It stands before everything that the repository brings: pytest loads it by ``PYTEST_ADDOPTS``
before installed plugins and before it reads any conftest. Beside the tests it runs canaries,
functions in the hidden modules that cannot pass; where one does, or where the files or the
functions that decide were changed while the tests ran, the report says so.
"""

import os
import sys
import sysconfig
import types
import unittest

import _pytest.reports
import _pytest.runner
import _pytest.unittest
import palestra_seal
import pluggy
import pytest

FOLDER = os.path.dirname(os.path.abspath(__file__))
# In the order of pytest's own summary: of two lines for one id the later counts.
ORDER = ("PASSED", "SKIPPED", "XFAIL", "XPASS", "ERROR", "FAILED")
# Clocks of file systems are coarse.
CLOCK_SLACK_S = 0.05
INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})


def must_fail():
    assert [1, 2] == [2, 1]


def must_fail_by_method():
    unittest.TestCase("run").assertEqual("a", "b")


def must_error(palestra_has_no_such_fixture):
    raise SystemError("no fixture, and yet it runs")


def disguised(function, name, path):
    """The same function as if it were written in the test file."""
    code = function.__code__
    if hasattr(code, "replace"):
        code = code.replace(co_name=name, co_filename=path)
    return types.FunctionType(code, function.__globals__, name)


def code_of(item):
    """What runs when the test runs."""
    test = getattr(item, "obj", None)
    return getattr(getattr(test, "__func__", test), "__code__", None)


def deciders():
    """The functions that make a failure a failure, by name."""
    places = (_pytest.runner, _pytest.reports.TestReport, _pytest.runner.CallInfo)
    places += (pytest.Function, unittest.TestCase, unittest.result.TestResult)
    places += (_pytest.unittest.TestCaseFunction, pluggy.PluginManager)
    for place in places:
        for name, value in sorted(vars(place).items()):
            value = getattr(value, "__func__", value)
            if hasattr(value, "__code__"):
                yield "%s.%s" % (place.__name__, name), value.__code__
    try:
        from pluggy import _callers
    except ImportError:
        return
    for name, value in sorted(vars(_callers).items()):
        if hasattr(value, "__code__"):
            yield "pluggy.%s" % name, value.__code__


def content(path):
    try:
        with open(path, "rb") as file:
            return palestra_seal.blake2b(file.read()).digest()
    except OSError:
        return None


def classes(root=object):
    """Every class there is; the same one more than once where it has several parents."""
    for cls in type.__subclasses__(root):
        yield cls
        if cls is not type:
            yield from classes(cls)


def equals_anything(cls):
    """Whether an instance says that it equals an object that nobody has seen."""
    for make in (object.__new__, cls.__new__):
        try:
            return vars(cls)["__eq__"](make(cls), object()) is True
        except Exception:
            continue
    return False


class Witness:
    """Notes how each test ends and signs it at the end of the session."""

    def __init__(self, seal, hidden, changed):
        self._seal = seal
        self._hidden = {path: content(path) for path in map(os.path.realpath, hidden)}
        self._patched = frozenset(map(os.path.realpath, changed))
        self._deciders = dict(deciders())
        self._began_s = os.stat(FOLDER).st_mtime
        self._tests = {}  # id → what runs
        self._ends = []  # (status, id)
        self._canaries = {}  # id → status, or "" until it ends
        self._findings = []
        self._has_workers = False

    def pytest_configure(self, config):
        self._config = config
        self._has_workers = getattr(config.option, "dist", "no") != "no"
        if getattr(config.option, "maxfail", 0):
            config.option.maxfail += 6  # the canaries' failures do not count

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, session, config, items):
        modules = [item.getparent(pytest.Module) for item in items]
        modules = [module for module in modules if module is not None]
        self._tests = {item.nodeid: code_of(item) for item in items}
        if modules and not config.option.collectonly:
            items[:0] = self._make_canaries(modules[0])
            items.extend(self._make_canaries(modules[-1]))

    def _make_canaries(self, module):
        for call in (must_fail, must_fail_by_method, must_error):
            # By its name and its place nothing tells it from a test.
            name = "test_" + palestra_seal.binascii.hexlify(os.urandom(4)).decode()
            call = disguised(call, name, str(getattr(module, "path", module.fspath)))
            if hasattr(pytest.Function, "from_parent"):
                item = pytest.Function.from_parent(module, name=name, callobj=call)
            else:
                item = pytest.Function(name, module, callobj=call)
            # Writing out why it failed would cost more than all the rest.
            item.repr_failure = item._repr_failure_py = lambda *_, **__: "as it must"
            self._canaries[item.nodeid] = ""
            yield item

    def pytest_collectstart(self, collector):
        path = os.path.realpath(str(getattr(collector, "fspath", "")))
        if path in self._hidden and content(path) != self._hidden[path]:
            self._find("the hidden test file %s was changed while the tests ran" % path)

    def pytest_collectreport(self, report):
        if report.failed:
            self._note("ERROR", report.nodeid)

    @pytest.hookimpl(hookwrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self, item, call):
        raised = call.excinfo is not None
        known, now = self._tests.get(item.nodeid), code_of(item)
        if known is not None and self._is_strange(known, now):
            self._find("%s was rewritten while the tests ran" % item.nodeid)
        outcome = yield
        report = outcome.get_result()
        if raised and isinstance(call.excinfo.value, pytest.xfail.Exception):
            raisers = [entry.frame.code.raw.co_filename for entry in call.excinfo.traceback]
            if self._patched.intersection(map(os.path.realpath, raisers)):
                self._note("FAILED", report.nodeid)
                self._find("the patched code said itself that %s may fail" % report.nodeid)
        if raised and report.outcome == "passed" and not hasattr(report, "wasxfail"):
            self._note("FAILED", report.nodeid)
            self._find("a failure of %s was reported as a success" % report.nodeid)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report):
        status = self._status(report)
        if status is not None:
            self._note(status, report.nodeid)

    def _status(self, report):
        expected = hasattr(report, "wasxfail")
        if report.outcome == "failed":
            return "FAILED" if report.when == "call" else "ERROR"
        if report.outcome == "skipped":
            return "XFAIL" if expected else "SKIPPED"
        if report.outcome == "passed" and report.when == "call":
            return "XPASS" if expected else "PASSED"
        return None

    def _note(self, status, nodeid):
        if nodeid in self._canaries:
            self._canaries[nodeid] = self._canaries[nodeid] or status
        else:
            self._ends.append((status, nodeid))

    def _find(self, what):
        if what not in self._findings:
            self._findings.append(what)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session):
        self._check_conftests()
        self._check_equality()
        changed = sorted(self._changed())
        if changed:
            self._find("the test runner was rewritten while it ran: " + ", ".join(changed))
        self._seal(self._report())

    def _changed(self):
        now = dict(deciders())
        for name, code in self._deciders.items():
            if self._is_strange(code, now.get(name)):
                yield name

    @staticmethod
    def _is_strange(known, now):
        # Installed plugins may have their way of running tests.
        return now is not known and not (now and now.co_filename.startswith(INSTALLED))

    def _check_conftests(self):
        for plugin in self._config.pluginmanager.get_plugins():
            path = getattr(plugin, "__file__", None) or ""
            if os.path.basename(path) == "conftest.py" and self._is_new(path):
                self._find("%s was written while the tests ran" % path)

    def _check_equality(self):
        for cls in set(classes()):
            code = getattr(vars(cls).get("__eq__"), "__code__", None)
            is_patched = code and os.path.realpath(code.co_filename) in self._patched
            if is_patched and equals_anything(cls):
                self._find("%s of the patch equals anything" % cls.__name__)

    def _is_new(self, path):
        try:
            # The time of change, which nobody can set back.
            return os.stat(path).st_ctime > self._began_s + CLOCK_SLACK_S
        except OSError:
            return True

    def _report(self):
        head = ["finding " + " ".join(what.split()) for what in self._findings]
        head.extend("canary " + (status or "MISSING") for status in self._canaries.values())
        if self._has_workers:
            head.append("spread")
        name = getattr(self._config, "cwd_relative_nodeid", str)
        ends = sorted(self._ends, key=lambda end: ORDER.index(end[0]))
        # As pytest prints it, skipped tests have no id.
        lines = [s + (" [1] " if s == "SKIPPED" else " ") + name(test) for s, test in ends]
        return "\n".join(head + [""] + lines)


def _witness():
    palestra_seal.leave_no_trace(FOLDER)
    sys.path[:] = [path for path in sys.path if path != FOLDER]
    others = os.environ.pop("PYTEST_ADDOPTS", "").replace("-p " + __name__, "", 1).strip()
    if others:
        os.environ["PYTEST_ADDOPTS"] = others
    seal = palestra_seal.open_seal()
    return [] if seal is None else [Witness(seal, listed("hidden"), listed("changed"))]


def listed(name):
    """The lines of a file that came along."""
    with open(os.path.join(FOLDER, name), encoding="utf-8", errors="surrogateescape") as file:
        return file.read().split("\n")


_waiting = _witness()  # now: the first conftest may import the code under test


def pytest_configure(config):
    """Take the place among the plugins."""
    while _waiting:
        config.pluginmanager.register(_waiting.pop())
