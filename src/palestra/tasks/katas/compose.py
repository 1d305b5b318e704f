"""Makes a repository of drawn functions, one of them with a bug."""

from __future__ import annotations

from dataclasses import dataclass

from palestra.tasks.katas.callers import Caller
from palestra.tasks.katas.catalog import Catalog
from palestra.tasks.katas.draw import Draw
from palestra.tasks.katas.family import Bug, Function

LEVEL0_MODULE = "calc"
_NUM_OTHERS = {0: (0, 1), 1: (2, 4), 2: (4, 7), 3: (2, 3), 4: (2, 4)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A drawn repository: where each function stands and which one is wrong."""

    level: int
    module: str
    functions: tuple[Function, ...]  # as they stand in the module, the target among them
    target: Function
    bug: Bug
    caller_module: str | None = None
    caller: Caller | None = None

    @property
    def path(self) -> str:
        """The file with the bug."""
        return f"{self.module}.py"

    @property
    def others(self) -> tuple[Function, ...]:
        """The functions without a bug."""
        return tuple(f for f in self.functions if f is not self.target)

    def text(self, *, buggy: bool) -> str:
        """The file with the bug, as it is in the repository or as it should be."""
        sources = [
            function.source(self.bug if buggy and function is self.target else None)
            for function in self.functions
        ]
        head = "" if self.level == 0 else f'"""Functions of the {self.module}."""\n\n\n'
        return head + "\n\n".join(sources)

    def surroundings(self) -> dict[str, str]:
        """Path and text of every other file."""
        if self.level == 0:
            return {}
        files = {"README.md": self._readme()}
        if self.caller is not None:
            files[f"{self.caller_module}.py"] = (
                f'"""Built on the {self.module}."""\n\n'
                f"from {self.module} import {self.target.name}\n\n\n{self.caller.source()}"
            )
        return files

    def _readme(self) -> str:
        lines = [f"# {self.module}", ""]
        lines += [f"- `{f.signature}` in `{self.path}`: {f.doc}" for f in self.functions]
        if self.caller is not None:
            lines.append(
                f"- `{self.caller.signature}` in `{self.caller_module}.py`: {self.caller.doc}"
            )
        return "\n".join(lines) + "\n"


def compose(draw: Draw, catalog: Catalog, level: int) -> Draft:
    """Draw a repository of ``level``."""
    family, bugs = draw.pick(catalog.targets(level))
    target = family.draw(draw)
    if target is None:
        raise ValueError(f"{family.name} has no name")
    bug = draw.pick(bugs)
    functions = [target]
    rest = [other for other in catalog.functions(level) if other.name != family.name]
    if level == 0:
        # A second line with the wrong operator in it would be mended along.
        rest = [other for other in rest if bug.wrong not in other.source]
    for other in draw.sample(rest, draw.number(*_NUM_OTHERS[level])):
        function = other.draw(draw, taken=[f.name for f in functions])
        if function is not None:
            functions.append(function)
    modules = draw.sample(catalog.modules, 2)
    draft = Draft(
        level=level,
        module=LEVEL0_MODULE if level == 0 else modules[0],
        functions=tuple(draw.shuffled(functions)),
        target=target,
        bug=bug,
    )
    return _with_caller(draft, draw, catalog, modules[1]) if level == 3 else draft


def _with_caller(draft: Draft, draw: Draw, catalog: Catalog, module: str) -> Draft:
    caller = draw.pick(catalog.callers).draw(
        draw, helper=draft.target.name, taken=[f.name for f in draft.functions]
    )
    return Draft(
        level=draft.level,
        module=draft.module,
        functions=draft.functions,
        target=draft.target,
        bug=draft.bug,
        caller_module=module,
        caller=caller,
    )
