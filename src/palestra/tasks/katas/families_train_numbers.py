"""Functions of the training split on numbers."""

from __future__ import annotations

from palestra.tasks.katas.family import Bug, Family

TRAIN_NUMBERS = (
    Family(
        name="clamp",
        names="clamp keep_within bounded",
        doc="Return $x, but never less than $lo and never more than $hi; $lo is at most $hi.",
        source="""
def $f($x, $lo, $hi):
    if $x < $lo:
        return $lo
    if $x > $hi:
        return $hi
    return $x
""",
        slots={"x": "value amount speed", "lo": "low lowest floor", "hi": "high highest ceiling"},
        bugs=(
            Bug(kind="comparison_direction", right="if $x > $hi", wrong="if $x < $hi"),
            Bug(kind="wrong_variable", right="        return $lo", wrong="        return $hi"),
            Bug(kind="wrong_variable", right="    return $x", wrong="    return $lo", tier=2),
            Bug(
                kind="missing_guard",
                right="    if $x > $hi:\n        return $hi\n",
                wrong="",
                tier=4,
            ),
        ),
        inputs=lambda d, c: (d.number(-9, 20), d.number(-5, 4), d.number(5, 12)),
    ),
    Family(
        name="count_multiples",
        names="count_multiples how_many_multiples multiples_up_to",
        doc="Count the whole numbers from 1 to $n, $n included, that $k divides.",
        source="""
def $f($n):
    $count = 0
    for $i in range(1, $n + 1):
        if $i % $k == 0:
            $count += 1
    return $count
""",
        slots={"n": "limit top last", "count": "count found hits", "i": "i number candidate"},
        constants={"k": (2, 7)},
        bugs=(
            Bug(kind="range_off_by_one", right="$n + 1", wrong="$n"),
            Bug(kind="initial_value", right="$count = 0", wrong="$count = 1"),
            Bug(kind="inverted_condition", right="$k == 0", wrong="$k != 0"),
            Bug(kind="range_off_by_one", right="range(1,", wrong="range(0,", tier=2),
            Bug(kind="boundary", right="$i % $k == 0", wrong="$i % $k == 1", tier=2),
        ),
        inputs=lambda d, c: (d.pick((c["k"] * d.number(1, 4), d.number(0, 30))),),
    ),
    Family(
        name="digit_sum",
        names="digit_sum sum_of_digits cross_sum",
        doc="Return the sum of the decimal digits of the whole number $n; its sign does not count.",
        source="""
def $f($n):
    $total = 0
    for $c in str(abs($n)):
        $total += int($c)
    return $total
""",
        slots={"n": "n number value", "total": "total result acc", "c": "c digit char"},
        bugs=(
            Bug(kind="missing_edge_case", right="str(abs($n))", wrong="str($n)"),
            Bug(kind="operator_swap", right="$total += int", wrong="$total -= int"),
            Bug(kind="dropped_step", right="$total += int", wrong="$total = int"),
            Bug(kind="slice_off_by_one", right="str(abs($n))", wrong="str(abs($n))[1:]", tier=2),
        ),
        inputs=lambda d, c: (d.pick((d.number(0, 9), d.number(10, 9999), -d.number(10, 999))),),
    ),
    Family(
        name="discount",
        names="discounted price_after_discount to_pay",
        doc="Return $x less $p when $x is at least $k; otherwise return $x unchanged.",
        source="""
def $f($x):
    if $x >= $k:
        return $x - $p
    return $x
""",
        slots={"x": "price bill order_value"},
        constants={"k": (20, 60), "p": (2, 9)},
        bugs=(
            Bug(kind="boundary", right="$x >= $k", wrong="$x > $k", tier=2),
            Bug(kind="comparison_direction", right="$x >= $k", wrong="$x <= $k"),
            Bug(kind="operator_swap", right="$x - $p", wrong="$x + $p"),
            Bug(kind="wrong_variable", right="$x - $p", wrong="$x - $k"),
        ),
        inputs=lambda d, c: (
            d.pick((c["k"], c["k"] - 1, c["k"] + d.number(1, 30), d.number(0, 20))),
        ),
    ),
    Family(
        name="leap_year",
        names="is_leap_year has_extra_day is_long_year",
        doc=(
            "Tell whether the year $y is a leap year: one that 4 divides, but not 100, "
            "unless 400 divides it as well."
        ),
        source="""
def $f($y):
    if $y % 400 == 0:
        return True
    if $y % 100 == 0:
        return False
    return $y % 4 == 0
""",
        slots={"y": "year y date_year"},
        bugs=(
            Bug(kind="wrong_constant", right="% 400", wrong="% 500", tier=2),
            Bug(kind="wrong_return", right="return False", wrong="return True", tier=2),
            Bug(kind="inverted_condition", right="return $y % 4 == 0", wrong="return $y % 4 != 0"),
            Bug(kind="wrong_constant", right="% 4 ==", wrong="% 5 =="),
            Bug(
                kind="missing_guard",
                right="    if $y % 100 == 0:\n        return False\n",
                wrong="",
                tier=4,
            ),
        ),
        inputs=lambda d, c: (
            d.pick((d.number(1, 30) * 100, d.number(1, 6) * 400, d.number(1800, 2100))),
        ),
    ),
    Family(
        name="floor_average",
        names="floor_average rounded_mean whole_average",
        doc="Return the average of $xs rounded down to a whole number, and None for an empty list.",
        source="""
def $f($xs):
    if not $xs:
        return None
    return sum($xs) // len($xs)
""",
        slots={"xs": "values scores readings"},
        bugs=(
            Bug(kind="division_kind", right=" // ", wrong=" / "),
            Bug(kind="wrong_default", right="return None", wrong="return 0"),
            Bug(kind="off_by_one", right="len($xs)", wrong="(len($xs) + 1)"),
            Bug(kind="inverted_condition", right="if not $xs", wrong="if $xs", tier=2),
            Bug(
                kind="missing_guard",
                right="    if not $xs:\n        return None\n",
                wrong="",
                tier=4,
            ),
        ),
        inputs=lambda d, c: (d.numbers(0, 4),),
    ),
    Family(
        name="ring_position",
        names="ring_position step_around wrapped_position",
        doc="Return where one stands after $s steps forward from place $i on a ring of $k places.",
        source="""
def $f($i, $s):
    return ($i + $s) % $k
""",
        slots={"i": "place start index", "s": "steps moves distance"},
        constants={"k": (5, 12)},
        bugs=(
            Bug(kind="operator_swap", right="$i + $s", wrong="$i - $s"),
            Bug(kind="operator_swap", right=" % ", wrong=" // "),
            Bug(kind="off_by_one", right="% $k", wrong="% ($k - 1)", tier=2),
            Bug(kind="off_by_one", right="$i + $s", wrong="$i + $s + 1"),
        ),
        inputs=lambda d, c: (d.number(0, c["k"] - 1), d.pick((0, d.number(0, 30)))),
    ),
    Family(
        name="overlap",
        names="overlap_size days_in_common shared_span",
        doc=(
            "Count the whole numbers that lie both in $a to $b and in $c to $d; "
            "all four ends are included. Without any, the count is 0."
        ),
        source="""
def $f($a, $b, $c, $d):
    $lo = max($a, $c)
    $hi = min($b, $d)
    return max(0, $hi - $lo + 1)
""",
        slots={
            "a": "start_a a from_a",
            "b": "end_a b to_a",
            "c": "start_b c from_b",
            "d": "end_b d to_b",
            "lo": "low begin",
            "hi": "high finish",
        },
        bugs=(
            Bug(kind="min_max_swap", right="$lo = max", wrong="$lo = min"),
            Bug(kind="min_max_swap", right="$hi = min", wrong="$hi = max"),
            Bug(kind="off_by_one", right="$hi - $lo + 1", wrong="$hi - $lo"),
            Bug(kind="missing_edge_case", right="max(0, $hi", wrong="abs($hi", tier=2),
            Bug(kind="wrong_variable", right="min($b, $d)", wrong="min($b, $c)", tier=2),
        ),
        inputs=lambda d, c: (
            s := d.number(0, 9),
            s + d.number(0, 6),
            t := d.number(0, 9),
            t + d.number(0, 6),
        ),
    ),
    Family(
        name="shipping",
        names="shipping_cost fee_for postage",
        doc="Return $b for up to $k $n, and $p more for each one beyond $k.",
        source="""
def $f($n):
    $fee = $b
    if $n > $k:
        $fee += ($n - $k) * $p
    return $fee
""",
        slots={"n": "items parcels pages", "fee": "fee charge amount"},
        constants={"b": (10, 30), "k": (3, 6), "p": (2, 7)},
        bugs=(
            Bug(kind="wrong_variable", right="($n - $k) * $p", wrong="$n * $p", tier=2),
            Bug(kind="operator_swap", right="($n - $k)", wrong="($n + $k)"),
            Bug(kind="dropped_step", right="$fee += (", wrong="$fee = ("),
            Bug(kind="comparison_direction", right="$n > $k", wrong="$n < $k"),
            Bug(kind="off_by_one", right="($n - $k) * $p", wrong="($n - $k - 1) * $p", tier=2),
        ),
        inputs=lambda d, c: (d.number(0, 12),),
    ),
)
