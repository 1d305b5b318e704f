"""Watches test runners other than pytest. Runs at the start of every Python of a test run.

In the process of the runner it takes the key and waits for the runner's module to be
imported; in every other it does nothing. Python 3.6+.
"""

import os
import sys

FOLDER = os.path.dirname(os.path.abspath(__file__))


class _Finder:
    """Has ``install`` called on a module as soon as it is there."""

    def __init__(self, names, install):
        self._names = names
        self._install = install

    def find_spec(self, name, path=None, target=None):
        if name not in self._names:
            return None
        import importlib.util

        self._names = tuple(other for other in self._names if other != name)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            self._install(module)

        spec.loader.exec_module = exec_module
        return spec


def _watch():
    try:
        with open("/proc/self/cmdline", "rb") as file:
            words = os.fsdecode(file.read()).split("\0")
    except OSError:
        return
    with open(os.path.join(FOLDER, "runner")) as file:
        kind, *signs = file.read().split()
    if not any(word.endswith(sign) for word in words[:4] for sign in signs):
        return
    import palestra_seal

    palestra_seal.leave_no_trace(FOLDER)
    seal = palestra_seal.open_seal()
    if seal is None:
        return
    if kind == "sympy":
        import palestra_sympy as hooks
    else:
        import palestra_unittest as hooks
    sys.meta_path.insert(0, _Finder(hooks.MODULES, hooks.installer(seal)))


def _hand_on():
    """Load the sitecustomize that this one stands before."""
    sys.path[:] = [path for path in sys.path if path != FOLDER]
    sys.modules.pop("sitecustomize", None)
    try:
        import sitecustomize  # noqa: F401
    except ImportError:
        pass


_watch()
_hand_on()
