"""Level 0: one-line functions whose one operator is wrong; six edits mend them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from palestra.tasks.katas.draw import Draw
from palestra.tasks.katas.family import Arguments, Bug, Family

WORDS = {"+": "plus", "-": "minus", "*": "times"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The expression around an operator ``$op``, and what it means with the word ``$word``."""

    name: str
    parameters: str
    expression: str
    doc: str
    inputs: Callable[[Draw, Mapping[str, int]], Arguments]


SLOTS = {
    "a": "width hours left first base price weight",
    "b": "height rate right second other count length",
    "c": "extra bonus more third",
    "xs": "values numbers items parts",
    "x": "value number item part",
}


def _small(draw: Draw) -> int:
    # 0 and 2 are where operators agree: tests that hold need them.
    return draw.pick((0, 2)) if draw.below(3) == 0 else draw.number(1, 12)


def _one(draw: Draw, _: Mapping[str, int]) -> Arguments:
    return (_small(draw),)


def _two(draw: Draw, _: Mapping[str, int]) -> Arguments:
    return (_small(draw), _small(draw))


def _three(draw: Draw, _: Mapping[str, int]) -> Arguments:
    return (_small(draw), _small(draw), _small(draw))


def _pair(draw: Draw, _: Mapping[str, int]) -> Arguments:
    return ([_small(draw), _small(draw)],)


def _list(draw: Draw, _: Mapping[str, int]) -> Arguments:
    return ([_small(draw) for _ in range(draw.number(0, 3))],)


def _list_and_one(draw: Draw, _: Mapping[str, int]) -> Arguments:
    return ([_small(draw) for _ in range(draw.number(0, 3))], _small(draw))


TRAIN_SHAPES = (
    Shape(name="two", parameters="$a, $b", expression="$a $op $b", doc="$a $word $b.", inputs=_two),
    Shape(
        name="size",
        parameters="$a, $b",
        expression="abs($a $op $b)",
        doc="$a $word $b, without the sign.",
        inputs=_two,
    ),
    Shape(
        name="constant", parameters="$a", expression="$k $op $a", doc="$k $word $a.", inputs=_one
    ),
    Shape(
        name="each",
        parameters="$xs",
        expression="[$x $op $k for $x in $xs]",
        doc="Every one of $xs $word $k.",
        inputs=_list,
    ),
    Shape(
        name="greater",
        parameters="$a, $b, $c",
        expression="max($a, $b) $op $c",
        doc="The greater of $a and $b, $word $c.",
        inputs=_three,
    ),
    Shape(
        name="sum",
        parameters="$xs, $c",
        expression="sum($xs) $op $c",
        doc="The sum of $xs, $word $c.",
        inputs=_list_and_one,
    ),
    Shape(
        name="half",
        parameters="$a, $b",
        expression="($a $op $b) // 2",
        doc="Half of $a $word $b, rounded down.",
        inputs=_two,
    ),
)
_HELDOUT_SHAPES = (
    Shape(
        name="smaller",
        parameters="$a, $b, $c",
        expression="min($a, $b) $op $c",
        doc="The smaller of $a and $b, $word $c.",
        inputs=_three,
    ),
    Shape(
        name="negative",
        parameters="$a, $b",
        expression="-($a $op $b)",
        doc="The negative of $a $word $b.",
        inputs=_two,
    ),
    Shape(
        name="count",
        parameters="$xs, $c",
        expression="len($xs) $op $c",
        doc="The number of $xs, $word $c.",
        inputs=_list_and_one,
    ),
    Shape(
        name="square",
        parameters="$a, $b",
        expression="pow($a $op $b, 2)",
        doc="The square of $a $word $b.",
        inputs=_two,
    ),
    Shape(
        name="ends",
        parameters="$xs",
        expression="$xs[0] $op $xs[-1]",
        doc="The first of $xs $word the last.",
        inputs=_pair,
    ),
)
TRAIN_NAMES = {
    "+": "total add_up combined together",
    "-": "rest remaining left_over reduced",
    "*": "area product cost multiplied",
}
_HELDOUT_NAMES = {
    "+": "joined extended raised grown",
    "-": "gap shortened lowered trimmed",
    "*": "scaled stretched repeated volume",
}


def _family(shape: Shape, op: str, names: Mapping[str, str], split: str) -> Family:
    expression = shape.expression.replace("$op", op)
    spaced = f" {op} "
    return Family(
        name=f"{split}_{shape.name}_{WORDS[op]}",
        names=names[op],
        doc=shape.doc.replace("$word", WORDS[op]),
        source=f"def $f({shape.parameters}):\n    return {expression}\n",
        slots={slot: words for slot, words in SLOTS.items() if _uses(shape, slot)},
        bugs=tuple(
            Bug(kind="operator_swap", right=spaced, wrong=f" {other} ", tier=0)
            for other in WORDS
            if other != op
        ),
        inputs=shape.inputs,
        constants={"k": (2, 9)} if "$k" in shape.expression else {},
    )


def _uses(shape: Shape, slot: str) -> bool:
    words = (shape.parameters + " " + shape.expression).replace(",", " ").split()
    return any(word.strip("()[]-").split("[")[0].endswith("$" + slot) for word in words)


TRAIN_LEVEL0 = tuple(
    _family(shape, op, TRAIN_NAMES, "train") for shape in TRAIN_SHAPES for op in WORDS
)
HELDOUT_LEVEL0 = tuple(
    _family(shape, op, _HELDOUT_NAMES, "heldout") for shape in _HELDOUT_SHAPES for op in WORDS
)
