"""Level 3: functions of a second module in which the bug of the first one shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from string import Template

from palestra.tasks.katas.draw import Draw
from palestra.tasks.katas.family import Arguments


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerFamily:
    """A function that calls another one, ``$h``; ``wrap`` turns that one's arguments into its own.

    ``wrap`` is given the arguments of several calls.
    """

    name: str
    names: str
    doc: str
    source: str
    wrap: Callable[[Draw, Sequence[Arguments]], Arguments]

    def draw(self, draw: Draw, *, helper: str, taken: Sequence[str]) -> Caller:
        """A caller of the function ``helper``."""
        free = [name for name in self.names.split() if name not in taken]
        return Caller(family=self, name=draw.pick(free), helper=helper)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """A drawn caller."""

    family: CallerFamily
    name: str
    helper: str

    @property
    def doc(self) -> str:
        """What is meant, in words."""
        return Template(self.family.doc).substitute(h=self.helper)

    @property
    def signature(self) -> str:
        """``name(parameters)``."""
        return self.source().split("\n", 1)[0].removeprefix("def ").rstrip(":")

    def source(self) -> str:
        """The source with its docstring."""
        words = {"f": self.name, "h": self.helper}
        head, body = Template(self.family.source.strip("\n")).substitute(words).split("\n", 1)
        return f'{head}\n    """{self.doc}"""\n{body}\n'


def _named(draw: Draw, calls: Sequence[Arguments]) -> dict[str, Arguments]:
    return dict(zip(draw.sample(("a", "b", "c", "d"), len(calls)), calls, strict=True))


TRAIN_CALLERS = (
    CallerFamily(
        name="for_each",
        names="results_for answers_to run_all",
        doc="Return what $h says about each entry of batch, a list of argument tuples.",
        source="""
def $f(batch):
    return [$h(*arguments) for arguments in batch]
""",
        wrap=lambda d, calls: (list(calls),),
    ),
    CallerFamily(
        name="by_name",
        names="report_of table_of named_results",
        doc="Map each name in calls to what $h says about its argument tuple.",
        source="""
def $f(calls):
    report = {}
    for name, arguments in calls.items():
        report[name] = $h(*arguments)
    return report
""",
        wrap=lambda d, calls: (_named(d, calls),),
    ),
    CallerFamily(
        name="labelled",
        names="describe summary_line labelled",
        doc="Return one line of text: the label and what $h says about the arguments.",
        source="""
def $f(label, *arguments):
    answer = $h(*arguments)
    return f"{label}: {answer!r}"
""",
        wrap=lambda d, calls: (d.pick(("result", "answer", "here")), *calls[0]),
    ),
)
HELDOUT_CALLERS = (
    CallerFamily(
        name="positions_of",
        names="positions_with places_where matching",
        doc="Return the positions in batch, a list of argument tuples, at which $h says wanted.",
        source="""
def $f(batch, wanted):
    return [i for i, arguments in enumerate(batch) if $h(*arguments) == wanted]
""",
        wrap=lambda d, calls: (list(calls), None),
    ),
    CallerFamily(
        name="before_after",
        names="change_between both_answers compare_calls",
        doc="Return what $h says about one and about other, two argument tuples, as a dict.",
        source="""
def $f(one, other):
    return {"one": $h(*one), "other": $h(*other)}
""",
        wrap=lambda d, calls: (calls[0], calls[-1]),
    ),
    CallerFamily(
        name="recorded",
        names="recorded log_entry with_record",
        doc="Return a pair: the arguments as a list, and what $h says about them.",
        source="""
def $f(*arguments):
    return list(arguments), $h(*arguments)
""",
        wrap=lambda d, calls: calls[0],
    ),
)
