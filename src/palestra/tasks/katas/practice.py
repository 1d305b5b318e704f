"""Practice: files and issues that look like katas of level 0 and are none.

A small policy learns to operate the shell and to copy text on them before it meets a
task. Nothing is run: what the issue says was returned is drawn, not computed. The
shapes are made up or those of the training split, the names mostly made up; nothing of
the held-out split is ever drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import Template

from palestra.tasks.katas.blind import Edit
from palestra.tasks.katas.compose import LEVEL0_MODULE
from palestra.tasks.katas.draw import Draw
from palestra.tasks.katas.families_level0 import SLOTS, TRAIN_NAMES, TRAIN_SHAPES, WORDS

PATH = f"{LEVEL0_MODULE}.py"
_MAX_OTHERS = 2

_ONSETS = "b c d f g h j k l m n p r s t v w br ch cl dr fl gr pl pr sh sp st th tr"
_VOWELS = "a e i o u ai ea ee ie oa ou"
_CODAS = "b ck d g ght l ll m n nd ng p r rd rt s st t th x"
_ENDINGS = "ed er ing s ly e"

# Parameters, what stands around the operator, and what the whole is called.
_SIDES = ("$a", "$a", "$a", "$k", "-$a", "$a[$i]", "$g($a)", "$g($a, $d)", "$g($a)[$i]")
_FRAMES = (
    ("{}", "{}"),
    ("{}", "The $p of {}"),
    ("{}", "The $p of {}, $q"),
    ("$h({})", "The $p of {}"),
    ("$h({})", "{}, $p the $q"),
    ("-$h({})", "The $p $q of {}"),
    ("$h({}, $j)", "The $p of {}"),
    ("({}) // $j", "$p of {}, $q down"),
    ("-({}) // $j", "The $p of {}, $q"),
    ("-({}) ** $j", "$p the $q of {}"),
    ("-(~({}))", "The $p of {}, $q"),
    ("~({})", "The $p of {}"),
    ("+({})", "The $p of {}"),
    ("$h(-({}))", "The $p $q of {}"),
    ("($h({}), $j)", "{} and its $p"),
    ("$h[{}]", "The $p at {}"),
    ("[{} for $x in $xs]", "Every $p of {}"),
)
_NAMES = tuple(name for names in TRAIN_NAMES.values() for name in names.split())
_NOUNS = tuple(noun for nouns in SLOTS.values() for noun in nouns.split())


@dataclass(frozen=True, slots=True, kw_only=True)
class Practice:
    """An issue, the one file that it is about, and what would mend it."""

    problem_statement: str
    path: str
    text: str
    called_for: Edit


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    name: str
    parameters: str
    expression: str  # with $op
    op: str
    doc: str

    def returned(self, op: str) -> str:
        return self.expression.replace("$op", op)

    def source(self, op: str) -> str:
        head = f'def {self.name}({self.parameters}):\n    """{self.doc}"""\n'
        return f"{head}    return {self.returned(op)}\n"


def draw_practice(draw: Draw) -> Practice:
    """Draw a file of one to three functions, one of them with a wrong operator, and its issue."""
    target = _made(draw, taken=())
    wrong = draw.pick([op for op in WORDS if op != target.op])
    functions = [target]
    for _ in range(draw.below(_MAX_OTHERS + 1)):
        functions.append(_made(draw, taken=[f.name for f in functions]))
    sources = [f.source(wrong if f is target else f.op) for f in draw.shuffled(functions)]
    arguments = ", ".join(_value(draw) for _ in target.parameters.split(", "))
    return Practice(
        problem_statement=(
            f"`{target.name}({arguments})` in {PATH} returns {_value(draw)}, "
            f"expected {_value(draw)}: {target.doc.rstrip('.')}.\n"
        ),
        path=PATH,
        text="\n\n".join(sources),
        called_for=Edit(old=target.returned(wrong), new=target.returned(target.op)),
    )


def _made(draw: Draw, *, taken: Sequence[str]) -> _Made:
    op = draw.pick(tuple(WORDS))
    name = _free(draw, _NAMES, taken)
    words = {"p": _word(draw), "q": _word(draw), "g": _word(draw), "h": _word(draw)}
    for slot in SLOTS:
        words[slot] = _free(draw, _NOUNS, [*words.values(), name])
    numbers = {"k": str(draw.number(0, 9)), "j": str(draw.number(1, 9))}
    parameters, expression, doc = draw.pick((_kata_shape, _made_up_shape))(draw)
    filled = words | numbers | {"op": "$op", "word": WORDS[op]}
    meaning = Template(doc).substitute(filled)
    return _Made(
        name=name,
        parameters=Template(parameters).substitute(filled),
        expression=Template(expression).substitute(filled),
        op=op,
        doc=meaning if draw.flip() else meaning[0].upper() + meaning[1:],
    )


def _kata_shape(draw: Draw) -> tuple[str, str, str]:
    shape = draw.pick(TRAIN_SHAPES)
    return shape.parameters, shape.expression, shape.doc


def _made_up_shape(draw: Draw) -> tuple[str, str, str]:
    """Parameters, expression with ``$op`` and meaning with ``$word``, slots not yet filled."""
    frame, meaning = draw.pick(_FRAMES)
    if "$x" in frame:
        sides, parameters = ["$x", draw.pick(("$k", "$b"))], "$xs, $b"
    else:
        one, other = (draw.pick(_SIDES).replace("$i", str(draw.number(-3, 3))) for _ in range(2))
        other = other.replace("$a", "$b").replace("$d", "$c")
        one = one.replace("$d", "$c")
        if draw.below(4) == 0:
            other = other.replace("$b", "$a")  # two parts of one thing
        sides, parameters = draw.shuffled([one, other]), "$a, $b, $c"
    used = ", ".join(p for p in parameters.split(", ") if p in "".join(sides) + frame)
    says = f"{_said(sides[0], '$p')} $word {_said(sides[1], draw.pick(('$q', '$p')))}"
    return used or "$a", frame.format(f"{sides[0]} $op {sides[1]}"), meaning.format(says) + "."


def _said(side: str, word: str) -> str:
    """A side of the operator in words: calls and parts become "the ..."."""
    return f"the {word}" if "(" in side or "[" in side else side.lstrip("-")


def _free(draw: Draw, known: Sequence[str], taken: Sequence[str]) -> str:
    """A made-up word, or now and then a known one, that is not taken."""
    word = draw.pick(known) if draw.below(3) == 0 else _word(draw)
    while word in taken:
        word = _word(draw)
    return word


def _word(draw: Draw) -> str:
    syllables = [
        draw.pick(_ONSETS.split())
        + draw.pick(_VOWELS.split())
        + (draw.pick(_CODAS.split()) if draw.flip() else "")
        for _ in range(draw.number(1, 2))
    ]
    ending = draw.pick(_ENDINGS.split()) if draw.below(3) == 0 else ""
    word = "".join(syllables) + ending
    return f"{word}_{_word(draw)}" if draw.below(12) == 0 else word


def _value(draw: Draw) -> str:
    if draw.below(4) == 0:
        return str([_number(draw) for _ in range(draw.below(4))])
    return str(_number(draw))


def _number(draw: Draw) -> int:
    return draw.number(-9, 99) if draw.below(3) == 0 else draw.number(0, 12)
