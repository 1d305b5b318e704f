"""Functions of the training split on lists and dicts."""

from __future__ import annotations

from palestra.tasks.katas.family import Bug, Family

TRAIN_COLLECTIONS = (
    Family(
        name="chunks",
        names="chunked in_batches split_up",
        doc="Cut the list $xs into lists of $n entries each, in order; the last may be shorter.",
        source="""
def $f($xs, $n):
    return [$xs[$i:$i + $n] for $i in range(0, len($xs), $n)]
""",
        slots={"xs": "items values rows", "n": "size n width", "i": "start i offset"},
        bugs=(
            Bug(kind="slice_off_by_one", right="$i + $n]", wrong="$i + $n - 1]"),
            Bug(kind="range_off_by_one", right="range(0,", wrong="range(1,"),
            Bug(kind="range_off_by_one", right="len($xs), $n)", wrong="len($xs) - 1, $n)", tier=2),
            Bug(kind="wrong_slice", right="[$i:$i + $n]", wrong="[$i:$n]", tier=2),
        ),
        inputs=lambda d, c: (d.numbers(0, 7), d.number(1, 4)),
    ),
    Family(
        name="running_totals",
        names="running_totals cumulated partial_sums",
        doc="Return a list with the sum of the first, the first two, the first three … of $xs.",
        source="""
def $f($xs):
    $total = 0
    $out = []
    for $x in $xs:
        $total += $x
        $out.append($total)
    return $out
""",
        slots={
            "xs": "values payments steps",
            "total": "total acc level",
            "out": "out result sums",
            "x": "x value payment",
        },
        bugs=(
            Bug(kind="dropped_step", right="$total += $x", wrong="$total = $x"),
            Bug(kind="wrong_variable", right="append($total)", wrong="append($x)"),
            Bug(kind="operator_swap", right="$total += $x", wrong="$total -= $x"),
            Bug(kind="initial_value", right="$total = 0", wrong="$total = 1"),
            Bug(kind="slice_off_by_one", right="in $xs:", wrong="in $xs[:-1]:", tier=2),
            Bug(kind="slice_off_by_one", right="return $out", wrong="return $out[1:]", tier=2),
        ),
        inputs=lambda d, c: (d.numbers(0, 5),),
    ),
    Family(
        name="unique",
        names="unique_in_order without_repeats first_of_each",
        doc="Return the entries of $xs without repetitions, each where it first occurred.",
        source="""
def $f($xs):
    $seen = set()
    $out = []
    for $x in $xs:
        if $x not in $seen:
            $seen.add($x)
            $out.append($x)
    return $out
""",
        slots={
            "xs": "items values names",
            "seen": "seen known before",
            "out": "out result kept",
            "x": "x item value",
        },
        bugs=(
            Bug(kind="inverted_condition", right="not in", wrong="in"),
            Bug(kind="wrong_return", right="return $out", wrong="return sorted($out)", tier=2),
            Bug(kind="wrong_method", right="$out.append($x)", wrong="$out.insert(0, $x)"),
            Bug(kind="missing_line", right="            $seen.add($x)\n", wrong="", tier=4),
            Bug(
                kind="dropped_condition",
                right=(
                    "        if $x not in $seen:\n"
                    "            $seen.add($x)\n"
                    "            $out.append($x)\n"
                ),
                wrong="        $seen.add($x)\n        $out.append($x)\n",
                tier=4,
            ),
        ),
        inputs=lambda d, c: (d.numbers(0, 7, 1, 5),),
    ),
    Family(
        name="second_greatest",
        names="second_greatest runner_up second_best",
        doc=(
            "Return the second greatest of the different values in $xs, "
            "and None when there are fewer than two of them."
        ),
        source="""
def $f($xs):
    $ranked = sorted(set($xs))
    if len($ranked) < 2:
        return None
    return $ranked[-2]
""",
        slots={"xs": "values scores marks", "ranked": "ranked ordered levels"},
        bugs=(
            Bug(kind="wrong_index", right="[-2]", wrong="[1]"),
            Bug(kind="wrong_index", right="[-2]", wrong="[-1]"),
            Bug(kind="boundary", right="< 2", wrong="< 1", tier=2),
            Bug(kind="boundary", right="< 2", wrong="<= 2", tier=2),
            Bug(kind="dropped_step", right="sorted(set($xs))", wrong="sorted($xs)", tier=2),
            Bug(
                kind="missing_guard",
                right="    if len($ranked) < 2:\n        return None\n",
                wrong="",
                tier=4,
            ),
        ),
        inputs=lambda d, c: (d.numbers(0, 5, 1, 5),),
    ),
    Family(
        name="rotate",
        names="rotated_left moved_to_end turned",
        doc="Move the first $n entries of $xs to its end; $n may exceed its length.",
        source="""
def $f($xs, $n):
    if not $xs:
        return []
    $n = $n % len($xs)
    return $xs[$n:] + $xs[:$n]
""",
        slots={"xs": "items values queue", "n": "n count steps"},
        bugs=(
            Bug(kind="wrong_slice", right="$xs[$n:] + $xs[:$n]", wrong="$xs[:$n] + $xs[$n:]"),
            Bug(kind="wrong_slice", right="$xs[$n:] +", wrong="$xs[$n + 1:] +"),
            Bug(kind="off_by_one", right="$n % len($xs)", wrong="$n % (len($xs) + 1)", tier=2),
            Bug(kind="min_max_swap", right="$n % len($xs)", wrong="min($n, len($xs))", tier=2),
            Bug(
                kind="missing_guard",
                right="    if not $xs:\n        return []\n",
                wrong="",
                tier=4,
            ),
        ),
        inputs=lambda d, c: (d.numbers(0, 5), d.number(0, 9)),
    ),
    Family(
        name="find_index",
        names="find_position index_or_none place_of",
        doc="Return the index of the first entry of $xs equal to $y, and -1 without one.",
        source="""
def $f($xs, $y):
    for $i, $x in enumerate($xs):
        if $x == $y:
            return $i
    return -1
""",
        slots={
            "xs": "items values names",
            "y": "wanted target goal",
            "i": "i index",
            "x": "x item",
        },
        bugs=(
            Bug(kind="missing_return", right="return -1", wrong="return None"),
            Bug(kind="wrong_default", right="return -1", wrong="return 0"),
            Bug(kind="off_by_one", right="enumerate($xs)", wrong="enumerate($xs, 1)"),
            Bug(kind="wrong_variable", right="return $i", wrong="return $x"),
            Bug(kind="comparison_direction", right="$x == $y", wrong="$x >= $y", tier=2),
            Bug(kind="missing_return", right="    return -1", wrong="        return -1", tier=2),
        ),
        inputs=lambda d, c: (d.numbers(0, 6, 1, 6), d.number(1, 6)),
    ),
    Family(
        name="top_n",
        names="greatest_first top_entries best_of",
        doc="Return the $n greatest of $xs, the greatest first; $xs itself stays as it is.",
        source="""
def $f($xs, $n):
    $ranked = list($xs)
    $ranked.sort(reverse=True)
    return $ranked[:$n]
""",
        slots={"xs": "values scores points", "n": "n count k", "ranked": "ranked ordered board"},
        bugs=(
            Bug(kind="sort_direction", right="reverse=True", wrong="reverse=False"),
            Bug(kind="wrong_slice", right="[:$n]", wrong="[$n:]"),
            Bug(kind="slice_off_by_one", right="[:$n]", wrong="[1:$n + 1]"),
            Bug(kind="mutated_input", right="= list($xs)", wrong="= $xs", tier=2),
            Bug(kind="dropped_step", right="= list($xs)", wrong="= list(set($xs))", tier=2),
        ),
        inputs=lambda d, c: (d.numbers(0, 6, 1, 9), d.number(1, 4)),
    ),
    Family(
        name="invert",
        names="inverted keys_by_value reversed_mapping",
        doc="Map each value of the dict $m to its key; of several keys the first counts.",
        source="""
def $f($m):
    $out = {}
    for $key, $value in $m.items():
        if $value not in $out:
            $out[$value] = $key
    return $out
""",
        slots={
            "m": "mapping table codes",
            "out": "out result inverse",
            "key": "key name",
            "value": "value code",
        },
        bugs=(
            Bug(kind="wrong_key", right="$out[$value] = $key", wrong="$out[$key] = $value"),
            Bug(kind="wrong_variable", right="if $value not", wrong="if $key not", tier=2),
            Bug(kind="inverted_condition", right="not in $out", wrong="in $out"),
            Bug(
                kind="dropped_condition",
                right="        if $value not in $out:\n            $out[$value] = $key\n",
                wrong="        $out[$value] = $key\n",
                tier=4,
            ),
        ),
        inputs=lambda d, c: ({w: d.pick("xyz") for w in d.words(0, 4)},),
    ),
    Family(
        name="merge_counts",
        names="merged_counts added_up_counts joint_stock",
        doc=(
            "Return a new dict with the counts of $a and $b, added where a key is in both; "
            "neither argument changes."
        ),
        source="""
def $f($a, $b):
    $out = dict($a)
    for $key, $n in $b.items():
        $out[$key] = $out.get($key, 0) + $n
    return $out
""",
        slots={
            "a": "left stock first",
            "b": "right delivery second",
            "out": "out result both",
            "key": "key name",
            "n": "n count",
        },
        bugs=(
            Bug(kind="wrong_default", right="($key, 0)", wrong="($key, 1)"),
            Bug(kind="operator_swap", right="0) + $n", wrong="0) - $n"),
            Bug(kind="mutated_input", right="dict($a)", wrong="$a", tier=2),
            Bug(kind="wrong_variable", right="$out.get", wrong="$b.get", tier=2),
            Bug(kind="dropped_step", right="$out.get($key, 0) + $n", wrong="$n"),
        ),
        inputs=lambda d, c: (
            {k: d.number(1, 9) for k in d.sample("abcd", d.number(0, 3))},
            {k: d.number(1, 9) for k in d.sample("abcd", d.number(0, 3))},
        ),
    ),
    Family(
        name="group_by_length",
        names="by_length grouped_by_size words_per_length",
        doc="Map each length to the list of the words of $ws that have it, in their order.",
        source="""
def $f($ws):
    $out = {}
    for $w in $ws:
        $out.setdefault(len($w), []).append($w)
    return $out
""",
        slots={"ws": "words names entries", "out": "out groups result", "w": "w word name"},
        bugs=(
            Bug(kind="wrong_key", right="(len($w), [])", wrong="($w[0], [])"),
            Bug(kind="off_by_one", right="len($w)", wrong="len($w) - 1"),
            Bug(kind="wrong_method", right=".append($w)", wrong=".extend($w)", tier=2),
            Bug(kind="wrong_variable", right="len($w)", wrong="len($ws)", tier=2),
            Bug(kind="wrong_method", right=".append($w)", wrong=".insert(0, $w)", tier=2),
        ),
        inputs=lambda d, c: ([d.word(2, 4) for _ in range(d.number(0, 5))],),
    ),
)
